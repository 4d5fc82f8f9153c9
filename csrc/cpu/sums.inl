// Sums in the fixed order: a tile of 1024 is halved until one number is left; the tiles' sums form the next level.

namespace gmmkernel {
namespace {

GMM_INLINE int64_t tiles_of(int64_t elements) { return (elements + tile - 1) / tile; }

// Two halvings at once, four numbers becoming one, until one is left.
template <int count, class T>
GMM_INLINE T sum_quarters(T* values) {
  constexpr int width = count / 4;
  for (int i = 0; i < width; ++i) {
    values[i] = (values[i] + values[i + 2 * width]) + (values[i + width] + values[i + 3 * width]);
  }
  if constexpr (width == 1) {
    return values[0];
  } else {
    return sum_quarters<width>(values);
  }
}

template <class T>
GMM_INLINE T sum_tile(T (&values)[tile]) {
  return sum_quarters<tile>(values);
}

// The sum of `count` tiles' sums, the first of each `stride` numbers; they are used up.
template <class T>
T sum_level(T* partial, int64_t count, int64_t stride) {
  T values[tile];
  while (count > 1) {
    const int64_t above = (count + tile - 1) / tile;
    for (int64_t t = 0; t < above; ++t) {
      const int64_t first = t * tile;
      const int64_t inside = count - first < tile ? count - first : tile;
      for (int64_t i = 0; i < inside; ++i) values[i] = partial[(first + i) * stride];
      for (int64_t i = inside; i < tile; ++i) values[i] = 0;
      partial[t * stride] = sum_tile(values);
    }
    count = above;
  }
  return count == 0 ? 0 : partial[0];
}

double dot(const double* a, const double* b, int64_t count, double* partial) {
  double values[tile];
  const int64_t tiles = (count + tile - 1) / tile;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * tile;
    const int64_t inside = count - first < tile ? count - first : tile;
    for (int64_t i = 0; i < inside; ++i) values[i] = a[first + i] * b[first + i];
    for (int64_t i = inside; i < tile; ++i) values[i] = 0;
    partial[t] = sum_tile(values);
  }
  return sum_level(partial, tiles, 1);
}

// The sums of tiles of samples' products with the rows of their tables: one tile of all samples after another, because
// they may share a table. Then the sums of these.
template <class T>
void project_tiles(const gmm_project_arguments& a, int64_t first_tile, int64_t last_tile) {
  T terms[tile];
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t number = t / a.batch, sample = t - number * a.batch, first = number * tile;
    const int64_t inside = a.elements - first < tile ? a.elements - first : tile;
    const T* x = static_cast<const T*>(a.sample.data) + sample * a.sample.batch_stride + first;
    const int64_t entry = a.table_rows == 1 ? 0 : index_at(a.row, sample);
    const T* row = static_cast<const T*>(a.table) + entry * a.columns * a.elements + first;
    T* sums = static_cast<T*>(a.workspace) + (sample * (tiles + 1) + number) * a.columns;
    for (int64_t k = 0; k < a.columns; ++k, row += a.elements) {
      for (int64_t i = 0; i < inside; ++i) terms[i] = row[i] * x[i];
      for (int64_t i = inside; i < tile; ++i) terms[i] = 0;
      sums[k] = sum_tile(terms);
    }
  }
}

template <class T>
void project_samples(const gmm_project_arguments& a, int64_t first_sample, int64_t last_sample) {
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t sample = first_sample; sample < last_sample; ++sample) {
    T* sums = static_cast<T*>(a.workspace) + sample * (tiles + 1) * a.columns;
    T* result = static_cast<T*>(a.result) + sample * a.columns;
    for (int64_t k = 0; k < a.columns; ++k) result[k] = sum_level(sums + k, tiles, a.columns);
  }
}

void subtract_scaled(double* row, const double* other, double scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] -= scale * other[i];
}

}  // namespace
}  // namespace gmmkernel
