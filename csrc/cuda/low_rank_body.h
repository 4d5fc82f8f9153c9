// The bodies of the kernels of exact moment matching: the noise's projections on the offsets, what the offsets are
// multiplied with, and the step with these. Noise is drawn twice, which costs no memory traffic.
#pragma once

#include "cuda/step_body.h"
#include "cuda/sums_body.h"
#include "gmmkernel/low_rank.h"

namespace gmmkernel {

// The row of a sample, or nullptr where it or the step is out of range, or no variance is removed in directions.
template <class T>
GMM_INLINE const Row<T>* removing_row(const gmm_step_arguments& a, int64_t sample) {
  const int64_t row = index_at(a.row, sample);
  if (row < 0 || row >= a.coefficient_rows || !is_step(index_at(a.step, sample))) return nullptr;
  const Row<T>* of = static_cast<const Row<T>*>(a.coefficients) + row;
  return removes_in_directions(*of, a.mixture.directions) ? of : nullptr;
}

// The offsets [K][elements] of a sample whose row is in range.
template <class T>
GMM_INLINE const T* offsets_of_sample(const gmm_step_arguments& a, int64_t sample) {
  const gmm_mixture& m = a.mixture;
  return static_cast<const T*>(m.offsets) +
         table_row(m.offset_rows, index_at(a.row, sample)) * m.components * a.elements;
}

// ---- projections: a tile of 1024 elements ----

template <class T>
struct alignas(16) NoiseTile {
  PhiloxKeys keys;
  uint32_t block_low, block_high, step;
  uint32_t count;          // elements of the tile
  const T* offsets;        // at the tile's first element; nullptr: nothing to do
  int64_t sample, number;  // the tile's number in its sample
  float noise[sum_tile];
};

// The first thread.
template <class T>
GMM_INLINE void gather_noise(const gmm_step_arguments& a, const Place& place, NoiseTile<T>& tile) {
  const Tiling tiling = {a.elements, sum_tile};
  const int64_t sample = place.sample();
  tile.offsets = nullptr;
  if (sample >= a.batch || removing_row<T>(a, sample) == nullptr) return;
  const uint64_t block = static_cast<uint64_t>(place.first(tiling)) / 4;
  tile.keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
  tile.block_low = static_cast<uint32_t>(block);
  tile.block_high = static_cast<uint32_t>(block >> 32);
  tile.step = static_cast<uint32_t>(index_at(a.step, sample));
  tile.count = place.count(tiling);
  tile.offsets = offsets_of_sample<T>(a, sample) + place.first(tiling);
  tile.sample = sample;
  tile.number = place.tile;
}

// Then every thread, four elements of a Philox block.
template <class T>
GMM_INLINE void draw_noise(NoiseTile<T>& tile, uint32_t thread) {
  float z[4];
  draw_normals(tile.keys, tile.block_low + thread, tile.block_high, tile.step, Stream::transition, z);
  for (int j = 0; j < 4; ++j) tile.noise[4 * thread + j] = z[j];
}

// After a barrier, sixteen components' sums over a thread's elements, a quarter of the tile apart.
template <class T>
GMM_INLINE void project_quarters(const gmm_step_arguments& a, const NoiseTile<T>& tile, uint32_t thread,
                                 int64_t first_column, Columns<T>& columns) {
  GMM_NO_UNROLL
  for (uint32_t c = 0; c < sum_columns; ++c) {
    const int64_t k = first_column + c;
    if (k >= a.mixture.components) break;
    const T* row = tile.offsets + k * a.elements;
    columns.quarters[c][thread] = sum_four([&](int j) {
      const uint32_t i = thread + block_threads * j;
      return i < tile.count ? OneLane<T>::Lanes::mul(global(row)[i], static_cast<T>(tile.noise[i])) : T(0);
    });
  }
}

template <class T>
GMM_INLINE void write_projections(const SumRows& rows, const NoiseTile<T>& tile, uint32_t thread, int64_t first_column,
                                  const Columns<T>& columns) {
  const int64_t column = first_column + thread;
  if (thread >= sum_columns || column >= rows.columns) return;
  sums_of<T>(rows, tile.sample)[tile.number * rows.columns + column] = sum_of_sixteenths(columns.sixteenths, thread);
}

// ---- what the offsets are multiplied with: a sample, after the tree ----

template <class T>
struct Pulls {
  T of[GMM_MAX_COMPONENTS];
  int64_t component;
  bool removes;
};

// The first warp.
template <class T>
GMM_INLINE void gather_pulls(const gmm_step_arguments& a, int64_t sample, uint32_t lane, Pulls<T>& pulls) {
  const bool removes = removing_row<T>(a, sample) != nullptr;
  int64_t component = 0;
  if (removes && a.mixture.components > 1) {
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
    const uint32_t step = static_cast<uint32_t>(index_at(a.step, sample));
    component = draw_component(a.mixture, index_at(a.row, sample), keys, step, lane);
  }
  if (lane != 0) return;
  pulls.removes = removes;
  pulls.component = component;
}

template <class T>
GMM_INLINE const T* basis_of(const gmm_mixture& m, int64_t row) {
  return static_cast<const T*>(m.basis) + table_row(m.basis_rows, row) * m.directions * m.components;
}

// Then every thread: directions, and after a barrier components.
template <class T>
GMM_INLINE void find_pulls(const gmm_step_arguments& a, const SumRows& rows, int64_t sample, uint32_t thread,
                           Pulls<T>& pulls) {
  const gmm_mixture& m = a.mixture;
  const int64_t row = index_at(a.row, sample);
  const int64_t entry =
      table_row(m.shrinkage_rows, row) * m.shrinkage_components + (m.shrinkage_components == 1 ? 0 : pulls.component);
  const T* shrinkage = static_cast<const T*>(m.shrinkage) + entry * m.directions;
  const T* projections = sums_of<T>(rows, sample);
  for (int64_t r = thread; r < m.directions; r += block_threads) {
    pulls.of[r] = pull_along(basis_of<T>(m, row) + r * m.components, projections, m.components, shrinkage[r]);
  }
}

template <class T>
GMM_INLINE void weigh_offsets(const gmm_step_arguments& a, const SumRows& rows, int64_t sample, uint32_t thread,
                              const Pulls<T>& pulls) {
  const gmm_mixture& m = a.mixture;
  const int64_t row = index_at(a.row, sample);
  T* weights = sums_of<T>(rows, sample) + rows.tiles * rows.columns;
  for (int64_t k = thread; k < m.components; k += block_threads) {
    const T own = k == pulls.component ? static_cast<const Row<T>*>(a.coefficients)[row].offset : T(0);
    weights[k] = offset_weight(basis_of<T>(m, row) + k, pulls.of, m.components, m.directions, own);
  }
}

// ---- the step ----

// What is added last: nothing where `weights` is nullptr.
template <class T>
struct LastOffsets {
  const T* weights;
  const T* offsets;  // at the tile's first element
};

// The first thread, once the tile is gathered: what is added last is not added before.
template <class T>
GMM_INLINE void gather_last(const gmm_step_arguments& a, StepTile<T>& tile, LastOffsets<T>& last) {
  last.weights = nullptr;
  if (tile.kind == TileKind::nothing || tile.kind == TileKind::invalid) return;
  if (removing_row<T>(a, tile.sample) == nullptr) return;
  const int64_t entries = GMM_SUM_ENTRIES(a.elements);
  last.weights = static_cast<const T*>(a.workspace) + (tile.sample * entries + entries - 1) * a.mixture.components;
  last.offsets = offsets_of_sample<T>(a, tile.sample) + tile.first;
  tile.offset = nullptr;
}

template <class T>
GMM_INLINE void step_in_directions(const gmm_step_arguments& a, const StepTile<T>& tile, const LastOffsets<T>& last,
                                   uint32_t thread) {
  constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  step_any(a, tile, thread, [&](uint32_t i, T(&y)[4]) {
    if (last.weights == nullptr) return;
    for (int64_t k = 0; k < a.mixture.components; ++k) {
      T offset[4];
      load_four(last.offsets + k * a.elements, table_dtype, i, tile.count, offset);
      for (int j = 0; j < 4; ++j) y[j] = LanesOf<T>::type::fma(last.weights[k], offset[j], y[j]);
    }
  });
}

}  // namespace gmmkernel
