// The bodies of the kernels of exact moment matching on the host: what launch_step runs with directions.
#pragma once

#include "cuda/low_rank_body.h"
#include "emulated_backward.h"

namespace gmmkernel {

template <class T>
void emulate_directions(const gmm_step_arguments& a, int multiprocessors) {
  const SumRows rows = sum_rows(a.workspace, a, a.mixture.components);
  for_blocks(a.batch, {a.elements, sum_tile}, [&](const Place& place) {
    auto tile = uncleared<NoiseTile<T>>();
    auto columns = uncleared<Columns<T>>();
    gather_noise(a, place, tile);
    if (tile.offsets == nullptr) return;
    for_threads([&](uint32_t t) { draw_noise(tile, t); });
    for (int64_t column = 0; column < rows.columns; column += sum_columns) {
      for_threads([&](uint32_t t) { project_quarters(a, tile, t, column, columns); });
      for_threads([&](uint32_t t) { sum_to_sixteenths(t, columns); });
      for_threads([&](uint32_t t) { write_projections(rows, tile, t, column, columns); });
    }
  });
  emulate_sums<T>(rows);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    auto pulls = uncleared<Pulls<T>>();
    gather_pulls(a, sample, 0, pulls);
    if (!pulls.removes) continue;
    for_threads([&](uint32_t t) { find_pulls(a, rows, sample, t, pulls); });
    for_threads([&](uint32_t t) { weigh_offsets(a, rows, sample, t, pulls); });
  }
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a.sample.dtype), multiprocessors);
  for_blocks(a.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<StepTile<T>>();
    auto last = uncleared<LastOffsets<T>>();
    gather<any_dtype>(a, tiling, place, tile);
    gather_last(a, tile, last);
    for_threads([&](uint32_t t) { step_in_directions(a, tile, last, t); });
  });
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
