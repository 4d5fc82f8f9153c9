// The CUDA kernels' bodies on the host: every block of the grid, every thread of a block, one after another.
#pragma once

#include <cstring>

#include "cuda/noise_body.h"
#include "cuda/step_body.h"

namespace gmmkernel {

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

template <int32_t dtype, class T, class Body>
void emulate_blocks(const gmm_step_arguments& a, const Tiling& tiling, Body&& body) {
  for_blocks(a.batch, tiling, [&](const Place& place) {
    StepTile<T> tile;
    std::memset(static_cast<void*>(&tile), 0xA5, sizeof tile);  // shared memory is not cleared either
    gather<dtype>(a, tiling, place, tile);
    for (uint32_t thread = 0; thread < block_threads; ++thread) body(tile, thread);
  });
}

template <int32_t dtype>
void emulate_common(const gmm_step_arguments& a, const Tiling& tiling) {
  emulate_blocks<dtype, float>(a, tiling, [&](const StepTile<float>& tile, uint32_t thread) {
    if (a.model_output_uncond.data != nullptr) {
      step_common<dtype, true>(a, tile, thread);
    } else {
      step_common<dtype, false>(a, tile, thread);
    }
  });
}

// What launch_step runs on a device with so many multiprocessors.
inline void emulate_step(const gmm_step_arguments& a, int multiprocessors) {
  if (a.batch == 0) return;
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a.sample.dtype), multiprocessors);
  if (!is_common(a)) {
    if (a.sample.dtype == GMM_FLOAT64) {
      emulate_blocks<any_dtype, double>(a, tiling,
                                        [&](const auto& tile, uint32_t thread) { step_any(a, tile, thread); });
    } else {
      emulate_blocks<any_dtype, float>(a, tiling,
                                       [&](const auto& tile, uint32_t thread) { step_any(a, tile, thread); });
    }
  } else if (a.sample.dtype == GMM_BFLOAT16) {
    emulate_common<GMM_BFLOAT16>(a, tiling);
  } else if (a.sample.dtype == GMM_FLOAT16) {
    emulate_common<GMM_FLOAT16>(a, tiling);
  } else {
    emulate_common<GMM_FLOAT32>(a, tiling);
  }
}

inline void emulate_standard_normal(const gmm_normal_arguments& a, int multiprocessors) {
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a.result.dtype), multiprocessors);
  for_blocks(a.batch, tiling, [&](Place place) {
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[place.sample()]));
    for (place.thread = 0; place.thread < block_threads; ++place.thread) {
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
