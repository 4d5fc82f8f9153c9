// The bodies of the kernels for elementwise gradients of the step, and for the sums over a tile's elements that the
// row's gradients begin with; made as the step's, by a first warp that gathers and a loop over a tile.
#pragma once

#include "cuda/elements.h"
#include "cuda/sums_body.h"
#include "gmmkernel/backward.h"

namespace gmmkernel {

enum class FlowKind : uint32_t {
  nothing,  // the grid has more blocks than the batch has samples
  invalid,  // the sample's row, step or first element is out of range
  free,     // the row clips nothing: sample and output need not be read
  clipped,
};

// What gradients need of one sample; pointers lead to the tile's first element and are nullptr for what is absent.
template <class T>
struct alignas(16) BackwardTile {
  PhiloxKeys keys;
  uint64_t element;  // of the noise, the tile's first
  uint32_t step;
  FlowKind kind;
  Row<T> row;
  const void *x, *output, *uncond;
  const void *grad, *grad_prediction;
  void *grad_x, *grad_output, *grad_uncond;
  void* grad_history[GMM_MAX_HISTORY];
  const T* offset;
  int64_t sample, first;
  uint32_t count, std_count;
  bool aligned;  // every tensor above, to 16 bytes
};

// `more`: history, predictions and guidance may be there.
template <bool more, int32_t sample_dtype, int32_t output_dtype, bool sums, class T>
GMM_INLINE void gather(const gmm_step_backward_arguments& b, const Tiling& tiling, const Place& place,
                       BackwardTile<T>& tile) {
  const gmm_step_arguments& a = b.step;
  const uint32_t lane = place.thread;
  const int64_t sample = place.sample();
  if (sample >= a.batch) {
    tile.kind = FlowKind::nothing;
    return;
  }
  const int64_t first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  const int64_t row_index = index_at(a.row, sample), step = index_at(a.step, sample);
  const int64_t shard = index_at(a.first_element, sample);
  FlowKind kind = FlowKind::invalid;
  if (row_index >= 0 && row_index < a.coefficient_rows && is_step(step) && shard >= 0) {
    const T* columns = static_cast<const T*>(a.coefficients) + row_index * row_columns;
    for (uint32_t c = lane; c < row_columns; c += gathering_lanes) reinterpret_cast<T*>(&tile.row)[c] = columns[c];
    kind = clips(*reinterpret_cast<const Row<T>*>(columns)) ? FlowKind::clipped : FlowKind::free;
    if constexpr (sums) {
      const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
      const gmm_mixture& m = a.mixture;
      uint32_t component = 0;
      if (m.components > 1) component = draw_component(m, row_index, keys, static_cast<uint32_t>(step), lane);
      if (lane == 0) {
        const int64_t offset_row = table_row(m.offset_rows, row_index) * m.components + component;
        const int64_t left = m.components > 0 ? m.std_elements - first : 0;
        tile.keys = keys;
        tile.offset = m.components > 0 ? static_cast<const T*>(m.offsets) + offset_row * a.elements + first : nullptr;
        tile.std_count = left <= 0 ? 0 : left < count ? static_cast<uint32_t>(left) : count;
      }
    }
  }
  if (lane != 0) return;
  tile.element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(first);
  tile.step = static_cast<uint32_t>(step);
  tile.kind = kind;
  tile.sample = sample;
  tile.first = first;
  tile.count = count;
  tile.x = sample_at<sample_dtype>(a.sample, sample, first);
  tile.output = sample_at<output_dtype>(a.model_output, sample, first);
  tile.grad = present_at<sample_dtype>(b.grad_result, sample, first);
  tile.grad_x = present_at<sample_dtype>(b.grad_sample, sample, first);
  tile.grad_output = present_at<output_dtype>(b.grad_model_output, sample, first);
  tile.uncond = nullptr;
  tile.grad_prediction = nullptr;
  tile.grad_uncond = nullptr;
  const auto address = [](const void* data) { return reinterpret_cast<uintptr_t>(data); };  // of nothing: 0
  uintptr_t all = address(tile.x) | address(tile.output) | address(tile.grad);
  all |= address(tile.grad_x) | address(tile.grad_output);
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
    tile.grad_history[h] = more ? present_at<sample_dtype>(b.grad_history[h], sample, first) : nullptr;
    all |= address(tile.grad_history[h]);
  }
  if constexpr (more) {
    tile.uncond = present_at<output_dtype>(a.model_output_uncond, sample, first);
    tile.grad_prediction = present_at<sample_dtype>(b.grad_prediction, sample, first);
    tile.grad_uncond = present_at<output_dtype>(b.grad_model_output_uncond, sample, first);
    all |= address(tile.uncond) | address(tile.grad_prediction) | address(tile.grad_uncond);
  }
  tile.aligned = all % 16 == 0;
}

// ---- the fast gradients: one type, everything aligned, neither history nor prediction nor guidance ----

// So many vectors, a pass of the block apart: all are asked for before the first is waited for.
template <int32_t dtype, bool clipped, int vectors>
GMM_INLINE void backward_vectors(const BackwardTile<float>& tile, const Row<float>& row, uint32_t first) {
  constexpr uint32_t n = Format<dtype>::count, stride = n * block_threads;
  typename Format<dtype>::bits grad[vectors], x[vectors], output[vectors];
  for (int v = 0; v < vectors; ++v) {
    const uint32_t i = first + v * stride;
    grad[v] = load128<dtype>(tile.grad, i);
    if constexpr (clipped) {
      x[v] = load128<dtype>(tile.x, i);
      output[v] = load128<dtype>(tile.output, i);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    const uint32_t i = first + v * stride;
    float g[n], of_x[n] = {}, of_output[n] = {};  // the inputs' values, then their gradients
    Format<dtype>::unpack(grad[v], g);
    if constexpr (clipped) {
      Format<dtype>::unpack(x[v], of_x);
      Format<dtype>::unpack(output[v], of_output);
    }
    for (uint32_t j = 0; j < n; ++j) {
      const auto flow = flow_back<ScalarLanes>(row, of_x[j], of_output[j], g[j], PredictionKind::none, 0);
      of_x[j] = flow.grad_x;
      of_output[j] = flow.grad_output;
    }
    store128_if_wanted<dtype>(tile.grad_x, i, Format<dtype>::pack(of_x));
    store128_if_wanted<dtype>(tile.grad_output, i, Format<dtype>::pack(of_output));
  }
}

// With infinite bounds that are known when compiling, so that nothing is compared.
template <class T>
GMM_INLINE Row<T> without_bounds(const Row<T>& given) {
  Row<T> row = given;
  row.clip_min = static_cast<T>(-__builtin_huge_val());
  row.clip_max = static_cast<T>(__builtin_huge_val());
  return row;
}

// The first `end` elements of an aligned tile, a multiple of 8.
template <int32_t dtype, bool clipped>
GMM_INLINE void backward_fast(const BackwardTile<float>& shared_tile, uint32_t end, uint32_t thread) {
  constexpr uint32_t n = Format<dtype>::count, stride = n * block_threads;
  constexpr int unroll = 16 / n;
  const BackwardTile<float> tile = shared_tile;
  const Row<float> row = clipped ? tile.row : without_bounds(tile.row);
  uint32_t i = n * thread;
  for (; i + (unroll - 1) * stride < end; i += unroll * stride) {
    backward_vectors<dtype, clipped, unroll>(tile, row, i);
  }
  GMM_NO_UNROLL
  for (; i < end; i += stride) backward_vectors<dtype, clipped, 1>(tile, row, i);
}

// ---- any gradients ----

// Neighbouring elements of the tile, read and written as `at` says, given the result's gradient. For sums, which go one
// by one, the row's terms are put into `terms`, all but those of OFFSET and SIGMA.
template <bool more, class T, class Elements>
GMM_INLINE void backward_elements(const gmm_step_backward_arguments& b, const BackwardTile<T>& tile, const Elements& at,
                                  const T (&grad_result)[Elements::n], T (*terms)[row_columns]) {
  using Lanes = typename LanesOf<T>::type;
  constexpr uint32_t n = Elements::n;
  const gmm_step_arguments& a = b.step;
  const Row<T>& row = tile.row;
  const PredictionKind kind =
      !more || tile.grad_prediction == nullptr ? PredictionKind::none : static_cast<PredictionKind>(a.prediction_kind);
  T added[n] = {}, x[n] = {}, o[n] = {}, difference[n] = {}, other[n];
  if (tile.kind == FlowKind::clipped || terms != nullptr) {
    const auto x_bits = at.template read<TypeOf::sample>(tile.x, a.sample.dtype);
    const auto o_bits = at.template read<TypeOf::model_output>(tile.output, a.model_output.dtype);
    at.template unpack<TypeOf::sample>(x_bits, x);
    at.template unpack<TypeOf::model_output>(o_bits, o);
    if (more && tile.uncond != nullptr) {
      const auto bits = at.template read<TypeOf::model_output>(tile.uncond, a.model_output_uncond.dtype);
      at.template unpack<TypeOf::model_output>(bits, other);
      for (uint32_t j = 0; j < n; ++j) {
        difference[j] = Lanes::sub(o[j], other[j]);
        o[j] = guide<Lanes>(row, other[j], o[j]);
      }
    }
  }
  T grad[n];  // of the mean
  for (uint32_t j = 0; j < n; ++j) grad[j] = grad_result[j];
  if (kind != PredictionKind::none) {
    const auto bits = at.template read<TypeOf::sample>(tile.grad_prediction, a.sample.dtype);
    at.template unpack<TypeOf::sample>(bits, added);
    for (uint32_t j = 0; j < n; ++j) {
      if (kind == PredictionKind::mean) grad[j] = Lanes::add(grad_result[j], added[j]);
    }
  }

  Flow<Lanes> flow[n];
  if (n == 8 && kind == PredictionKind::none && tile.kind == FlowKind::free) {
    const Row<T> free_row = without_bounds(row);
    for (uint32_t j = 0; j < n; ++j) {
      flow[j] = flow_back<Lanes>(free_row, T(0), T(0), grad[j], PredictionKind::none, T(0));
    }
  } else if (n == 8 && kind == PredictionKind::none) {
    for (uint32_t j = 0; j < n; ++j) flow[j] = flow_back<Lanes>(row, x[j], o[j], grad[j], PredictionKind::none, T(0));
  } else {
    for (uint32_t j = 0; j < n; ++j) flow[j] = flow_back<Lanes>(row, x[j], o[j], grad[j], kind, added[j]);
  }
  if (tile.grad_x != nullptr) {
    for (uint32_t j = 0; j < n; ++j) other[j] = flow[j].grad_x;
    at.template write<TypeOf::sample>(tile.grad_x, b.grad_sample.dtype, other);
  }
  if (more && tile.uncond != nullptr) {
    T of_output[n];
    for (uint32_t j = 0; j < n; ++j) {
      of_output[j] = Lanes::mul(row.guidance, flow[j].grad_output);
      other[j] = Lanes::sub(flow[j].grad_output, of_output[j]);
    }
    if (tile.grad_output != nullptr) {
      at.template write<TypeOf::model_output>(tile.grad_output, b.grad_model_output.dtype, of_output);
    }
    if (tile.grad_uncond != nullptr) {
      at.template write<TypeOf::model_output>(tile.grad_uncond, b.grad_model_output_uncond.dtype, other);
    }
  } else if (tile.grad_output != nullptr) {
    for (uint32_t j = 0; j < n; ++j) other[j] = flow[j].grad_output;
    at.template write<TypeOf::model_output>(tile.grad_output, b.grad_model_output.dtype, other);
  }
  GMM_UNROLL(4)
  for (int h = 0; more && h < GMM_MAX_HISTORY; ++h) {
    if (tile.grad_history[h] != nullptr) {
      for (uint32_t j = 0; j < n; ++j) other[j] = Lanes::mul(row.history[h], grad[j]);
      at.template write<TypeOf::sample>(tile.grad_history[h], b.grad_history[h].dtype, other);
    }
    if (terms == nullptr) continue;
    const void* history = present_at<any_dtype>(a.history[h], tile.sample, tile.first);
    if (history == nullptr) continue;
    at.template unpack<TypeOf::sample>(at.template read<TypeOf::sample>(history, a.history[h].dtype), other);
    (*terms)[GMM_HISTORY_0 + h] = Lanes::mul(grad[0], other[0]);
  }
  if (terms == nullptr) return;

  T(&term)[row_columns] = *terms;
  term[GMM_X0_SAMPLE] = Lanes::mul(flow[0].grad_x0, x[0]);
  term[GMM_X0_OUTPUT] = Lanes::mul(flow[0].grad_x0, o[0]);
  term[GMM_CLIP_MIN] = flow[0].grad_low;
  term[GMM_CLIP_MAX] = flow[0].grad_high;
  term[GMM_SAMPLE] = Lanes::mul(grad[0], x[0]);
  term[GMM_OUTPUT] = Lanes::mul(grad[0], o[0]);
  term[GMM_X0] = Lanes::mul(grad[0], flow[0].x0);
  if (tile.uncond != nullptr) term[GMM_GUIDANCE] = Lanes::mul(flow[0].grad_output, difference[0]);
  if (kind == PredictionKind::epsilon) {
    term[GMM_EPS_SAMPLE] = Lanes::mul(added[0], x[0]);
    term[GMM_EPS_OUTPUT] = Lanes::mul(added[0], o[0]);
  }
}

// ---- a whole tile ----

template <class T>
GMM_INLINE T not_a_number() {
  return static_cast<T>(bits_float(0x7FC00000));
}

// Makes all gradients of the tile one number: NaN where a row or step is out of range.
template <class T>
GMM_INLINE void fill_gradients(const gmm_step_backward_arguments& b, const BackwardTile<T>& tile, uint32_t thread,
                               T value) {
  const T values[4] = {value, value, value, value};
  const auto fill = [&](const gmm_output& output) {
    void* data = present_at<any_dtype>(output, tile.sample, tile.first);
    if (data == nullptr) return;
    for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) {
      store_some(data, output.dtype, i, tile.count, values);
    }
  };
  fill(b.grad_sample);
  fill(b.grad_model_output);
  fill(b.grad_model_output_uncond);
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) fill(b.grad_history[h]);
}

// The elements of the tile from the given one on, as `step_known`.
template <int32_t sample_dtype, int32_t output_dtype, bool more>
GMM_INLINE void backward_known(const gmm_step_backward_arguments& b, const BackwardTile<float>& tile, uint32_t from,
                               uint32_t thread) {
  const uint32_t end = tile.aligned ? tile.count / 8 * 8 : 0;
  GMM_NO_UNROLL
  for (uint32_t i = from + 8 * thread; i < end; i += 8 * block_threads) {
    const EightElements<sample_dtype, output_dtype> at = {i};
    float grad[8];
    at.template unpack<TypeOf::sample>(at.template read<TypeOf::sample>(tile.grad, sample_dtype), grad);
    backward_elements<more, float>(b, tile, at, grad, nullptr);
  }
  GMM_NO_UNROLL
  for (uint32_t i = (tile.aligned ? end : from) + 4 * thread; i < tile.count; i += 4 * block_threads) {
    const FourElements<float, sample_dtype, output_dtype> at = {i, tile.count};
    float grad[4];
    at.template unpack<TypeOf::sample>(at.template read<TypeOf::sample>(tile.grad, sample_dtype), grad);
    backward_elements<more, float>(b, tile, at, grad, nullptr);
  }
}

template <int32_t dtype>
GMM_INLINE void backward_plain(const gmm_step_backward_arguments& b, const BackwardTile<float>& tile, uint32_t thread) {
  if (tile.kind == FlowKind::nothing) return;
  if (tile.kind == FlowKind::invalid) {
    fill_gradients(b, tile, thread, not_a_number<float>());
    return;
  }
  uint32_t from = 0;
  if (tile.aligned) {
    from = tile.count / 8 * 8;
    if (tile.kind == FlowKind::free) {
      backward_fast<dtype, false>(tile, from, thread);
    } else {
      backward_fast<dtype, true>(tile, from, thread);
    }
  }
  backward_known<dtype, dtype, false>(b, tile, from, thread);
}

template <int32_t sample_dtype, int32_t output_dtype>
GMM_INLINE void backward_typed(const gmm_step_backward_arguments& b, const BackwardTile<float>& tile, uint32_t thread) {
  if (tile.kind == FlowKind::nothing) return;
  if (tile.kind == FlowKind::invalid) {
    fill_gradients(b, tile, thread, not_a_number<float>());
  } else {
    backward_known<sample_dtype, output_dtype, true>(b, tile, 0, thread);
  }
}

template <class T>
GMM_INLINE void backward_any(const gmm_step_backward_arguments& b, const BackwardTile<T>& tile, uint32_t thread) {
  if (tile.kind == FlowKind::nothing) return;
  if (tile.kind == FlowKind::invalid) {
    fill_gradients(b, tile, thread, not_a_number<T>());
    return;
  }
  for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) {
    T grad[4];
    load_four(tile.grad, b.step.sample.dtype, i, tile.count, grad);
    backward_elements<true, T>(b, tile, FourElements<T, any_dtype, any_dtype>{i, tile.count}, grad, nullptr);
  }
}

// ---- a tile of 1024 with the sums of its terms, in four steps with a barrier after each ----

template <class T>
struct BackwardSums {
  float noise[sum_tile];
  Columns<T> columns;
};

template <class T>
GMM_INLINE void draw_noise(const BackwardTile<T>& tile, uint32_t thread, BackwardSums<T>& sums) {
  if (tile.kind == FlowKind::invalid) return;
  float z[4];
  draw_normals_from(tile.keys, tile.element + 4 * thread, tile.step, Stream::transition, z);
  for (int j = 0; j < 4; ++j) sums.noise[4 * thread + j] = z[j];
}

// Calls gradients(i, terms) for a thread's elements, a quarter of the tile apart, and sums the terms that it makes.
template <class T, class Gradients>
GMM_INLINE void sum_quarters(const BackwardTile<T>& tile, uint32_t thread, Columns<T>& columns, Gradients&& gradients) {
  T whole[row_columns];  // sums begin at -0, which changes nothing that is added to it
  for (int c = 0; c < row_columns; ++c) whole[c] = T(-0.0);
  GMM_NO_UNROLL
  for (uint32_t low = 0; low < 2; ++low) {
    T half[row_columns];
    for (int c = 0; c < row_columns; ++c) half[c] = T(-0.0);
    GMM_NO_UNROLL
    for (uint32_t high = 0; high < 2; ++high) {
      const uint32_t i = thread + block_threads * (2 * high + low);
      T terms[row_columns] = {};
      if (i < tile.count) gradients(i, terms);
      for (int c = 0; c < row_columns; ++c) half[c] += terms[c];
    }
    for (int c = 0; c < row_columns; ++c) whole[c] += half[c];
  }
  for (int c = 0; c < row_columns; ++c) columns.quarters[c][thread] = whole[c];
}

template <class T>
GMM_INLINE void fill_quarters(uint32_t thread, Columns<T>& columns, T value) {
  for (int c = 0; c < row_columns; ++c) columns.quarters[c][thread] = value;
}

template <class T>
GMM_INLINE void backward_sums(const gmm_step_backward_arguments& b, const BackwardTile<T>& tile, uint32_t thread,
                              BackwardSums<T>& sums) {
  using Lanes = typename LanesOf<T>::type;
  if (tile.kind == FlowKind::invalid) {
    fill_gradients(b, tile, thread, not_a_number<T>());
    fill_quarters(thread, sums.columns, not_a_number<T>());
    return;
  }
  sum_quarters(tile, thread, sums.columns, [&](uint32_t i, T(&terms)[row_columns]) {
    const T grad[1] = {load_element<T>(tile.grad, b.step.sample.dtype, i)};
    backward_elements<true, T>(b, tile, OneElement<T>{i}, grad, &terms);
    if (i >= tile.std_count) terms[GMM_SIGMA] = Lanes::mul(grad[0], static_cast<T>(sums.noise[i]));
    if (tile.offset != nullptr) terms[GMM_OFFSET] = Lanes::mul(grad[0], global(tile.offset)[i]);
  });
}

template <class T>
GMM_INLINE void write_sums(const SumRows& rows, const BackwardTile<T>& tile, uint32_t thread,
                           const Columns<T>& columns) {
  if (thread >= row_columns) return;
  sums_of<T>(rows, tile.sample)[tile.first / sum_tile * row_columns + thread] =
      sum_of_sixteenths(columns.sixteenths, thread);
}

}  // namespace gmmkernel
