// The bodies of the kernels of exact moment matching on the host: what launch_step runs with directions.
#pragma once

#include "cuda/low_rank_body.h"
#include "emulated_backward.h"

namespace gmmkernel {

template <class T>
void emulate_projections(const gmm_step_arguments& a, const SumRows& rows) {
  for_blocks(groups_of(a.batch), {a.elements, sum_tile}, [&](Place place) {
    auto tiles = uncleared<NoiseTiles<T>>();
    auto memory = uncleared<NoiseOrColumns<T>>();
    std::vector<ThreadNoise> noise(block_threads);
    for (uint32_t s = 0; s < samples_together; ++s) gather_noise(a, place, s, tiles);
    const SharedRow<T> shared = row_of(tiles);
    if (shared.row == nullptr) return;
    for_threads([&](uint32_t t) { draw_noise(tiles, t, memory.noise); });
    for_threads([&](uint32_t t) { take_noise(tiles, t, memory.noise, noise[t]); });
    std::memset(static_cast<void*>(&memory), 0xA5, sizeof memory);
    for (int64_t first = 0; first < rows.columns; first += components_together) {
      for_threads([&](uint32_t t) { project(a, tiles, shared, t, noise[t], first, memory.columns); });
      for_threads([&](uint32_t t) { sum_to_sixteenths(t, memory.columns); });
      for (place.thread = 0; place.thread < block_threads; ++place.thread) {
        write_projections(rows, tiles, place, first, memory.columns);
      }
    }
  });
}

template <int32_t dtype>
void emulate_common_in_directions(const gmm_step_arguments& a, const Tiling& tiling) {
  for_blocks(groups_of(a.batch), tiling, [&](const Place& place) {
    auto tiles = uncleared<StepTiles>();
    for (uint32_t s = 0; s < samples_together; ++s) gather_in_group<dtype>(a, tiling, place, s, 0, tiles);
    for_threads([&](uint32_t t) { take_weights(a, t, tiles); });
    for_threads([&](uint32_t t) {
      if (a.model_output_uncond.data != nullptr) {
        step_in_directions_common<dtype, true>(a, tiles, t);
      } else {
        step_in_directions_common<dtype, false>(a, tiles, t);
      }
    });
  });
}

template <class T>
void emulate_any_in_directions(const gmm_step_arguments& a, const Tiling& tiling) {
  for_blocks(a.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<StepTile<T>>();
    gather<any_dtype>(a, tiling, place, tile);
    const LastOffsets<T> last = gather_last(a, tile);
    for_threads([&](uint32_t t) { step_in_directions_any(a, tile, last, t); });
  });
}

template <class T>
void emulate_directions(const gmm_step_arguments& a, int multiprocessors) {
  const SumRows rows = sum_rows(a.workspace, a, a.mixture.components);
  emulate_projections<T>(a, rows);
  emulate_sums<T>(rows);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    auto pulls = uncleared<Pulls<T>>();
    gather_pulls(a, sample, 0, pulls);
    if (!pulls.removes) continue;
    for_threads([&](uint32_t t) { find_pulls(a, rows, sample, t, pulls); });
    for_threads([&](uint32_t t) { weigh_offsets(a, rows, sample, t, pulls); });
  }
  const int64_t blocks = is_common(a) ? groups_of(a.batch) : a.batch;
  const Tiling tiling = tiling_of(blocks, a.elements, elements_per_pass(a, a.sample.dtype), multiprocessors);
  if (!is_common(a)) {
    emulate_any_in_directions<T>(a, tiling);
  } else if (a.sample.dtype == GMM_BFLOAT16) {
    emulate_common_in_directions<GMM_BFLOAT16>(a, tiling);
  } else if (a.sample.dtype == GMM_FLOAT16) {
    emulate_common_in_directions<GMM_FLOAT16>(a, tiling);
  } else {
    emulate_common_in_directions<GMM_FLOAT32>(a, tiling);
  }
}

inline void emulate_step_in_directions(const gmm_step_arguments& a, int multiprocessors) {
  if (a.batch == 0 || a.elements == 0) {
    emulate_step(a, multiprocessors);
  } else if (a.sample.dtype == GMM_FLOAT64) {
    emulate_directions<double>(a, multiprocessors);
  } else {
    emulate_directions<float>(a, multiprocessors);
  }
}

}  // namespace gmmkernel
