// The bodies of the kernels for log-densities: a tile's sums of a Gaussian without offset and of how every component
// differs from it, 16 of them at a time; then a block for each sample, from its sums to the density and the shares.
#pragma once

#include "cuda/sums_body.h"
#include "gmmkernel/density.h"

namespace gmmkernel {

// What the density of one sample needs; pointers lead to the tile's first element.
template <class T>
struct alignas(16) DensityTile {
  Row<T> row;
  const void *x, *output, *uncond, *prev;  // nullptr: absent
  const T *offsets, *std;                  // of the first component
  int64_t sample, first, row_index;
  uint32_t count, std_count;
  bool valid;  // the sample's row is in its table
};

template <class T>
GMM_INLINE void gather_density(const gmm_log_prob_arguments& p, int64_t sample, int64_t first, uint32_t count,
                               DensityTile<T>& tile) {
  const gmm_step_arguments& a = p.step;
  const gmm_mixture& m = a.mixture;
  const int64_t row = index_at(a.row, sample);
  tile.sample = sample;
  tile.first = first;
  tile.row_index = row;
  tile.count = count;
  tile.valid = row >= 0 && row < a.coefficient_rows;
  if (!tile.valid) return;
  tile.row = static_cast<const Row<T>*>(a.coefficients)[row];
  tile.x = sample_at<any_dtype>(a.sample, sample, first);
  tile.output = sample_at<any_dtype>(a.model_output, sample, first);
  tile.uncond = present_at<any_dtype>(a.model_output_uncond, sample, first);
  tile.prev = sample_at<any_dtype>(p.prev_sample, sample, first);
  tile.offsets = tile.std = nullptr;
  tile.std_count = 0;
  if (m.components == 0) return;
  const int64_t left = m.std_elements - first;
  tile.offsets = static_cast<const T*>(m.offsets) + table_row(m.offset_rows, row) * m.components * a.elements + first;
  tile.std = static_cast<const T*>(m.std) + table_row(m.std_rows, row) * m.std_components * m.std_elements + first;
  tile.std_count = left <= 0 ? 0 : left < count ? static_cast<uint32_t>(left) : count;
}

// The sample less the mean before any offset.
template <class T>
GMM_INLINE T distance_at(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, uint32_t i) {
  using Lanes = typename OneLane<T>::Lanes;
  const gmm_step_arguments& a = p.step;
  const Row<T>& row = tile.row;
  const T x = load_element<T>(tile.x, a.sample.dtype, i);
  T o = load_element<T>(tile.output, a.model_output.dtype, i);
  if (tile.uncond != nullptr) {
    o = guide<Lanes>(row, load_element<T>(tile.uncond, a.model_output_uncond.dtype, i), o);
  }
  T mean = predict_mean<Lanes>(row, x, o, predict_x0<Lanes>(row, x, o));
  GMM_UNROLL(4)
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
    const gmm_input& stored = a.history[h];
    if (stored.data == nullptr || row.history[h] == 0) continue;
    const void* history = sample_at<any_dtype>(stored, tile.sample, tile.first);
    mean = Lanes::fma(row.history[h], load_element<T>(history, stored.dtype, i), mean);
  }
  return Lanes::sub(load_element<T>(tile.prev, a.sample.dtype, i), mean);
}

// How far component k's mean is from the sample, given the distance `a` without offset.
template <class T>
GMM_INLINE T distance_from(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, int64_t k, uint32_t i, T a) {
  if (tile.offsets == nullptr || tile.row.offset == 0) return a;
  return offset_from<typename OneLane<T>::Lanes>(tile.row, a, global(tile.offsets)[k * p.step.elements + i]);
}

template <class T>
GMM_INLINE T std_at(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, int64_t k, uint32_t i) {
  if (i >= tile.std_count) return tile.row.sigma;
  const gmm_mixture& m = p.step.mixture;
  return global(tile.std)[(m.std_components == 1 ? 0 : k * m.std_elements) + i];
}

// ---- a tile ----

// What a thread keeps of its four elements, a quarter of the tile apart: the distance, over the first component's
// standard deviation too, that deviation's inverse and logarithm.
template <class T>
struct DensityElements {
  T distance[4], base[4], inverse[4], log_std[4];
};

template <class T>
GMM_INLINE void load_elements(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, uint32_t thread,
                              DensityElements<T>& of) {
  using Lanes = typename OneLane<T>::Lanes;
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t i = thread + block_threads * j;
    const bool inside = i < tile.count;
    const T std = inside ? std_at(p, tile, 0, i) : T(1);
    of.distance[j] = inside ? distance_at(p, tile, i) : T(0);
    of.inverse[j] = Lanes::div(T(1), std);
    of.log_std[j] = logarithm<Lanes>(std);
    of.base[j] = Lanes::mul(of.distance[j], of.inverse[j]);
  }
}

// Sixteen columns' sums over a thread's elements: the first of all is the Gaussian's, those after it the components'.
template <class T>
GMM_INLINE void sum_density_quarters(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, uint32_t thread,
                                     const DensityElements<T>& of, int64_t first_column, Columns<T>& columns) {
  using Lanes = typename OneLane<T>::Lanes;
  const bool own_std = p.step.mixture.std_components > 1;
  GMM_NO_UNROLL
  for (uint32_t c = 0; c < sum_columns; ++c) {
    const int64_t k = first_column + c - 1;
    if (k >= p.step.mixture.components) break;
    columns.quarters[c][thread] = sum_four([&](int j) {
      const uint32_t i = thread + block_threads * j;
      if (i >= tile.count) return T(0);
      if (k < 0) return base_term<Lanes>(of.base[j], of.log_std[j]);
      T inverse = of.inverse[j], log_std = of.log_std[j];
      if (own_std) {
        const T std = std_at(p, tile, k, i);
        inverse = Lanes::div(T(1), std);
        log_std = logarithm<Lanes>(std);
      }
      const T d = distance_from(p, tile, k, i, of.distance[j]);
      return difference_term<Lanes>(Lanes::mul(d, inverse), of.base[j], Lanes::sub(log_std, of.log_std[j]));
    });
  }
}

// Whether a tile is full, its components are shifted, and all have one deviation: then nothing need be asked of an
// element.
template <class T>
GMM_INLINE bool is_shifted_alone(const gmm_log_prob_arguments& p, const DensityTile<T>& tile) {
  return tile.count == sum_tile && tile.offsets != nullptr && tile.row.offset != 0 &&
         p.step.mixture.std_components == 1;
}

// The same sixteen columns of such a tile.
template <class T>
GMM_INLINE void sum_shifted_quarters(const gmm_log_prob_arguments& p, const DensityTile<T>& tile, uint32_t thread,
                                     const DensityElements<T>& of, int64_t first_column, Columns<T>& columns) {
  using Lanes = typename OneLane<T>::Lanes;
  const int64_t elements = p.step.elements, left = p.step.mixture.components + 1 - first_column;
  const uint32_t count = left < sum_columns ? static_cast<uint32_t>(left) : sum_columns;
  const T* offsets = tile.offsets + (first_column - 1) * elements + thread;
  uint32_t c = 0;
  if (first_column == 0) {
    columns.quarters[0][thread] = sum_four([&](int j) { return base_term<Lanes>(of.base[j], of.log_std[j]); });
    offsets += elements;
    c = 1;
  }
  GMM_NO_UNROLL
  for (; c < count; ++c, offsets += elements) {
    columns.quarters[c][thread] = sum_four([&](int j) {
      const T d = offset_from<Lanes>(tile.row, of.distance[j], global(offsets)[block_threads * j]);
      const T log_ratio = Lanes::sub(of.log_std[j], of.log_std[j]);  // a NaN for an infinite logarithm
      return difference_term<Lanes>(Lanes::mul(d, of.inverse[j]), of.base[j], log_ratio);
    });
  }
}

template <class T>
GMM_INLINE void write_density_sums(const SumRows& rows, const DensityTile<T>& tile, uint32_t thread,
                                   int64_t first_column, const Columns<T>& columns) {
  const int64_t column = first_column + thread;
  if (thread >= sum_columns || column >= rows.columns) return;
  sums_of<T>(rows, tile.sample)[tile.first / sum_tile * rows.columns + column] =
      sum_of_sixteenths(columns.sixteenths, thread);
}

// ---- a sample, after the tree; with a barrier after each step ----

// What is left of the components by threads, then by sixteenths of them.
template <class T>
struct DensityParts {
  T of_thread[block_threads];
  T largest[16], sum[16];
};

// A thread's four components, a quarter of 1024 apart.
template <class T>
struct ThreadComponents {
  T of[4];
};

// A NaN need not be kept: it spoils the sum of the parts, and so everything.
template <class T>
GMM_INLINE T larger(T a, T b) {
  return b > a ? b : a;
}

template <class T>
GMM_INLINE T infinite() {
  return static_cast<T>(bits_float(0x7F800000));
}

template <class T>
GMM_INLINE void find_levels(const gmm_log_prob_arguments& p, const SumRows& rows, int64_t sample, uint32_t thread,
                            ThreadComponents<T>& level, DensityParts<T>& parts) {
  using Lanes = typename OneLane<T>::Lanes;
  const int64_t components = p.step.mixture.components, row = index_at(p.step.row, sample);
  const bool valid = row >= 0 && row < p.step.coefficient_rows;
  const T* weights = static_cast<const T*>(p.weights) + (valid ? table_row(p.weight_rows, row) * components : 0);
  T largest = -infinite<T>();
  for (int j = 0; j < 4; ++j) {
    const int64_t k = thread + block_threads * j;
    level.of[j] = -infinite<T>();
    if (k >= components) continue;
    const T sum = rows.tiles == 0 ? T(0) : sums_of<T>(rows, sample)[1 + k];
    level.of[j] = valid ? Lanes::sub(logarithm<Lanes>(weights[k]), sum) : static_cast<T>(bits_float(0x7FC00000));
    if (p.energies != nullptr) static_cast<T*>(p.energies)[sample * components + k] = valid ? sum : level.of[j];
    if (p.penalties != nullptr) {
      level.of[j] = Lanes::sub(level.of[j], static_cast<const T*>(p.penalties)[sample * components + k]);
    }
    largest = larger(largest, level.of[j]);
  }
  parts.of_thread[thread] = largest;
}

template <class T>
GMM_INLINE void find_largest(uint32_t thread, DensityParts<T>& parts) {
  if (thread >= 16) return;
  T largest = parts.of_thread[16 * thread];
  for (int i = 1; i < 16; ++i) largest = larger(largest, parts.of_thread[16 * thread + i]);
  parts.largest[thread] = largest;
}

template <class T>
GMM_INLINE T largest_of(const DensityParts<T>& parts) {
  T largest = parts.largest[0];
  for (int i = 1; i < 16; ++i) largest = larger(largest, parts.largest[i]);
  return largest;
}

// Levels become parts of the sum.
template <class T>
GMM_INLINE void find_parts(const gmm_log_prob_arguments& p, uint32_t thread, ThreadComponents<T>& of,
                           DensityParts<T>& parts) {
  using Lanes = typename OneLane<T>::Lanes;
  const T largest = largest_of(parts);
  for (int j = 0; j < 4; ++j) {
    const bool is_one = thread + block_threads * j < p.step.mixture.components;
    of.of[j] = is_one ? exponential<Lanes>(Lanes::sub(of.of[j], largest)) : T(0);
  }
  parts.of_thread[thread] = sum_four([&](int j) { return of.of[j]; });
}

template <class T>
GMM_INLINE void sum_parts(uint32_t thread, DensityParts<T>& parts) {
  if (thread < 16) parts.sum[thread] = sum_sixteen([&](int high) { return parts.of_thread[16 * high + thread]; });
}

template <class T>
GMM_INLINE void write_density(const gmm_log_prob_arguments& p, const SumRows& rows, int64_t sample, uint32_t thread,
                              const ThreadComponents<T>& of, const DensityParts<T>& parts) {
  using Lanes = typename OneLane<T>::Lanes;
  const int64_t components = p.step.mixture.components, row = index_at(p.step.row, sample);
  const T sum = sum_sixteen([&](int i) { return parts.sum[i]; });
  if (thread == 0) {
    const T base = rows.tiles == 0 ? T(0) : sums_of<T>(rows, sample)[0];
    T result = components == 0 ? log_density(base, p.step.elements)
                               : log_density(largest_of(parts), sum, base, p.step.elements);
    if (row < 0 || row >= p.step.coefficient_rows) result = static_cast<T>(bits_float(0x7FC00000));
    static_cast<T*>(p.log_prob)[sample] = result;
  }
  if (p.responsibilities == nullptr) return;
  for (int j = 0; j < 4; ++j) {
    const int64_t k = thread + block_threads * j;
    if (k < components) static_cast<T*>(p.responsibilities)[sample * components + k] = Lanes::div(of.of[j], sum);
  }
}

}  // namespace gmmkernel
