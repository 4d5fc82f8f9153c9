// The bodies of the kernels for projections: a tile's sums of products with 16 rows of a table at a time, and, after
// the tree over the tiles, the results.
#pragma once

#include "common/layout.h"
#include "cuda/sums_body.h"

namespace gmmkernel {

// The entry of the table that a sample takes; -1 where it is out of range.
GMM_INLINE int64_t entry_of(const gmm_project_arguments& a, int64_t sample) {
  if (a.table_rows == 1) return 0;
  const int64_t row = index_at(a.row, sample);
  return row >= 0 && row < a.table_rows ? row : -1;
}

// Four elements of a thread, a quarter of the tile apart; zero beyond its end.
template <class T>
struct ThreadElements {
  T of[4];
};

template <class T>
GMM_INLINE void load_quarters(const T* data, const Place& place, int64_t elements, ThreadElements<T>& taken) {
  const Tiling tiling = {elements, sum_tile};
  const int64_t first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t i = place.thread + block_threads * j;
    taken.of[j] = i < count ? global(data)[first + i] : T(0);
  }
}

template <class T>
GMM_INLINE void load_sample(const gmm_project_arguments& a, const Place& place, ThreadElements<T>& x) {
  load_quarters(static_cast<const T*>(a.sample.data) + place.sample() * a.sample.batch_stride, place, a.elements, x);
}

// Sixteen columns' sums over a thread's elements.
template <class T>
GMM_INLINE void sum_products(const gmm_project_arguments& a, const Place& place, int64_t entry,
                             const ThreadElements<T>& x, int64_t first_column, Columns<T>& columns) {
  const T* row = static_cast<const T*>(a.table) + (entry * a.columns + first_column) * a.elements;
  const int64_t left = a.columns - first_column;
  GMM_NO_UNROLL
  for (uint32_t c = 0; c < sum_columns && c < left; ++c, row += a.elements) {
    ThreadElements<T> of_row;
    load_quarters(row, place, a.elements, of_row);
    columns.quarters[c][place.thread] = sum_four([&](int j) { return of_row.of[j] * x.of[j]; });
  }
}

template <class T>
GMM_INLINE void write_products(const SumRows& rows, const Place& place, int64_t first_column,
                               const Columns<T>& columns) {
  const int64_t column = first_column + place.thread;
  if (place.thread >= sum_columns || column >= rows.columns) return;
  sums_of<T>(rows, place.sample())[place.tile * rows.columns + column] =
      sum_of_sixteenths(columns.sixteenths, place.thread);
}

// One number of the result: the thread's among the columns.
template <class T>
GMM_INLINE void write_projection(const gmm_project_arguments& a, const SumRows& rows, const Place& place) {
  const int64_t sample = place.sample(), column = static_cast<int64_t>(place.tile) * block_threads + place.thread;
  if (sample >= a.batch || column >= a.columns) return;
  T value = rows.tiles == 0 ? T(0) : sums_of<T>(rows, sample)[column];
  if (entry_of(a, sample) < 0) value = static_cast<T>(bits_float(0x7FC00000));
  static_cast<T*>(a.result)[sample * a.columns + column] = value;
}

}  // namespace gmmkernel
