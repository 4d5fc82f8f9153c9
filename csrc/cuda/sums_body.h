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

// ---- sixteen columns at once: thread 16 i + j and the columns ----

// What is left of sixteen columns of 16 numbers each.
template <class T>
struct Sixteenths {
  T of[16][row_columns];
};

template <class T>
GMM_INLINE T sum_sixteenths(const Sixteenths<T>& sixteenths, uint32_t column) {
  return sum_sixteen([&](int i) { return sixteenths.of[i][column]; });
}

// First, each thread its part of a tile of a level; `rows` are the sample's.
template <class T>
GMM_INLINE void sum_level_part(const T* rows, const SumLevel& level, uint32_t tile, uint32_t thread,
                               Sixteenths<T>& sixteenths) {
  const uint32_t i = thread / row_columns, column = thread % row_columns;
  const int64_t first = static_cast<int64_t>(tile) * sum_tile;
  sixteenths.of[i][column] = sum_sixty_four([&](int high) {
    const int64_t row = first + row_columns * high + i;
    return row < level.count ? rows[row * level.stride * row_columns + column] : T(0);
  });
}

// Then, the first 16 threads the tile's sum, into its first row: no other tile reads or writes that.
template <class T>
GMM_INLINE void sum_level_whole(T* rows, const SumLevel& level, uint32_t tile, uint32_t thread,
                                const Sixteenths<T>& sixteenths) {
  if (thread >= row_columns) return;
  rows[static_cast<int64_t>(tile) * sum_tile * level.stride * row_columns + thread] =
      sum_sixteenths(sixteenths, thread);
}

// The sums of a sample's tiles; once summed, the first is their sum.
template <class T>
GMM_INLINE T* sums_of(const gmm_step_backward_arguments& b, int64_t sample) {
  return static_cast<T*>(b.workspace) + sample * GMM_SUM_ENTRIES(b.step.elements) * row_columns;
}

// One number of the coefficients' gradients: the samples that took its row, in their order.
template <class T>
GMM_INLINE void add_samples(const gmm_step_backward_arguments& b, int64_t number) {
  const gmm_step_arguments& a = b.step;
  if (number >= a.coefficient_rows * row_columns) return;
  const int64_t row = number / row_columns, column = number % row_columns;
  T sum = 0;
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    if (index_at(a.row, sample) == row && is_step(index_at(a.step, sample))) sum += sums_of<T>(b, sample)[column];
  }
  static_cast<T*>(b.grad_coefficients)[number] = sum;
}

}  // namespace gmmkernel
