// Sums in the fixed order, by a block of threads at a time. Numbers a tile's half apart are added first, neighbours
// last; so of a number's place in its tile, the thread that holds it decides the lowest bits.
#pragma once

#include "cuda/operands.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {

// ---- four, sixteen and 64 numbers f(0), f(1), ..., halved until one is left ----

template <class F>
GMM_INLINE auto sum_four(F&& f) {
  return (f(0) + f(2)) + (f(1) + f(3));
}

template <class F>
GMM_INLINE auto sum_sixteen(F&& f) {
  return sum_four([&](int low) { return sum_four([&](int high) { return f(4 * high + low); }); });
}

template <class F>
GMM_INLINE auto sum_sixty_four(F&& f) {
  return sum_four([&](int low) { return sum_sixteen([&](int high) { return f(4 * high + low); }); });
}

// ---- sixteen columns at once ----

constexpr uint32_t sum_columns = 16;

// What is left of each column of a tile when its highest two bits are summed over, then when the lowest four are left.
template <class T>
struct Columns {
  T quarters[sum_columns][block_threads + 16];  // so that 16 threads' reads meet in no bank
  T sixteenths[16][sum_columns];
};

template <class T>
GMM_INLINE void sum_to_sixteenths(uint32_t thread, Columns<T>& columns) {
  const uint32_t column = thread / 16, i = thread % 16;
  columns.sixteenths[i][column] = sum_sixteen([&](int high) { return columns.quarters[column][16 * high + i]; });
}

template <class T>
GMM_INLINE T sum_of_sixteenths(const T (&sixteenths)[16][sum_columns], uint32_t column) {
  return sum_sixteen([&](int i) { return sixteenths[i][column]; });
}

template <class T>
GMM_INLINE T* sums_of(const SumRows& rows, int64_t sample) {
  return static_cast<T*>(rows.data) + sample * rows.entries * rows.columns;
}

// ---- the tree over a sample's tiles, a level a launch ----

// First, each thread its part of a tile of rows, in 16 columns from `column`.
template <class T>
GMM_INLINE void sum_level_part(const SumRows& rows, const SumLevel& level, int64_t sample, int64_t first,
                               uint32_t first_column, uint32_t thread, T (&sixteenths)[16][sum_columns]) {
  const uint32_t i = thread / sum_columns, column = first_column + thread % sum_columns;
  const T* sums = sums_of<T>(rows, sample);
  sixteenths[i][thread % sum_columns] = sum_sixty_four([&](int high) {
    const int64_t row = first + 16 * high + i;
    return row < level.count && column < rows.columns ? sums[row * level.stride * rows.columns + column] : T(0);
  });
}

// Then, the first 16 threads the tile's sums, into its first row: no other block reads or writes that.
template <class T>
GMM_INLINE void sum_level_whole(const SumRows& rows, const SumLevel& level, int64_t sample, int64_t first,
                                uint32_t first_column, uint32_t thread, const T (&sixteenths)[16][sum_columns]) {
  const uint32_t column = first_column + thread;
  if (thread >= sum_columns || column >= rows.columns) return;
  sums_of<T>(rows, sample)[first * level.stride * rows.columns + column] = sum_of_sixteenths(sixteenths, thread);
}

// ---- the gradients of coefficients ----

// One number of them: the samples that took its row, in their order.
template <class T>
GMM_INLINE void add_samples(const gmm_step_backward_arguments& b, const SumRows& rows, int64_t number) {
  const gmm_step_arguments& a = b.step;
  if (number >= a.coefficient_rows * row_columns) return;
  const int64_t row = number / row_columns, column = number % row_columns;
  T sum = 0;
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const bool valid = is_step(index_at(a.step, sample)) && index_at(a.first_element, sample) >= 0;
    if (index_at(a.row, sample) == row && valid) sum += sums_of<T>(rows, sample)[column];
  }
  static_cast<T*>(b.grad_coefficients)[number] = sum;
}

}  // namespace gmmkernel
