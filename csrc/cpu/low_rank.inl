// Steps whose moments are matched exactly. What the offsets are multiplied with depends on all of the noise, so they
// are added last: to what waits for them in the result's memory, or, where that would round it, as part of a second
// step.
//
// Work is counted in items: a few tiles of a block of samples. What the offsets have for a tile is then loaded into
// cache once for all of these; row by row, since rows a power of two apart compete for the same places there.

namespace gmmkernel {
namespace {

constexpr int block_samples = 16;
constexpr int chunk_tiles = 4;

int64_t low_rank_items(const gmm_step_arguments& a) {
  const int64_t chunk = chunk_tiles * tile;
  return (a.elements + chunk - 1) / chunk * ((a.batch + block_samples - 1) / block_samples);
}

// The samples of an item, and which of them remove variance in directions.
template <class T>
struct SampleBlock {
  int count;
  SampleStep<T> of[block_samples];  // without what is added last
  bool removes[block_samples];
  const T* offsets[block_samples];  // [K][elements], of those that remove
};

template <class T>
GMM_INLINE void gather_block(const gmm_step_arguments& a, int64_t first_sample, SampleBlock<T>& block) {
  const gmm_mixture& m = a.mixture;
  block.count = static_cast<int>(a.batch - first_sample < block_samples ? a.batch - first_sample : block_samples);
  for (int b = 0; b < block.count; ++b) {
    SampleStep<T>& s = block.of[b];
    s = gather<T>(a, first_sample + b);
    block.removes[b] = removes_in_directions(s.row, m.directions);
    if (!block.removes[b]) continue;
    const int64_t table = table_row(m.offset_rows, index_at(a.row, first_sample + b));
    s.offset = nullptr;
    block.offsets[b] = static_cast<const T*>(m.offsets) + table * m.components * a.elements;
  }
}

// A sample's numbers in the workspace: [tiles + 1][K], the last of them what its offsets are multiplied with.
template <class T>
GMM_INLINE T* workspace_of(const gmm_step_arguments& a, int64_t sample) {
  return static_cast<T*>(a.workspace) + sample * (tiles_of(a.elements) + 1) * a.mixture.components;
}

// Call body(block, first_sample, first, count) for the tiles of items first_item .. last_item - 1.
template <class T, class Body>
GMM_INLINE void for_blocks(const gmm_step_arguments& a, int64_t first_item, int64_t last_item, Body body) {
  const int64_t blocks = (a.batch + block_samples - 1) / block_samples;
  for (int64_t item = first_item; item < last_item; ++item) {
    const int64_t first_sample = item % blocks * block_samples, begin = item / blocks * chunk_tiles * tile;
    const int64_t end = a.elements - begin < chunk_tiles * tile ? a.elements : begin + chunk_tiles * tile;
    SampleBlock<T> block;
    gather_block(a, first_sample, block);
    for (int64_t first = begin; first < end; first += tile) {
      body(block, first_sample, first, static_cast<int>(end - first < tile ? end - first : tile));
    }
  }
}

// A tile of every sample of a block. Rows are not a power of two apart.
template <class T>
struct BlockTiles {
  alignas(64) T of[block_samples][tile + 16];
};

// Ask for a tile of the `rows` rows that come next, while others are worked on.
template <class T>
GMM_INLINE void prefetch_rows(const T* row, int64_t stride, int64_t rows, int count) {
  for (int64_t j = 0; j < rows; ++j) {
    for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(row + j * stride + i);
  }
}

// ---- projections ----

constexpr int leaves = tile / Lanes::width;

// Sums, for each of `n` samples, of products with the same row, vector by vector and in the fixed order: entry `at` of
// a level of `width` vectors is the sum of entries `at` and `at + width` of the level below.
template <int n>
struct Products {
  F of[n];
};

template <int n, int width>
GMM_INLINE Products<n> sum_products(const float* row, const float* const (&noise)[n], int at) {
  Products<n> made;
  if constexpr (width == leaves) {
    const F d = Lanes::load(row + at * Lanes::width);
    for (int b = 0; b < n; ++b) made.of[b] = Lanes::mul(d, Lanes::load(noise[b] + at * Lanes::width));
  } else {
    const Products<n> low = sum_products<n, 2 * width>(row, noise, at);
    const Products<n> high = sum_products<n, 2 * width>(row, noise, at + width);
    for (int b = 0; b < n; ++b) made.of[b] = Lanes::add(low.of[b], high.of[b]);
  }
  return made;
}

// Numbers that a tile has been halved to, for every sample of a block.
struct BlockLanes {
  alignas(64) float of[block_samples][Lanes::width];
};

// A whole tile of one row and n samples, halved to `Lanes::width` numbers. The upper levels are loops, because the
// lower ones fill the registers.
template <int n>
void halve_products(const float* row, const float* next, const float* const (&noise)[n], float* const (&lanes)[n]) {
  constexpr int looped = leaves / 8;
  alignas(64) float level[n][looped * Lanes::width];
  for (int at = 0; at < looped; ++at) {
    for (int line = 0; line < 2; ++line) __builtin_prefetch(next + (at * 2 + line) * 16);
    const Products<n> made = sum_products<n, looped>(row, noise, at);
    for (int b = 0; b < n; ++b) Lanes::store(level[b] + at * Lanes::width, made.of[b]);
  }
  for (int b = 0; b < n; ++b) {
    F v[looped];
    for (int at = 0; at < looped; ++at) v[at] = Lanes::load(level[b] + at * Lanes::width);
    for (int width = looped / 2; width > 0; width /= 2) {
      for (int at = 0; at < width; ++at) v[at] = Lanes::add(v[at], v[at + width]);
    }
    Lanes::store(lanes[b], v[0]);
  }
}

template <class T>
T project_part(const T* row, const float* noise, int count) {
  T terms[tile];
  for (int i = 0; i < count; ++i) terms[i] = row[i] * static_cast<T>(noise[i]);
  for (int i = count; i < tile; ++i) terms[i] = 0;
  return sum_tile(terms);
}

// The projections of a block's noise on one row of each sample; nullptr stands for none.
GMM_INLINE void project_block(const double* const (&rows)[block_samples], const double*, const BlockTiles<float>& noise,
                              int count, double* const (&sums)[block_samples]) {
  for (int b = 0; b < block_samples; ++b) {
    if (rows[b] != nullptr) *sums[b] = project_part(rows[b], noise.of[b], count);
  }
}

GMM_INLINE void project_block(const float* const (&rows)[block_samples], const float* next,
                              const BlockTiles<float>& noise, int count, float* const (&sums)[block_samples]) {
  if (count < tile) {
    for (int b = 0; b < block_samples; ++b) {
      if (rows[b] != nullptr) *sums[b] = project_part(rows[b], noise.of[b], count);
    }
    return;
  }
  BlockLanes lanes;
  for (int b = 0; b < block_samples; b += 4) {
    if (rows[b] != nullptr && rows[b + 1] == rows[b] && rows[b + 2] == rows[b] && rows[b + 3] == rows[b]) {
      halve_products<4>(rows[b], next + b * (tile / block_samples),
                        {noise.of[b], noise.of[b + 1], noise.of[b + 2], noise.of[b + 3]},
                        {lanes.of[b], lanes.of[b + 1], lanes.of[b + 2], lanes.of[b + 3]});
      continue;
    }
    for (int j = b; j < b + 4; ++j) {
      if (rows[j] != nullptr) halve_products<1>(rows[j], rows[j], {noise.of[j]}, {lanes.of[j]});
    }
  }
  // One level after the other, so that no sample waits for its own last one.
  for (int width = Lanes::width / 2; width > 0; width /= 2) {
    for (int b = 0; b < block_samples; ++b) {
      for (int i = 0; rows[b] != nullptr && i < width; ++i) lanes.of[b][i] += lanes.of[b][i + width];
    }
  }
  for (int b = 0; b < block_samples; ++b) {
    if (rows[b] != nullptr) *sums[b] = lanes.of[b][0];
  }
}

// Where the result's type is the arithmetic's.
template <class T>
GMM_INLINE bool result_can_wait(const gmm_step_arguments& a) {
  return a.result.dtype == table_dtype<T>;
}

template <class T>
GMM_INLINE void draw_noise(const SampleStep<T>& s, bool reads, int64_t first, int count, float* noise) {
  for (int at = 0; s.noise && at < count; at += group) {
    if (reads) prefetch_group(s, first + at);
    draw_normals(s.keys, first + at, s.step, noise + at);
  }
}

template <class T>
void project_noise(const gmm_step_arguments& a, int64_t first_item, int64_t last_item) {
  const bool waits = result_can_wait<T>(a);
  const auto body = [&](const SampleBlock<T>& block, int64_t first_sample, int64_t first, int count) {
    BlockTiles<float> noise;
    const T* rows[block_samples] = {};
    T* sums[block_samples] = {};
    for (int b = 0; b < block.count; ++b) {
      if (block.removes[b]) {
        rows[b] = block.offsets[b] + first;
        sums[b] = workspace_of<T>(a, first_sample + b) + first / tile * a.mixture.components;
      } else if (!waits) {
        continue;
      }
      const SampleStep<T>& s = block.of[b];
      draw_noise(s, waits, first, count, noise.of[b]);
      if (waits) {
        step_block(s, step_vectors_for(s, a.prediction_kind), a.prediction_kind, noise.of[b], first, first + count);
      }
    }
    for (int64_t k = 0; k < a.mixture.components; ++k) {
      const T* next = rows[0] == nullptr || k + 1 == a.mixture.components ? rows[0] : rows[0] + a.elements;
      project_block(rows, next, noise, count, sums);
      for (int b = 0; b < block.count; ++b) {
        if (rows[b] == nullptr) continue;
        rows[b] += a.elements;
        ++sums[b];
      }
    }
  };
  for_blocks<T>(a, first_item, last_item, body);
}

// From the tiles' sums to what each offset is multiplied with.
template <class T>
void weigh_offsets(const gmm_step_arguments& a, int64_t first_sample, int64_t last_sample) {
  const gmm_mixture& m = a.mixture;
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t sample = first_sample; sample < last_sample; ++sample) {
    const Entries entries = entries_of(a, sample);
    const Row<T>& row = static_cast<const Row<T>*>(a.coefficients)[entries.row];
    if (!removes_in_directions(row, m.directions)) continue;
    T* partial = workspace_of<T>(a, sample);
    T* weights = partial + tiles * m.components;
    T projections[GMM_MAX_COMPONENTS], pulls[GMM_MAX_COMPONENTS];
    for (int64_t k = 0; k < m.components; ++k) projections[k] = sum_level(partial + k, tiles, m.components);
    const T* basis =
        static_cast<const T*>(m.basis) + table_row(m.basis_rows, entries.row) * m.directions * m.components;
    const int64_t entry = table_row(m.std_delta_rows, entries.row) * m.std_delta_components +
                          (m.std_delta_components == 1 ? 0 : entries.component);
    const T* std_delta = static_cast<const T*>(m.std_delta) + entry * m.directions;
    for (int64_t r = 0; r < m.directions; ++r) {
      pulls[r] = pull_along(basis + r * m.components, projections, m.components, std_delta[r]);
    }
    for (int64_t k = 0; k < m.components; ++k) {
      const T own = k == entries.component ? row.offset : T(0);
      weights[k] = offset_weight(basis + k, pulls, m.components, m.directions, own);
    }
  }
}

// ---- the offsets, given what each is multiplied with ----

// Add `n` rows, one after another.
template <int n, class T>
GMM_INLINE void add_rows(const T* row, int64_t stride, const T* weights, int count, T* sum) {
  for (int i = 0; i < count; ++i) {
    T y = sum[i];
    for (int j = 0; j < n; ++j) y = OneLane<T>::Lanes::fma(weights[j], row[j * stride + i], y);
    sum[i] = y;
  }
}

template <int n>
GMM_INLINE void add_rows(const float* row, int64_t stride, const float* weights, int count, float* sum) {
  F w[n];
  for (int j = 0; j < n; ++j) w[j] = Lanes::splat(weights[j]);
  const int whole = count / Lanes::width * Lanes::width;
  for (int i = 0; i < whole; i += Lanes::width) {
    F y = Lanes::load(sum + i);
    for (int j = 0; j < n; ++j) y = Lanes::fma(w[j], Lanes::load(row + j * stride + i), y);
    Lanes::store(sum + i, y);
  }
  add_rows<n, float>(row + whole, stride, weights, count - whole, sum + whole);
}

// A tile of every sample that is to be added to: the result's own memory, or where the step before it is computed.
template <class T>
struct Waiting {
  BlockTiles<T> computed;
  T* of[block_samples];
};

GMM_INLINE void compute_again(const SampleStep<float>& s, int32_t prediction_kind, int64_t first, int count,
                              float* result) {
  SampleStep<float> elsewhere = s;
  elsewhere.result = {result - first, GMM_FLOAT32};
  float noise[tile];
  draw_noise(s, true, first, count, noise);
  step_block(elsewhere, nullptr, prediction_kind, noise, first, first + count);
}

GMM_INLINE void compute_again(const SampleStep<double>&, int32_t, int64_t, int, double*) {}

GMM_INLINE void finish(const SampleStep<float>& s, int64_t first, int count, const float* result) {
  F y[vectors];
  for (int at = 0; at < count; at += group) {
    for (int i = 0; i < vectors; ++i) y[i] = Lanes::load(result + at + i * Lanes::width);
    store(s.result.data, s.result.dtype, first + at, group_size(count, at), y);
  }
}

GMM_INLINE void finish(const SampleStep<double>&, int64_t, int, const double*) {}

template <class T>
void add_offsets(const gmm_step_arguments& a, int64_t first_item, int64_t last_item) {
  const int64_t components = a.mixture.components;
  const bool waits = result_can_wait<T>(a);
  const auto body = [&](const SampleBlock<T>& block, int64_t first_sample, int64_t first, int count) {
    Waiting<T> result;
    const T* weights[block_samples] = {};
    for (int b = 0; b < block.count; ++b) {
      const SampleStep<T>& s = block.of[b];
      result.of[b] = waits ? static_cast<T*>(s.result.data) + first : result.computed.of[b];
      if (!waits) compute_again(s, a.prediction_kind, first, count, result.of[b]);
      if (block.removes[b]) {
        weights[b] = workspace_of<T>(a, first_sample + b) + tiles_of(a.elements) * components;
      }
    }
    for (int64_t k = 0; k < components; k += 4) {
      for (int b = 0; b < block.count; ++b) {
        if (!block.removes[b]) continue;
        const T* row = block.offsets[b] + k * a.elements + first;
        if (b == 0) prefetch_rows(row + 4 * a.elements, a.elements, components - k < 8 ? components - k - 4 : 4, count);
        if (k + 4 <= components) {
          add_rows<4>(row, a.elements, weights[b] + k, count, result.of[b]);
          continue;
        }
        for (int64_t j = k; j < components; ++j, row += a.elements) {
          add_rows<1>(row, 0, weights[b] + j, count, result.of[b]);
        }
      }
    }
    for (int b = 0; b < block.count && !waits; ++b) finish(block.of[b], first, count, result.of[b]);
  };
  for_blocks<T>(a, first_item, last_item, body);
}

}  // namespace
}  // namespace gmmkernel
