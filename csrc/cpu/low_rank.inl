// Steps whose moments are matched exactly: the noise is gone through twice, first for its projections on the offsets.
//
// Work is counted in chunks of tiles, chunk by chunk and in each by sample: item = chunk * batch + sample. What the
// offsets have for a chunk then stays in cache while all samples go through it.

namespace gmmkernel {
namespace {

GMM_INLINE int64_t tiles_of_chunk(int64_t components) { return components < 32 ? 32 / components : 1; }

int64_t low_rank_items(const gmm_step_arguments& a) {
  const int64_t tiles = (a.elements + tile - 1) / tile, in_chunk = tiles_of_chunk(a.mixture.components);
  return (tiles + in_chunk - 1) / in_chunk * a.batch;
}

// Noise may be left in the result's memory from one pass to the next if that is float32 and nothing is read there.
template <class T>
bool keeps_noise(const gmm_step_arguments& a) {
  if (sizeof(T) != sizeof(float) || a.result.dtype != GMM_FLOAT32) return false;
  bool reads = a.sample.data == a.result.data || a.model_output.data == a.result.data ||
               a.model_output_uncond.data == a.result.data;
  for (const gmm_input& stored : a.history) reads = reads || stored.data == a.result.data;
  return !reads;
}

// Call body(sample, first, end) for the elements of items first_item .. last_item - 1.
template <class Body>
GMM_INLINE void for_chunks(const gmm_step_arguments& a, int64_t first_item, int64_t last_item, Body body) {
  const int64_t chunk = tiles_of_chunk(a.mixture.components) * tile;
  for (int64_t item = first_item; item < last_item; ++item) {
    const int64_t first = item / a.batch * chunk;
    body(item % a.batch, first, a.elements - first < chunk ? a.elements : first + chunk);
  }
}

// ---- projections ----

// The sums of `together` rows of products with the same noise, vector by vector, in the fixed order: entry `at` of a
// level of `width` vectors is the sum of entries `at` and `at + width` of the level below.
constexpr int leaves = tile / Lanes::width;
constexpr int together = Lanes::width == 16 ? 4 : 2;

struct Products {
  F of[together];
};

template <int width>
GMM_INLINE Products sum_products(const float* const (&rows)[together], const float* noise, int at) {
  Products made;
  if constexpr (width == leaves) {
    const F z = Lanes::load(noise + at * Lanes::width);
    for (int j = 0; j < together; ++j) made.of[j] = Lanes::mul(Lanes::load(rows[j] + at * Lanes::width), z);
  } else {
    const Products low = sum_products<2 * width>(rows, noise, at);
    const Products high = sum_products<2 * width>(rows, noise, at + width);
    for (int j = 0; j < together; ++j) made.of[j] = Lanes::add(low.of[j], high.of[j]);
  }
  return made;
}

// One whole tile.
void project_rows(const float* const (&rows)[together], const float* noise, float (&sums)[together]) {
  const Products products = sum_products<1>(rows, noise, 0);
  for (int j = 0; j < together; ++j) {
    float lanes[Lanes::width];
    Lanes::store(lanes, products.of[j]);
    for (int width = Lanes::width / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    sums[j] = lanes[0];
  }
}

template <class T>
T project_part(const T* row, const float* noise, int64_t count) {
  T terms[tile];
  for (int64_t i = 0; i < count; ++i) terms[i] = row[i] * static_cast<T>(noise[i]);
  for (int64_t i = count; i < tile; ++i) terms[i] = 0;
  return sum_tile(terms);
}

// The projections of a tile's noise on every offset, from `offsets` on, `elements` apart.
GMM_INLINE void project_tile(const float* offsets, int64_t elements, int64_t components, const float* noise,
                             int64_t count, float* sums) {
  int64_t k = 0;
  for (; count == tile && k + together <= components; k += together) {
    const float* rows[together];
    for (int j = 0; j < together; ++j) rows[j] = offsets + (k + j) * elements;
    float found[together];
    project_rows(rows, noise, found);
    for (int j = 0; j < together; ++j) sums[k + j] = found[j];
  }
  for (; k < components; ++k) sums[k] = project_part(offsets + k * elements, noise, count);
}

GMM_INLINE void project_tile(const double* offsets, int64_t elements, int64_t components, const float* noise,
                             int64_t count, double* sums) {
  for (int64_t k = 0; k < components; ++k) sums[k] = project_part(offsets + k * elements, noise, count);
}

template <class T>
void project_noise(const gmm_step_arguments& a, int64_t first_item, int64_t last_item) {
  const gmm_mixture& m = a.mixture;
  const int64_t entries = (a.elements + tile - 1) / tile + 1;
  const bool keeps = keeps_noise<T>(a);
  for_chunks(a, first_item, last_item, [&](int64_t sample, int64_t begin, int64_t end) {
    const int64_t row_index = index_at(a.row, sample);
    if (!removes_in_directions(static_cast<const Row<T>*>(a.coefficients)[row_index], m.directions)) return;
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
    const uint32_t step = static_cast<uint32_t>(index_at(a.step, sample));
    const T* offsets =
        static_cast<const T*>(m.offsets) + table_row(m.offset_rows, row_index) * m.components * a.elements;
    float* kept = keeps ? static_cast<float*>(sample_of(a.result, sample).data) : nullptr;
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t count = end - first < tile ? end - first : tile;
      float noise[tile];
      for (int64_t i = 0; i < count; i += group) draw_normals(keys, first + i, step, noise + i);
      if (kept != nullptr) __builtin_memcpy(kept + first, noise, count * sizeof(float));
      T* sums = static_cast<T*>(a.workspace) + (sample * entries + first / tile) * m.components;
      project_tile(offsets + first, a.elements, m.components, noise, count, sums);
    }
  });
}

// From the tiles' sums to what each offset is multiplied with, in a sample's last entry.
template <class T>
void weigh_offsets(const gmm_step_arguments& a, int64_t first_sample, int64_t last_sample) {
  const gmm_mixture& m = a.mixture;
  const int64_t tiles = (a.elements + tile - 1) / tile;
  for (int64_t sample = first_sample; sample < last_sample; ++sample) {
    const Entries entries = entries_of(a, sample);
    const Row<T>& row = static_cast<const Row<T>*>(a.coefficients)[entries.row];
    if (!removes_in_directions(row, m.directions)) continue;
    T* partial = static_cast<T*>(a.workspace) + sample * (tiles + 1) * m.components;
    T* weights = partial + tiles * m.components;
    T projections[GMM_MAX_COMPONENTS], pulls[GMM_MAX_COMPONENTS];
    for (int64_t k = 0; k < m.components; ++k) projections[k] = sum_level(partial + k, tiles, m.components);
    const T* basis =
        static_cast<const T*>(m.basis) + table_row(m.basis_rows, entries.row) * m.directions * m.components;
    const int64_t entry = table_row(m.shrinkage_rows, entries.row) * m.shrinkage_components +
                          (m.shrinkage_components == 1 ? 0 : entries.component);
    const T* shrinkage = static_cast<const T*>(m.shrinkage) + entry * m.directions;
    for (int64_t r = 0; r < m.directions; ++r) {
      pulls[r] = pull_along(basis + r * m.components, projections, m.components, shrinkage[r]);
    }
    for (int64_t k = 0; k < m.components; ++k) {
      const T own = k == entries.component ? row.offset : T(0);
      weights[k] = offset_weight(basis + k, pulls, m.components, m.directions, own);
    }
  }
}

// ---- the step, given what each offset is multiplied with ----

template <class T>
void step_in_directions(const gmm_step_arguments& a, int64_t first_item, int64_t last_item) {
  const gmm_mixture& m = a.mixture;
  const int64_t tiles = (a.elements + tile - 1) / tile;
  const bool keeps = keeps_noise<T>(a);
  for_chunks(a, first_item, last_item, [&](int64_t sample, int64_t begin, int64_t end) {
    SampleStep<T> s = gather<T>(a, sample);
    if (removes_in_directions(s.row, m.directions)) {
      const int64_t entry = table_row(m.offset_rows, index_at(a.row, sample)) * m.components;
      s.offset = static_cast<const T*>(m.offsets) + entry * a.elements;
      s.offset_weights = static_cast<const T*>(a.workspace) + (sample * (tiles + 1) + tiles) * m.components;
      s.offset_count = m.components;
      s.offset_stride = a.elements;
    }
    const StepVectors vectors_of_step = step_vectors_for(s, a.prediction_kind);
    const float* kept = keeps && s.offset_weights != nullptr ? static_cast<const float*>(s.result.data) : nullptr;
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t last = end - first < tile ? end : first + tile;
      float noise[tile];
      if (s.noise && kept == nullptr) {
        for (int64_t i = first; i < last; i += group) {
          prefetch_group(s, i);
          draw_normals(s.keys, i, s.step, noise + (i - first));
        }
      }
      // A part of a group is read as a whole.
      if (kept != nullptr && last - first < tile) __builtin_memcpy(noise, kept + first, (last - first) * sizeof(float));
      const bool whole = kept != nullptr && last - first == tile;
      step_block(s, vectors_of_step, a.prediction_kind, whole ? kept + first : noise, first, last);
    }
  });
}

}  // namespace
}  // namespace gmmkernel
