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
void for_threads(const Tiling& tiling, Body&& body) {
  for (uint32_t thread = 0; thread < tiling.threads; ++thread) body(thread);
}

template <class Body>
void for_threads(Body&& body) {
  for (uint32_t thread = 0; thread < block_threads; ++thread) body(thread);
}

template <bool more, int32_t sample_dtype, int32_t output_dtype, class T, class Body>
void emulate_backward_blocks(const gmm_step_backward_arguments& b, const Tiling& tiling, Body&& body) {
  for_blocks(b.step.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<BackwardTile<T>>();
    gather<more, sample_dtype, output_dtype, false>(b, tiling, place, tile);
    for_threads(tiling, [&](uint32_t thread) { body(tile, thread); });
  });
}

template <int32_t sample_dtype, int32_t output_dtype>
void emulate_backward_typed(const gmm_step_backward_arguments& b, const Tiling& tiling,
                            Types<sample_dtype, output_dtype>) {
  if constexpr (sample_dtype == output_dtype) {
    if (is_plain(b)) {
      return emulate_backward_blocks<false, sample_dtype, output_dtype, float>(
          b, tiling, [&](const auto& tile, uint32_t thread) { backward_plain<sample_dtype>(b, tile, thread); });
    }
  }
  emulate_backward_blocks<true, sample_dtype, output_dtype, float>(b, tiling, [&](const auto& tile, uint32_t thread) {
    backward_typed<sample_dtype, output_dtype>(b, tile, thread);
  });
}

template <class T>
void emulate_backward_sums(const gmm_step_backward_arguments& b, const SumRows& rows) {
  const Tiling tiling = {b.step.elements, sum_tile};
  for_blocks(b.step.batch, tiling, [&](const Place& place) {
    auto tile = uncleared<BackwardTile<T>>();
    auto sums = uncleared<BackwardSums<T>>();
    gather<true, any_dtype, any_dtype, true>(b, tiling, place, tile);
    for_threads([&](uint32_t thread) { draw_noise(tile, thread, sums); });
    for_threads([&](uint32_t thread) { backward_sums(b, tile, thread, sums); });
    for_threads([&](uint32_t thread) { sum_to_sixteenths(thread, sums.columns); });
    for_threads([&](uint32_t thread) { write_sums(rows, tile, thread, sums.columns); });
  });
}

// Blocks go from last to first: they may run in any order.
template <class T>
void emulate_sums(const SumRows& rows) {
  for (SumLevel level = {rows.tiles, 1}; level.count > 1; level = above(level)) {
    for (int64_t sample = rows.batch - 1; sample >= 0; --sample) {
      for (int64_t tile = tiles_of(tiling_of(level)) - 1; tile >= 0; --tile) {
        for (uint32_t column = 0; column < rows.columns; column += sum_columns) {
          T sixteenths[16][sum_columns];
          const int64_t first = tile * sum_tile;
          for_threads([&](uint32_t t) { sum_level_part(rows, level, sample, first, column, t, sixteenths); });
          for_threads([&](uint32_t t) { sum_level_whole(rows, level, sample, first, column, t, sixteenths); });
        }
      }
    }
  }
}

template <class T>
void emulate_coefficients(const gmm_step_backward_arguments& b, const SumRows& rows) {
  emulate_sums<T>(rows);
  const int64_t numbers = b.step.coefficient_rows * row_columns;
  const int64_t threads = (numbers + block_threads - 1) / block_threads * block_threads;
  for (int64_t n = 0; n < threads; ++n) add_samples<T>(b, rows, n);
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
  if (b.grad_coefficients != nullptr) {
    const SumRows rows = sum_rows(b.workspace, a, row_columns);
    if (a.batch > 0) emulate_backward_sums<T>(b, rows);
    emulate_coefficients<T>(b, rows);
  } else if (a.batch > 0 && writes_samples(b)) {
    const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(b, a), multiprocessors);
    if (is_typed(b)) {
      with_types(a.sample.dtype, a.model_output.dtype, [&](auto types) { emulate_backward_typed(b, tiling, types); });
    } else {
      emulate_backward_blocks<true, any_dtype, any_dtype, T>(
          b, tiling, [&](const auto& tile, uint32_t thread) { backward_any(b, tile, thread); });
    }
  }
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
