// The bodies of the kernels for gradients of log-densities: elementwise ones go on as gradients of a step's mean; those
// of tables are sums over the batch in order, a block for each tile of an entry.
#pragma once

#include "cuda/backward_body.h"
#include "cuda/density_body.h"
#include "cuda/tables_body.h"

namespace gmmkernel {

// With what the kernels of the step's gradients look at: a density has no step index, and no gradient of a result.
inline gmm_log_prob_backward_arguments completed(gmm_log_prob_backward_arguments b) {
  b.gradients.step = b.of.step;
  b.gradients.step.step = b.gradients.step.first_element = {nullptr, 0, 0};
  b.gradients.grad_result = b.gradients.grad_prediction = {};
  return b;
}

template <class T>
GMM_INLINE T grad_of(const gmm_log_prob_backward_arguments& b, int64_t sample, int64_t first = 0) {
  const int64_t tiles = (b.of.step.elements + sum_tile - 1) / sum_tile;
  return static_cast<const T*>(b.grad_log_prob)[b.of_tiles ? sample * tiles + first / sum_tile : sample];
}

// Of a sample's density, one for each component.
template <class T>
GMM_INLINE const T* shares_of(const gmm_log_prob_backward_arguments& b, int64_t sample) {
  return static_cast<const T*>(b.of.responsibilities) + sample * b.of.step.mixture.components;
}

// ---- elementwise, and the sums over elements ----

// What the mean of the transition, SIGMA and OFFSET have of an element's gradient.
template <class T>
struct DensityFlow {
  T mean, sigma, offset;
};

template <bool sums, class T>
GMM_INLINE DensityFlow<T> density_flow(const gmm_log_prob_backward_arguments& b, const DensityTile<T>& tile,
                                       uint32_t i) {
  using Lanes = typename OneLane<T>::Lanes;
  const gmm_mixture& m = b.of.step.mixture;
  const T a = distance_at(b.of, tile, i), grad = grad_of<T>(b, tile.sample, tile.first);
  DensityFlow<T> flow = {0, 0, 0};
  T inverse = Lanes::div(T(1), std_at(b.of, tile, 0, i));
  if (m.components == 0) {
    const DensityUnits<Lanes> units = density_units<Lanes>(a, inverse);
    flow.mean = Lanes::fma(T(1), units.mean, flow.mean);
    flow.sigma = Lanes::fma(T(1), units.std, flow.sigma);
  }
  const T* shares = shares_of<T>(b, tile.sample);
  GMM_NO_UNROLL
  for (int64_t k = 0; k < m.components; ++k) {
    const T share = global(shares)[k];
    if (k > 0 && m.std_components > 1) inverse = Lanes::div(T(1), std_at(b.of, tile, k, i));
    const DensityUnits<Lanes> units = density_units<Lanes>(distance_from(b.of, tile, k, i, a), inverse);
    flow.mean = Lanes::fma(share, units.mean, flow.mean);
    if constexpr (sums) {
      const T offset = global(tile.offsets)[k * b.of.step.elements + i];
      flow.sigma = Lanes::fma(share, units.std, flow.sigma);
      flow.offset = Lanes::fma(share, Lanes::mul(units.mean, offset), flow.offset);
    }
  }
  return {Lanes::mul(grad, flow.mean), Lanes::mul(grad, flow.sigma), Lanes::mul(grad, flow.offset)};
}

// One element's gradients; where sums are wanted, the row's terms are put into `terms`.
template <bool sums, class T>
GMM_INLINE void density_backward_element(const gmm_log_prob_backward_arguments& b, const DensityTile<T>& density,
                                         const BackwardTile<T>& tile, void* grad_prev, uint32_t i,
                                         T (*terms)[row_columns]) {
  using Lanes = typename OneLane<T>::Lanes;
  const DensityFlow<T> flow = density_flow<sums>(b, density, i);
  if (grad_prev != nullptr) {
    store_element(grad_prev, b.grad_prev_sample.dtype, i, Lanes::mul(T(-1), flow.mean));
  }
  const T grad[1] = {flow.mean};
  backward_elements<true, T>(b.gradients, tile, OneElement<T>{i}, grad, terms);
  if constexpr (sums) {
    if (i >= density.std_count) (*terms)[GMM_SIGMA] = flow.sigma;
    if (density.offsets != nullptr) (*terms)[GMM_OFFSET] = flow.offset;
  }
}

template <bool sums, class T>
GMM_INLINE void density_backward(const gmm_log_prob_backward_arguments& b, const DensityTile<T>& density,
                                 const BackwardTile<T>& tile, uint32_t thread, Columns<T>* columns) {
  void* grad_prev = present_at<any_dtype>(b.grad_prev_sample, tile.sample, tile.first);
  const bool invalid = tile.kind == FlowKind::invalid;
  if (invalid || grad_of<T>(b, tile.sample, tile.first) == 0) {
    // A sample that has no part in the loss gives zeros, though it may be NaN itself.
    const T value = invalid ? not_a_number<T>() : T(0);
    fill_gradients(b.gradients, tile, thread, value);
    for (uint32_t i = thread; grad_prev != nullptr && i < tile.count; i += block_threads) {
      store_element(grad_prev, b.grad_prev_sample.dtype, i, value);
    }
    if constexpr (sums) fill_quarters(thread, *columns, value);
  } else if constexpr (sums) {
    sum_quarters(tile, thread, *columns, [&](uint32_t i, T(&terms)[row_columns]) {
      density_backward_element<true>(b, density, tile, grad_prev, i, &terms);
    });
  } else {
    GMM_NO_UNROLL
    for (uint32_t i = thread; i < tile.count; i += block_threads) {
      density_backward_element<false, T>(b, density, tile, grad_prev, i, nullptr);
    }
  }
}

// ---- tables ----

// One number of the weights' gradients.
template <class T>
GMM_INLINE void add_shares(const gmm_log_prob_backward_arguments& b, int64_t number) {
  using Lanes = typename OneLane<T>::Lanes;
  const gmm_step_arguments& a = b.of.step;
  const int64_t components = a.mixture.components;
  if (number >= b.of.weight_rows * components) return;
  const int64_t k = number % components;
  const T weight = static_cast<const T*>(b.of.weights)[number];
  T sum = 0;
  GMM_NO_UNROLL
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const int64_t row = index_at(a.row, sample);
    const T grad = grad_of<T>(b, sample);
    if (row < 0 || row >= a.coefficient_rows || table_row(b.of.weight_rows, row) != number / components) continue;
    if (grad == 0) continue;
    const T share = shares_of<T>(b, sample)[k];
    sum = Lanes::add(sum, Lanes::div(Lanes::mul(grad, share), weight));
  }
  static_cast<T*>(b.grad_weights)[number] = sum;
}

constexpr uint32_t entries_together = 8;  // components whose offsets a thread sums at once

// Some components of a table's row.
struct Part {
  int64_t row, component;
};

GMM_INLINE int64_t parts_of_row(const Table& table, uint32_t together) {
  return (table.of_row + together - 1) / together;
}

GMM_INLINE Part part_of(const Table& table, int64_t number, uint32_t together) {
  const int64_t parts = parts_of_row(table, together);
  return {number / parts, number % parts * together};
}

// The samples of a round that have a part in the loss and whose row is that of a table, a bit each.
struct RowUsers {
  uint32_t bits[block_threads / 32];
};

template <class T>
GMM_INLINE void find_row_user(const gmm_log_prob_backward_arguments& b, int64_t rows, int64_t table, int64_t first,
                              uint32_t thread, RowUsers& users) {
  const gmm_step_arguments& a = b.of.step;
  const int64_t sample = first + thread;
  bool uses = false;
  if (sample < a.batch) {
    const int64_t row = index_at(a.row, sample);
    uses = row >= 0 && row < a.coefficient_rows && table_row(rows, row) == table && grad_of<T>(b, sample) != 0;
  }
  set_user_bit(users.bits, thread, uses);
}

// Adds what the round's samples give to element `thread` of the tile, in 8 components' offsets or one std's.
template <class T, bool offsets>
GMM_INLINE void add_density_users(const gmm_log_prob_backward_arguments& b, const RowUsers& users, int64_t first_sample,
                                  int64_t first, uint32_t count, uint32_t thread, int64_t first_component,
                                  T (&sum)[entries_together]) {
  using Lanes = typename OneLane<T>::Lanes;
  if (thread >= count) return;
  const gmm_mixture& m = b.of.step.mixture;
  for_users(users.bits, [&](uint32_t user) {
    const int64_t sample = first_sample + user;
    DensityTile<T> tile = {};
    gather_density(b.of, sample, first, count, tile);
    const T a = distance_at(b.of, tile, thread), grad = grad_of<T>(b, sample);
    const T* shares = shares_of<T>(b, sample);
    T inverse = Lanes::div(T(1), std_at(b.of, tile, first_component, thread));
    const auto part_and_units = [&](int64_t k, T& part) {
      if (k > first_component && m.std_components > 1) inverse = Lanes::div(T(1), std_at(b.of, tile, k, thread));
      part = Lanes::mul(grad, global(shares)[k]);
      return density_units<Lanes>(distance_from(b.of, tile, k, thread, a), inverse);
    };
    T part;
    if constexpr (offsets) {
      GMM_UNROLL(8)
      for (uint32_t c = 0; c < entries_together; ++c) {
        if (first_component + c >= m.components) continue;
        const DensityUnits<Lanes> units = part_and_units(first_component + c, part);
        sum[c] = Lanes::fma(Lanes::mul(part, tile.row.offset), units.mean, sum[c]);
      }
    } else {
      const int64_t last = m.std_components == 1 ? m.components : first_component + 1;
      GMM_NO_UNROLL
      for (int64_t k = first_component; k < last; ++k) {
        const DensityUnits<Lanes> units = part_and_units(k, part);
        sum[0] = Lanes::fma(part, units.std, sum[0]);
      }
    }
  });
}

template <class T, bool offsets>
GMM_INLINE void write_density_entries(const Table& table, const Part& part, int64_t first, uint32_t count,
                                      uint32_t thread, const T (&sum)[entries_together]) {
  if (thread >= count) return;
  T* entries = static_cast<T*>(table.data) + (part.row * table.of_row + part.component) * table.elements + first;
  GMM_UNROLL(8)
  for (uint32_t c = 0; c < (offsets ? entries_together : 1); ++c) {
    if (part.component + c < table.of_row) entries[c * table.elements + thread] = sum[c];
  }
}

}  // namespace gmmkernel
