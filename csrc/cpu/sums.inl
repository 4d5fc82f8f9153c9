// Sums in the fixed order: a tile of 1024 is halved until one number is left; the tiles' sums form the next level.

namespace gmmkernel {
namespace {

constexpr int tile = 1024;

GMM_INLINE int64_t tiles_of(int64_t elements) { return (elements + tile - 1) / tile; }

template <class T>
GMM_INLINE T sum_tile(T (&values)[tile]) {
  for (int width = tile / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  }
  return values[0];
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

void subtract_scaled(double* row, const double* other, double scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] -= scale * other[i];
}

}  // namespace
}  // namespace gmmkernel
