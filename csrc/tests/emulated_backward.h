// The bodies of the gradients' kernels on the host, in the manner of emulated_grid.h: what launch_step_backward runs.
#pragma once

#include <vector>

#include "cuda/backward_body.h"
#include "cuda/tables_body.h"
#include "emulated_grid.h"

namespace gmmkernel {

// A block's shared memory, which is not cleared either.
template <class Shared>
Shared uncleared() {
  Shared shared;
  std::memset(static_cast<void*>(&shared), 0xA5, sizeof shared);
  return shared;
}

template <class Body>
void for_threads(Body&& body) {
  for (uint32_t thread = 0; thread < block_threads; ++thread) body(thread);
}

template <int32_t dtype>
void emulate_backward_common(const gmm_step_backward_arguments& b, const Tiling& tiling) {
  for_blocks(b.step.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<BackwardTile<float>>();
    gather<dtype, false>(b, tiling, place, tile);
    for_threads([&](uint32_t thread) {
      if (b.step.model_output_uncond.data != nullptr) {
        backward_common<dtype, true>(b, tile, thread);
      } else {
        backward_common<dtype, false>(b, tile, thread);
      }
    });
  });
}

template <class T>
void emulate_backward_any(const gmm_step_backward_arguments& b, const Tiling& tiling) {
  for_blocks(b.step.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<BackwardTile<T>>();
    gather<any_dtype, false>(b, tiling, place, tile);
    for_threads([&](uint32_t thread) { backward_any(b, tile, thread); });
  });
}

template <class T>
void emulate_backward_sums(const gmm_step_backward_arguments& b, const Tiling& tiling) {
  for_blocks(b.step.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<BackwardTile<T>>();
    auto sums = uncleared<BackwardSums<T>>();
    gather<any_dtype, true>(b, tiling, place, tile);
    for_threads([&](uint32_t thread) { draw_noise(tile, thread, sums); });
    for_threads([&](uint32_t thread) { sum_quarters(b, tile, thread, sums); });
    for_threads([&](uint32_t thread) { sum_sixteenths_of_tile(thread, sums); });
    for_threads([&](uint32_t thread) { write_sums(b, tile, thread, sums); });
  });
}

// Blocks go from last to first: they may run in any order.
template <class T>
void emulate_sums(const gmm_step_backward_arguments& b) {
  for (SumLevel level = first_level(b); b.step.batch > 0 && level.count > 1; level = above(level)) {
    for (int64_t sample = b.step.batch - 1; sample >= 0; --sample) {
      for (int64_t tile = tiles_of(tiling_of(level)) - 1; tile >= 0; --tile) {
        auto sixteenths = uncleared<Sixteenths<T>>();
        T* rows = sums_of<T>(b, sample);
        const auto number = static_cast<uint32_t>(tile);
        for_threads([&](uint32_t thread) { sum_level_part(rows, level, number, thread, sixteenths); });
        for_threads([&](uint32_t thread) { sum_level_whole(rows, level, number, thread, sixteenths); });
      }
    }
  }
  const int64_t numbers = b.step.coefficient_rows * row_columns;
  for (int64_t n = 0; n < (numbers + block_threads - 1) / block_threads * block_threads; ++n) add_samples<T>(b, n);
}

template <class T, bool noise>
void emulate_entries(const gmm_step_backward_arguments& b, const Table& table) {
  if (table.data == nullptr || table.elements == 0) return;
  const Tiling tiling = {table.elements, 4 * block_threads};
  for_blocks(table.rows * table.of_row, tiling, [&](const Place& place) {
    const int64_t entry = place.sample(), first = place.first(tiling);
    const uint32_t count = place.count(tiling);
    struct Sum {
      T of[4] = {};
    };
    std::vector<Sum> sums(block_threads);
    auto users = uncleared<Users<T>>();
    for (int64_t sample = 0; sample < b.step.batch; sample += block_threads) {
      for_threads([&](uint32_t thread) { find_user(b.step, table, entry, sample, thread, users); });
      for_threads(
          [&](uint32_t thread) { add_users<T, noise>(b, users, sample, first, 4 * thread, count, sums[thread].of); });
    }
    for_threads([&](uint32_t thread) { write_entry(table, entry, first, 4 * thread, count, sums[thread].of); });
  });
}

template <class T>
void emulate_backward_of(const gmm_step_backward_arguments& b, int multiprocessors) {
  const gmm_step_arguments& a = b.step;
  if (a.batch > 0 && writes_samples(b)) {
    const Tiling tiling = tiling_of(b, multiprocessors);
    if (b.grad_coefficients != nullptr) {
      emulate_backward_sums<T>(b, tiling);
    } else if (!is_common(b)) {
      emulate_backward_any<T>(b, tiling);
    } else if (a.sample.dtype == GMM_BFLOAT16) {
      emulate_backward_common<GMM_BFLOAT16>(b, tiling);
    } else if (a.sample.dtype == GMM_FLOAT16) {
      emulate_backward_common<GMM_FLOAT16>(b, tiling);
    } else {
      emulate_backward_common<GMM_FLOAT32>(b, tiling);
    }
  }
  if (b.grad_coefficients != nullptr) emulate_sums<T>(b);
  emulate_entries<T, false>(b, offsets_of(b));
  emulate_entries<T, true>(b, std_of(b));
}

inline void emulate_step_backward(const gmm_step_backward_arguments& given, int multiprocessors) {
  gmm_step_backward_arguments b = given;
  if (b.step.elements == 0) b.step.batch = 0;
  if (b.step.sample.dtype == GMM_FLOAT64) {
    emulate_backward_of<double>(b, multiprocessors);
  } else {
    emulate_backward_of<float>(b, multiprocessors);
  }
}

}  // namespace gmmkernel
