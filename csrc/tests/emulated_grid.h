// The CUDA kernels' bodies on the host: every block of the grid, every thread of a block, one after another.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/noise_body.h"
#include "cuda/step_body.h"

namespace gmmkernel {

// The sum of `count` numbers, `stride` apart, in the fixed order.
template <class T>
T tree_plainly(const T* numbers, int64_t count, int64_t stride) {
  if (count == 0) return 0;
  std::vector<T> level(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) level[static_cast<size_t>(i)] = numbers[i * stride];
  while (level.size() > 1) {
    std::vector<T> above;
    for (size_t first = 0; first < level.size(); first += sum_tile) {
      std::vector<T> tile(sum_tile, T(0));
      for (size_t i = first; i < level.size() && i < first + sum_tile; ++i) tile[i - first] = level[i];
      for (size_t width = sum_tile / 2; width > 0; width /= 2) {
        for (size_t i = 0; i < width; ++i) tile[i] += tile[i + width];
      }
      above.push_back(tile[0]);
    }
    level = above;
  }
  return level[0];
}

// Call body(place) for one thread of every block, in the grid that a launch would have; nothing for blocks without a
// sample.
template <class Body>
void for_blocks(int64_t batch, const Tiling& tiling, Body&& body) {
  const int64_t tiles = tiles_of(tiling);
  for (uint32_t z = 0; z <= static_cast<uint32_t>((batch - 1) / largest_grid_y); ++z) {
    for (uint32_t y = 0; y < largest_grid_y; ++y) {
      for (uint32_t tile = 0; tile < tiles; ++tile) {
        const Place place = {tile, y, z, 0};
        if (place.sample() >= batch) return;
        body(place);
      }
    }
  }
}

template <bool more, int32_t sample_dtype, int32_t output_dtype, class T, class Body>
void emulate_blocks(const gmm_step_arguments& a, const Tiling& tiling, Body&& body) {
  for_blocks(a.batch, tiling, [&](const Place& place) {
    StepTile<T> tile;
    std::memset(static_cast<void*>(&tile), 0xA5, sizeof tile);  // shared memory is not cleared either
    gather<more, sample_dtype, output_dtype>(a, tiling, place, tile);
    for (uint32_t thread = 0; thread < tiling.threads; ++thread) body(tile, thread);
  });
}

template <int32_t sample_dtype, int32_t output_dtype>
void emulate_typed(const gmm_step_arguments& a, const Tiling& tiling, Types<sample_dtype, output_dtype>) {
  if constexpr (sample_dtype == output_dtype) {
    if (is_plain(a)) {
      return emulate_blocks<false, sample_dtype, output_dtype, float>(
          a, tiling, [&](const auto& tile, uint32_t thread) { step_plain<sample_dtype>(a, tile, thread); });
    }
  }
  emulate_blocks<true, sample_dtype, output_dtype, float>(
      a, tiling, [&](const auto& tile, uint32_t thread) { step_typed<sample_dtype, output_dtype>(a, tile, thread); });
}

template <class T>
void emulate_any(const gmm_step_arguments& a, const Tiling& tiling) {
  emulate_blocks<true, any_dtype, any_dtype, T>(a, tiling,
                                                [&](const auto& tile, uint32_t thread) { step_any(a, tile, thread); });
}

template <class T>
void emulate_scored(const gmm_step_arguments& a) {
  const SumRows rows = sum_rows(a.workspace, a, 1);
  for_blocks(a.batch, {a.elements, sum_tile}, [&](const Place& place) {
    StepTile<T> tile;
    DensitySum<T> sum;
    std::memset(static_cast<void*>(&tile), 0xA5, sizeof tile);
    gather<true, any_dtype, any_dtype>(a, {a.elements, sum_tile}, place, tile);
    for (uint32_t t = 0; t < block_threads; ++t) step_scored(a, tile, t, sum);
    for (uint32_t t = 0; t < block_threads; ++t) sum_terms(t, sum);
    for (uint32_t t = 0; t < block_threads; ++t) sum_quarters(t, sum);
    write_sum(rows, tile, 0, sum);
  });
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const T base = tree_plainly(static_cast<T*>(a.workspace) + sample * rows.entries, rows.tiles, 1);
    static_cast<T*>(a.log_prob)[sample] = log_density(base, a.elements);
  }
}

// What launch_step runs on a device with so many multiprocessors.
inline void emulate_step(const gmm_step_arguments& a, int multiprocessors) {
  if (a.batch == 0) return;
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a), multiprocessors);
  const bool wide = a.sample.dtype == GMM_FLOAT64;
  if (a.log_prob != nullptr) {
    wide ? emulate_scored<double>(a) : emulate_scored<float>(a);
  } else if (is_typed(a)) {
    with_types(a.sample.dtype, a.model_output.dtype, [&](auto types) { emulate_typed(a, tiling, types); });
  } else {
    wide ? emulate_any<double>(a, tiling) : emulate_any<float>(a, tiling);
  }
}

inline void emulate_standard_normal(const gmm_normal_arguments& a, int multiprocessors) {
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a.result.dtype), multiprocessors);
  for_blocks(a.batch, tiling, [&](Place place) {
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[place.sample()]));
    for (place.thread = 0; place.thread < tiling.threads; ++place.thread) {
      if (!is_common(a)) {
        standard_normal_any(a, tiling, place, keys);
      } else if (a.result.dtype == GMM_BFLOAT16) {
        standard_normal_common<GMM_BFLOAT16>(a, tiling, place, keys);
      } else if (a.result.dtype == GMM_FLOAT16) {
        standard_normal_common<GMM_FLOAT16>(a, tiling, place, keys);
      } else {
        standard_normal_common<GMM_FLOAT32>(a, tiling, place, keys);
      }
    }
  });
}

}  // namespace gmmkernel
