// The bodies of the kernels of exact moment matching: the noise's projections on the offsets, what the offsets are
// multiplied with, and the step with these. Noise is drawn twice, which costs no memory traffic. The offsets are what
// is read most: K of them for each element, twice. So blocks work on a few samples at once.
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

// ---- samples whose tiles a block has at once: offsets that they share are loaded once for all of them ----

constexpr uint32_t samples_together = 4;

inline int64_t groups_of(int64_t batch) { return (batch + samples_together - 1) / samples_together; }

// The place of one sample of a group, for one of the threads that gather; beyond the batch where there is none.
GMM_INLINE Place place_in_group(const Place& group, uint32_t s, uint32_t lane) {
  const int64_t sample = group.sample() * samples_together + s;
  return {group.tile, static_cast<uint32_t>(sample % largest_grid_y), static_cast<uint32_t>(sample / largest_grid_y),
          lane};
}

// ---- projections: tiles of 1024 elements ----

template <class T>
struct NoiseTiles {
  PhiloxKeys keys[samples_together];
  uint32_t steps[samples_together];
  const T* offsets[samples_together];  // at the tile's first element; nullptr: nothing to do
  uint32_t block_low, block_high;
  uint32_t count;  // elements of the tile
};

// One thread for each sample.
template <class T>
GMM_INLINE void gather_noise(const gmm_step_arguments& a, const Place& place, uint32_t s, NoiseTiles<T>& tiles) {
  const Tiling tiling = {a.elements, sum_tile};
  const int64_t sample = place_in_group(place, s, 0).sample(), first = place.first(tiling);
  if (s == 0) {
    const uint64_t block = static_cast<uint64_t>(first) / 4;
    tiles.block_low = static_cast<uint32_t>(block);
    tiles.block_high = static_cast<uint32_t>(block >> 32);
    tiles.count = place.count(tiling);
  }
  tiles.offsets[s] = nullptr;
  if (sample >= a.batch || removing_row<T>(a, sample) == nullptr) return;
  tiles.keys[s] = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
  tiles.steps[s] = static_cast<uint32_t>(index_at(a.step, sample));
  tiles.offsets[s] = offsets_of_sample<T>(a, sample) + first;
}

// The tables of a group's samples, as far as there are any.
template <class T>
struct SharedRow {
  const T* row = nullptr;
  bool same = true;

  GMM_METHOD void take(const T* offsets) {
    if (offsets == nullptr) return;
    same = same && (row == nullptr || row == offsets);
    row = offsets;
  }
};

template <class T>
GMM_INLINE SharedRow<T> row_of(const NoiseTiles<T>& tiles) {
  SharedRow<T> shared;
  for (uint32_t s = 0; s < samples_together; ++s) shared.take(tiles.offsets[s]);
  return shared;
}

// Threads draw neighbours, and take elements a quarter of the tile apart; after that the memory is the columns'.
template <class T>
union NoiseOrColumns {
  float noise[samples_together][sum_tile];
  Columns<T> columns;
};

template <class T>
GMM_INLINE void draw_noise(const NoiseTiles<T>& tiles, uint32_t thread, float (&noise)[samples_together][sum_tile]) {
  GMM_NO_UNROLL
  for (uint32_t s = 0; s < samples_together; ++s) {
    if (tiles.offsets[s] == nullptr) continue;
    float z[4];
    draw_normals(tiles.keys[s], tiles.block_low + thread, tiles.block_high, tiles.steps[s], Stream::transition, z);
    for (int j = 0; j < 4; ++j) noise[s][4 * thread + j] = z[j];
  }
}

struct ThreadNoise {
  float of[samples_together][4];
};

// After a barrier, and with one behind it. Beyond the end of the tile, and of samples with nothing to do: zero.
template <class T>
GMM_INLINE void take_noise(const NoiseTiles<T>& tiles, uint32_t thread,
                           const float (&noise)[samples_together][sum_tile], ThreadNoise& taken) {
  for (uint32_t s = 0; s < samples_together; ++s) {
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t i = thread + block_threads * j;
      taken.of[s][j] = tiles.offsets[s] != nullptr && i < tiles.count ? noise[s][i] : 0;
    }
  }
}

constexpr uint32_t components_together = sum_columns / samples_together;

template <class T>
GMM_INLINE void load_quarters(const T* row, uint32_t thread, uint32_t count, T (&offset)[4]) {
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t i = thread + block_threads * j;
    offset[j] = i < count ? global(row)[i] : T(0);
  }
}

template <class T>
GMM_INLINE T project_quarters(const T (&offset)[4], const float (&noise)[4]) {
  return sum_four([&](int j) { return OneLane<T>::Lanes::mul(offset[j], static_cast<T>(noise[j])); });
}

// Column samples_together * c + s: component first + c of sample s, summed over a thread's elements.
template <class T>
GMM_INLINE void project(const gmm_step_arguments& a, const NoiseTiles<T>& tiles, const SharedRow<T>& shared,
                        uint32_t thread, const ThreadNoise& noise, int64_t first, Columns<T>& columns) {
  const int64_t left = a.mixture.components - first;
  if (shared.same) {
    T offset[components_together][4];
    for (uint32_t c = 0; c < components_together; ++c) {
      load_quarters(shared.row + (first + c) * a.elements, thread, c < left ? tiles.count : 0, offset[c]);
    }
    for (uint32_t c = 0; c < components_together; ++c) {
      for (uint32_t s = 0; s < samples_together; ++s) {
        columns.quarters[samples_together * c + s][thread] = project_quarters(offset[c], noise.of[s]);
      }
    }
    return;
  }
  GMM_UNROLL(4)
  for (uint32_t s = 0; s < samples_together; ++s) {
    if (tiles.offsets[s] == nullptr) continue;
    GMM_NO_UNROLL
    for (uint32_t c = 0; c < components_together && c < left; ++c) {
      T offset[4];
      load_quarters(tiles.offsets[s] + (first + c) * a.elements, thread, tiles.count, offset);
      columns.quarters[samples_together * c + s][thread] = project_quarters(offset, noise.of[s]);
    }
  }
}

template <class T>
GMM_INLINE void write_projections(const SumRows& rows, const NoiseTiles<T>& tiles, const Place& place, int64_t first,
                                  const Columns<T>& columns) {
  const uint32_t s = place.thread % samples_together;
  const int64_t component = first + place.thread / samples_together;
  if (place.thread >= sum_columns || component >= rows.columns || tiles.offsets[s] == nullptr) return;
  sums_of<T>(rows, place_in_group(place, s, 0).sample())[place.tile * rows.columns + component] =
      sum_of_sixteenths(columns.sixteenths, place.thread);
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
      table_row(m.std_delta_rows, row) * m.std_delta_components + (m.std_delta_components == 1 ? 0 : pulls.component);
  const T* std_delta = static_cast<const T*>(m.std_delta) + entry * m.directions;
  const T* projections = sums_of<T>(rows, sample);
  for (int64_t r = thread; r < m.directions; r += block_threads) {
    pulls.of[r] = pull_along(basis_of<T>(m, row) + r * m.components, projections, m.components, std_delta[r]);
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

// ---- any step: a sample's tile a block ----

// What is added last: nothing where `weights` is nullptr.
template <class T>
struct LastOffsets {
  const T* weights;
  const T* offsets;  // at the tile's first element
};

// The thread that gathered the tile: what is added last is not added before.
template <class T>
GMM_INLINE LastOffsets<T> gather_last(const gmm_step_arguments& a, StepTile<T>& tile) {
  if (tile.kind == TileKind::nothing || tile.kind == TileKind::invalid) return {};
  if (removing_row<T>(a, tile.sample) == nullptr) return {};
  const int64_t entries = GMM_SUM_ENTRIES(a.elements);
  tile.offset = nullptr;
  return {static_cast<const T*>(a.workspace) + (tile.sample * entries + entries - 1) * a.mixture.components,
          offsets_of_sample<T>(a, tile.sample) + tile.first};
}

template <class T>
GMM_INLINE void step_in_directions_any(const gmm_step_arguments& a, const StepTile<T>& tile, const LastOffsets<T>& last,
                                       uint32_t thread) {
  constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  step_any(a, tile, thread, [&](uint32_t i, T(&y)[4]) {
    if (last.weights == nullptr) return;
    for (int64_t k = 0; k < a.mixture.components; ++k) {
      T offset[4];
      load_four(last.offsets + k * a.elements, table_dtype, i, tile.count, offset);
      for (int j = 0; j < 4; ++j) y[j] = LanesOf<T>::type::fma(global(last.weights)[k], offset[j], y[j]);
    }
  });
}

// ---- the common steps: a tile of each sample of a group a block ----

struct alignas(16) GroupWeights {
  float of[samples_together];
};

struct StepTiles {
  StepTile<float> of[samples_together];
  LastOffsets<float> last[samples_together];
  GroupWeights weights[GMM_MAX_COMPONENTS];
};

// A warp for each sample.
template <int32_t dtype>
GMM_INLINE void gather_in_group(const gmm_step_arguments& a, const Tiling& tiling, const Place& group, uint32_t s,
                                uint32_t lane, StepTiles& tiles) {
  gather<dtype>(a, tiling, place_in_group(group, s, lane), tiles.of[s]);
  if (lane == 0) tiles.last[s] = gather_last(a, tiles.of[s]);
}

// After a barrier, and with one behind it, every thread.
GMM_INLINE void take_weights(const gmm_step_arguments& a, uint32_t thread, StepTiles& tiles) {
  for (int64_t k = thread; k < a.mixture.components; k += block_threads) {
    for (uint32_t s = 0; s < samples_together; ++s) {
      const float* weights = tiles.last[s].weights;
      if (weights != nullptr) tiles.weights[k].of[s] = global(weights)[k];
    }
  }
}

GMM_INLINE bool is_stepped(const StepTile<float>& tile) {
  return tile.kind != TileKind::nothing && tile.kind != TileKind::invalid;
}

// The table of the samples of a group if all that are stepped take what they add last from the same one.
GMM_INLINE SharedRow<float> row_of(const StepTiles& tiles) {
  SharedRow<float> shared;
  for (uint32_t s = 0; s < samples_together; ++s) {
    if (!is_stepped(tiles.of[s])) continue;
    shared.same = shared.same && tiles.last[s].weights != nullptr;
    shared.take(tiles.last[s].offsets);
  }
  return shared;
}

// Add all offsets, each times its weight, to n elements of a sample or of all of a group: those of the others count
// for nothing.
template <uint32_t n>
GMM_INLINE void add_offsets(const gmm_step_arguments& a, const StepTiles& tiles, uint32_t s, uint32_t i,
                            float (&y)[n]) {
  const float* row = tiles.last[s].offsets;
  GMM_NO_UNROLL
  for (int64_t k = 0; k < a.mixture.components; ++k, row += a.elements) {
    float offset[n];
    load_table<n>(row, i, offset);
    for (uint32_t j = 0; j < n; ++j) y[j] = CudaLanes::fma(tiles.weights[k].of[s], offset[j], y[j]);
  }
}

template <uint32_t n, uint32_t rows>
GMM_INLINE void add_shared_rows(const float* row, int64_t elements, const GroupWeights* weights, uint32_t i,
                                float (&y)[samples_together][n]) {
  float offset[rows][n];
  GMM_UNROLL(4)
  for (uint32_t k = 0; k < rows; ++k) load_table<n>(row + k * elements, i, offset[k]);
  GMM_UNROLL(4)
  for (uint32_t k = 0; k < rows; ++k) {
    const GroupWeights weight = weights[k];
    for (uint32_t s = 0; s < samples_together; ++s) {
      for (uint32_t j = 0; j < n; ++j) y[s][j] = CudaLanes::fma(weight.of[s], offset[k][j], y[s][j]);
    }
  }
}

template <uint32_t n>
GMM_INLINE void add_shared_offsets(const gmm_step_arguments& a, const float* row, const GroupWeights* weights,
                                   uint32_t i, float (&y)[samples_together][n]) {
  constexpr uint32_t rows = 16 / n;
  const uint32_t components = static_cast<uint32_t>(a.mixture.components);
  uint32_t k = 0;
  GMM_NO_UNROLL
  for (; k + rows <= components; k += rows, row += rows * a.elements) {
    add_shared_rows<n, rows>(row, a.elements, weights + k, i, y);
  }
  GMM_NO_UNROLL
  for (; k < components; ++k, row += a.elements) add_shared_rows<n, 1>(row, a.elements, weights + k, i, y);
}

// What four samples need would not stay in registers from one vector to the next without spills.
GMM_INLINE void forget_shared_memory() {
#if defined(__CUDA_ARCH__)
  asm volatile("" ::: "memory");
#endif
}

template <int32_t dtype, bool guided>
GMM_INLINE void step_in_directions_common(const gmm_step_arguments& a, const StepTiles& tiles, uint32_t thread) {
  constexpr uint32_t n = Format<dtype>::count;
  if (tiles.of[0].kind == TileKind::nothing) return;
  GMM_NO_UNROLL
  for (uint32_t s = 0; s < samples_together; ++s) {
    if (tiles.of[s].kind == TileKind::invalid) fill_with_nan(a, tiles.of[s], thread);
  }
  const SharedRow<float> shared = row_of(tiles);
  GMM_NO_UNROLL
  for (uint32_t i = n * thread; i < tiles.of[0].count; i += n * block_threads) {
    VectorInputs inputs[samples_together] = {};
    float y[samples_together][n];
    GMM_UNROLL(4)
    for (uint32_t s = 0; s < samples_together; ++s) {
      if (is_stepped(tiles.of[s])) inputs[s] = load_inputs<dtype, guided>(tiles.of[s], i);
    }
    GMM_UNROLL(4)
    for (uint32_t s = 0; s < samples_together; ++s) {
      forget_shared_memory();
      for (uint32_t j = 0; j < n; ++j) y[s][j] = 0;
      if (is_stepped(tiles.of[s])) mixed_vector<dtype, guided, false>(tiles.of[s], inputs[s], i, y[s]);
    }
    if (shared.same) {
      if (shared.row != nullptr) add_shared_offsets(a, shared.row, tiles.weights, i, y);
    } else {
      GMM_UNROLL(4)
      for (uint32_t s = 0; s < samples_together; ++s) {
        if (tiles.last[s].weights != nullptr) add_offsets(a, tiles, s, i, y[s]);
      }
    }
    GMM_UNROLL(4)
    for (uint32_t s = 0; s < samples_together; ++s) {
      if (is_stepped(tiles.of[s])) store128<dtype>(tiles.of[s].result, i, Format<dtype>::pack(y[s]));
    }
  }
}

}  // namespace gmmkernel
