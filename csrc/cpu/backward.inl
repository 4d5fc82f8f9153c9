// Gradients of the step. Elementwise ones and the sums over elements go tile by tile; the tables' go by elements, so
// that one thread adds up all samples of an entry, in their order.

namespace gmmkernel {
namespace {

// Numbers handled together: vectors of float, or one double.
template <class T>
struct Group;

template <>
struct Group<float> {
  using L = Lanes;
  static constexpr int size = group, n = vectors;
  using V = F[n];
  GMM_INLINE void load(const Source& source, int64_t first, int count, V& v) {
    gmmkernel::load(source.data, source.dtype, first, count, v);
  }
  GMM_INLINE void store(const Target& target, int64_t first, int count, const V& v) {
    gmmkernel::store(target.data, target.dtype, first, count, v);
  }
  GMM_INLINE void load_noise(const float* noise, V& v) {
    for (int i = 0; i < n; ++i) v[i] = Lanes::load(noise + i * Lanes::width);
  }
  GMM_INLINE void load_terms(const float* terms, V& v) { load_noise(terms, v); }
  GMM_INLINE void store_terms(float* terms, const V& v) {
    for (int i = 0; i < n; ++i) Lanes::store(terms + i * Lanes::width, v[i]);
  }
};

template <>
struct Group<double> {
  using L = DoubleLanes;
  static constexpr int size = 1, n = 1;
  using V = double[n];
  GMM_INLINE void load(const Source& source, int64_t first, int, V& v) { v[0] = load_double(source, first); }
  GMM_INLINE void store(const Target& target, int64_t first, int, const V& v) {
    if (target.dtype == GMM_FLOAT64) {
      static_cast<double*>(target.data)[first] = v[0];
    } else {
      static_cast<float*>(target.data)[first] = static_cast<float>(v[0]);
    }
  }
  GMM_INLINE void load_noise(const float* noise, V& v) { v[0] = *noise; }
  GMM_INLINE void load_terms(const double* terms, V& v) { v[0] = terms[0]; }
  GMM_INLINE void store_terms(double* terms, const V& v) { terms[0] = v[0]; }
};

template <class T>
constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;

// What the gradients of one sample need.
template <class T>
struct SampleBackward {
  Entries entries;
  Row<T> row;
  Source x, output, uncond, history[GMM_MAX_HISTORY];
  Source grad, grad_prediction;
  PredictionKind kind;  // of the prediction whose gradient there is
  Source offset;
  int64_t std_elements;
  Target grad_x, grad_output, grad_uncond, grad_history[GMM_MAX_HISTORY];
};

template <class T>
GMM_INLINE SampleBackward<T> gather_backward(const gmm_step_backward_arguments& b, int64_t sample,
                                             const Entries& entries) {
  const gmm_step_arguments& a = b.step;
  SampleBackward<T> s;
  s.entries = entries;
  s.row = static_cast<const Row<T>*>(a.coefficients)[s.entries.row];
  s.x = sample_of(a.sample, sample);
  s.output = sample_of(a.model_output, sample);
  s.uncond = sample_of(a.model_output_uncond, sample);
  s.grad = sample_of(b.grad_result, sample);
  s.grad_prediction = sample_of(b.grad_prediction, sample);
  s.kind = s.grad_prediction.data == nullptr ? PredictionKind::none : static_cast<PredictionKind>(a.prediction_kind);
  s.offset = {nullptr, table_dtype<T>};
  if (a.mixture.components > 0) {
    s.offset.data = static_cast<const T*>(a.mixture.offsets) + s.entries.offset_row * a.elements;
  }
  s.std_elements = a.mixture.components > 0 ? a.mixture.std_elements : 0;
  s.grad_x = sample_of(b.grad_sample, sample);
  s.grad_output = sample_of(b.grad_model_output, sample);
  s.grad_uncond = sample_of(b.grad_model_output_uncond, sample);
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    s.history[j] = sample_of(a.history[j], sample);
    s.grad_history[j] = sample_of(b.grad_history[j], sample);
  }
  return s;
}

// Where the terms of the row's 16 sums are put, an array for each column.
template <class T>
using Terms = T[row_columns][tile];

// Put a group's terms of one column's sum.
template <class T, class Term>
GMM_INLINE void put_terms(Terms<T>& terms, int column, int at, Term term) {
  typename Group<T>::V value;
  for (int v = 0; v < Group<T>::n; ++v) value[v] = term(v);
  Group<T>::store_terms(terms[column] + at, value);
}

// The group from element `at` of a tile that begins at `first`: elementwise gradients, and the terms of all sums but
// those of OFFSET and SIGMA; `terms` is nullptr where no sums are wanted.
template <class T>
GMM_INLINE void backward_group(const SampleBackward<T>& s, bool reads_sample, int64_t first, int count, int at,
                               const typename Group<T>::V& grad_result, Terms<T>* terms) {
  using G = Group<T>;
  using L = typename G::L;
  using V = typename G::V;
  constexpr int n = G::n;
  const Row<T>& row = s.row;
  const int64_t i = first + at;
  const int left = count - at < G::size ? count - at : G::size;
  V x, o, difference, more, value, grad;
  for (int v = 0; v < n; ++v) x[v] = o[v] = difference[v] = more[v] = L::splat(0);
  if (reads_sample) {
    G::load(s.x, i, left, x);
    G::load(s.output, i, left, o);
    if (s.uncond.data != nullptr) {
      V u;
      G::load(s.uncond, i, left, u);
      for (int v = 0; v < n; ++v) {
        difference[v] = L::sub(o[v], u[v]);
        o[v] = guide<L>(row, u[v], o[v]);
      }
    }
  }
  if (s.kind != PredictionKind::none) G::load(s.grad_prediction, i, left, more);
  const bool of_mean = s.kind == PredictionKind::mean;
  for (int v = 0; v < n; ++v) grad[v] = of_mean ? L::add(grad_result[v], more[v]) : grad_result[v];

  Flow<L> flow[n];
  for (int v = 0; v < n; ++v) flow[v] = flow_back<L>(row, x[v], o[v], grad[v], s.kind, more[v]);
  if (s.grad_x.data != nullptr) {
    for (int v = 0; v < n; ++v) value[v] = flow[v].grad_x;
    G::store(s.grad_x, i, left, value);
  }
  V of_output, of_uncond;
  for (int v = 0; v < n; ++v) {
    of_output[v] = flow[v].grad_output;
    of_uncond[v] = L::splat(0);
    if (s.uncond.data != nullptr) {
      of_output[v] = L::mul(L::splat(row.guidance), flow[v].grad_output);
      of_uncond[v] = L::sub(flow[v].grad_output, of_output[v]);
    }
  }
  if (s.grad_output.data != nullptr) G::store(s.grad_output, i, left, of_output);
  if (s.grad_uncond.data != nullptr) G::store(s.grad_uncond, i, left, of_uncond);
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (s.grad_history[j].data == nullptr) continue;
    for (int v = 0; v < n; ++v) value[v] = L::mul(L::splat(row.history[j]), grad[v]);
    G::store(s.grad_history[j], i, left, value);
  }

  if (terms == nullptr) return;
  const auto put = [&](int column, auto term) { put_terms<T>(*terms, column, at, term); };
  put(GMM_X0_SAMPLE, [&](int v) { return L::mul(flow[v].grad_x0, x[v]); });
  put(GMM_X0_OUTPUT, [&](int v) { return L::mul(flow[v].grad_x0, o[v]); });
  put(GMM_CLIP_MIN, [&](int v) { return flow[v].grad_low; });
  put(GMM_CLIP_MAX, [&](int v) { return flow[v].grad_high; });
  put(GMM_SAMPLE, [&](int v) { return L::mul(grad[v], x[v]); });
  put(GMM_OUTPUT, [&](int v) { return L::mul(grad[v], o[v]); });
  put(GMM_X0, [&](int v) { return L::mul(grad[v], flow[v].x0); });
  V other;
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (s.history[j].data == nullptr) continue;
    G::load(s.history[j], i, left, other);
    put(GMM_HISTORY_0 + j, [&](int v) { return L::mul(grad[v], other[v]); });
  }
  if (s.uncond.data != nullptr) {
    put(GMM_GUIDANCE, [&](int v) { return L::mul(flow[v].grad_output, difference[v]); });
  }
  if (s.kind == PredictionKind::epsilon) {
    put(GMM_EPS_SAMPLE, [&](int v) { return L::mul(more[v], x[v]); });
    put(GMM_EPS_OUTPUT, [&](int v) { return L::mul(more[v], o[v]); });
  }
}

template <class T>
bool has_terms(const SampleBackward<T>& s, int column) {
  if (column >= GMM_HISTORY_0 && column < GMM_HISTORY_0 + GMM_MAX_HISTORY) {
    return s.history[column - GMM_HISTORY_0].data != nullptr;
  }
  switch (column) {
    case GMM_GUIDANCE:
      return s.uncond.data != nullptr;
    case GMM_OFFSET:
      return s.offset.data != nullptr;
    case GMM_EPS_SAMPLE:
    case GMM_EPS_OUTPUT:
      return s.kind == PredictionKind::epsilon;
    default:
      return true;
  }
}

// The sums of a tile of `count` elements.
template <class T>
void sum_terms(const SampleBackward<T>& s, Terms<T>& terms, int64_t first, int count, T* sums) {
  const int64_t of_table = s.std_elements - first;
  for (int at = 0; at < of_table && at < count; ++at) terms[GMM_SIGMA][at] = 0;
  for (int column = 0; column < row_columns; ++column) {
    if (!has_terms(s, column)) {
      sums[column] = 0;
      continue;
    }
    for (int at = count; at < tile; ++at) terms[column][at] = 0;
    sums[column] = sum_tile(terms[column]);
  }
}

// ---- the same for the common steps: one type, both gradients, no history, no prediction, no sums ----

template <int32_t dtype, bool guided, bool clipping>
void backward_vectors(const SampleBackward<float>& s, int64_t first, int64_t end) {
  const Row<float> row = s.row;
  for (int64_t i = first; i < end; i += Lanes::width) {
    const F grad = load_vector<dtype>(s.grad.data, i);
    F x = Lanes::splat(0), o = x;
    if constexpr (clipping) {
      x = load_vector<dtype>(s.x.data, i);
      o = load_vector<dtype>(s.output.data, i);
      if constexpr (guided) o = guide<Lanes>(row, load_vector<dtype>(s.uncond.data, i), o);
    }
    const Flow<Lanes> flow = flow_back<Lanes>(row, x, o, grad, PredictionKind::none, grad);
    store_vector<dtype>(s.grad_x.data, i, flow.grad_x);
    if constexpr (guided) {
      const F conditional = Lanes::mul(Lanes::splat(row.guidance), flow.grad_output);
      store_vector<dtype>(s.grad_output.data, i, conditional);
      store_vector<dtype>(s.grad_uncond.data, i, Lanes::sub(flow.grad_output, conditional));
    } else {
      store_vector<dtype>(s.grad_output.data, i, flow.grad_output);
    }
  }
}

using BackwardVectors = void (*)(const SampleBackward<float>&, int64_t, int64_t);

template <int32_t dtype>
BackwardVectors backward_vectors_of(const SampleBackward<float>& s) {
  constexpr BackwardVectors all[2][2] = {{backward_vectors<dtype, false, false>, backward_vectors<dtype, false, true>},
                                         {backward_vectors<dtype, true, false>, backward_vectors<dtype, true, true>}};
  return all[s.uncond.data != nullptr][clips(s.row)];
}

// The loop for these gradients, or nullptr: then every group goes through `backward_group`.
BackwardVectors backward_vectors_for(const SampleBackward<float>& s) {
  const int32_t dtype = s.x.dtype;
  const bool guided = s.uncond.data != nullptr;
  const bool one_type = s.output.dtype == dtype && (!guided || s.uncond.dtype == dtype);
  const bool both = s.grad_x.data != nullptr && s.grad_output.data != nullptr && (!guided || s.grad_uncond.data);
  if (!one_type || !both || s.kind != PredictionKind::none) return nullptr;
  for (const Target& stored : s.grad_history) {
    if (stored.data != nullptr) return nullptr;
  }
  switch (dtype) {
    case GMM_BFLOAT16:
      return backward_vectors_of<GMM_BFLOAT16>(s);
    case GMM_FLOAT16:
      return backward_vectors_of<GMM_FLOAT16>(s);
    default:
      return backward_vectors_of<GMM_FLOAT32>(s);
  }
}

// Elements first .. first + count - 1 by that loop; returns how many it has done.
int backward_common(const SampleBackward<float>& s, int64_t first, int count) {
  const BackwardVectors vectors_of_backward = backward_vectors_for(s);
  if (vectors_of_backward == nullptr) return 0;
  const int whole = count / Lanes::width * Lanes::width;
  vectors_of_backward(s, first, first + whole);
  return whole;
}

int backward_common(const SampleBackward<double>&, int64_t, int) { return 0; }

// Elementwise gradients of a tile and, where wanted, the tile's sums in `sums` [16].
template <class T>
void backward_tile(const SampleBackward<T>& s, int64_t first, int count, T* sums) {
  using G = Group<T>;
  using L = typename G::L;
  typename G::V grad, other;
  const auto left = [&](int at) { return count - at < G::size ? count - at : G::size; };
  if (sums == nullptr) {
    const bool reads_sample = clips(s.row);
    for (int at = backward_common(s, first, count); at < count; at += G::size) {
      G::load(s.grad, first + at, left(at), grad);
      backward_group<T>(s, reads_sample, first, count, at, grad, nullptr);
    }
    return;
  }
  Terms<T> terms;
  float room[noise_room];
  const uint64_t element = s.entries.first_element + first;
  const float* noise = draw_noise(s.entries.keys, element, count, s.entries.step, Stream::transition, room);
  for (int at = 0; at < count; at += G::size) {
    G::load(s.grad, first + at, left(at), grad);
    backward_group<T>(s, true, first, count, at, grad, &terms);
    G::load_noise(noise + at, other);
    put_terms<T>(terms, GMM_SIGMA, at, [&](int v) { return L::mul(grad[v], other[v]); });
    if (s.offset.data == nullptr) continue;
    G::load(s.offset, first + at, left(at), other);
    put_terms<T>(terms, GMM_OFFSET, at, [&](int v) { return L::mul(grad[v], other[v]); });
  }
  sum_terms(s, terms, first, count, sums);
}

template <class T>
void backward(const gmm_step_backward_arguments& b, int64_t first_tile, int64_t last_tile) {
  const int64_t elements = b.step.elements, tiles = tiles_of(elements);
  for (int64_t t = first_tile; t < last_tile;) {
    const int64_t sample = t / tiles;
    const SampleBackward<T> s = gather_backward<T>(b, sample, entries_of(b.step, sample));
    for (; t < last_tile && t / tiles == sample; ++t) {
      const int64_t number = t - sample * tiles, first = number * tile;
      const int count = static_cast<int>(elements - first < tile ? elements - first : tile);
      T* sums = nullptr;
      if (b.grad_coefficients != nullptr) {
        sums = static_cast<T*>(b.workspace) + (sample * (tiles + 1) + number) * row_columns;
      }
      backward_tile(s, first, count, sums);
    }
  }
}

// The tiles' sums into each sample's, and these into the rows they took.
template <class T>
void sum_rows(const gmm_step_backward_arguments& b) {
  T* rows = static_cast<T*>(b.grad_coefficients);
  for (int64_t i = 0; i < b.step.coefficient_rows * row_columns; ++i) rows[i] = 0;
  const int64_t tiles = tiles_of(b.step.elements);
  for (int64_t sample = 0; sample < b.step.batch; ++sample) {
    T* partial = static_cast<T*>(b.workspace) + sample * (tiles + 1) * row_columns;
    T* row = rows + index_at(b.step.row, sample) * row_columns;
    for (int column = 0; column < row_columns; ++column) {
      const T sum = sum_level(partial + column, tiles, row_columns);
      partial[tiles * row_columns + column] = sum;
      row[column] += sum;
    }
  }
}

// ---- offsets and std: elements first .. first + count - 1 of every entry ----

template <class T>
void clear(void* table, int64_t rows, int64_t elements, int64_t first, int64_t count) {
  for (int64_t r = 0; r < rows; ++r) {
    T* row = static_cast<T*>(table) + r * elements + first;
    for (int64_t i = 0; i < count; ++i) row[i] = 0;
  }
}

template <class T>
void scatter(const gmm_step_backward_arguments& b, int64_t first_group, int64_t last_group) {
  using G = Group<T>;
  using L = typename G::L;
  constexpr int n = G::n;
  const gmm_step_arguments& a = b.step;
  const gmm_mixture& m = a.mixture;
  const int64_t begin = first_group * group;
  const int64_t end = last_group * group < a.elements ? last_group * group : a.elements;
  const int64_t std_end = b.grad_std == nullptr ? 0 : end < m.std_elements ? end : m.std_elements;
  if (b.grad_offsets != nullptr) {
    clear<T>(b.grad_offsets, m.offset_rows * m.components, a.elements, begin, end - begin);
  }
  if (begin < std_end) clear<T>(b.grad_std, m.std_rows * m.std_components, m.std_elements, begin, std_end - begin);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const Entries entries = entries_of(a, sample);
    const T weight = static_cast<const Row<T>*>(a.coefficients)[entries.row].offset;
    const Source grad_of_sample = sample_of(b.grad_result, sample);
    typename G::V grad, sum, z;
    if (b.grad_offsets != nullptr) {
      T* entry = static_cast<T*>(b.grad_offsets) + entries.offset_row * a.elements;
      for (int64_t i = begin; i < end; i += G::size) {
        const int count = static_cast<int>(end - i < G::size ? end - i : G::size);
        G::load(grad_of_sample, i, count, grad);
        G::load({entry, table_dtype<T>}, i, count, sum);
        for (int v = 0; v < n; ++v) sum[v] = L::fma(L::splat(weight), grad[v], sum[v]);
        G::store({entry, table_dtype<T>}, i, count, sum);
      }
    }
    T* entry = static_cast<T*>(b.grad_std) + entries.std_row * m.std_elements;
    for (int64_t first = begin; first < std_end; first += group) {
      F drawn[vectors];
      float noise[group];
      draw_normals(entries.keys, first, entries.step, Stream::transition, drawn);
      for (int i = 0; i < vectors; ++i) Lanes::store(noise + i * Lanes::width, drawn[i]);
      for (int64_t i = first; i < std_end && i < first + group; i += G::size) {
        const int count = static_cast<int>(std_end - i < G::size ? std_end - i : G::size);
        G::load(grad_of_sample, i, count, grad);
        G::load({entry, table_dtype<T>}, i, count, sum);
        G::load_noise(noise + (i - first), z);
        for (int v = 0; v < n; ++v) sum[v] = L::fma(grad[v], z[v], sum[v]);
        G::store({entry, table_dtype<T>}, i, count, sum);
      }
    }
  }
}

}  // namespace
}  // namespace gmmkernel
