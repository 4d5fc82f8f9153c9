// The step.

namespace gmmkernel {
namespace {

// ---- what a step needs of one sample, gathered before its groups ----

// Which entries of the tables a sample uses.
struct Entries {
  int64_t row;
  PhiloxKeys keys;
  uint32_t step;
  uint64_t first_element;
  int64_t component, offset_row, std_row;  // rows of [offset_rows * K] and [std_rows * std_components]
};

GMM_INLINE Entries entries_of(const gmm_step_arguments& a, int64_t sample) {
  Entries e;
  e.row = index_at(a.row, sample);
  e.keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
  e.step = static_cast<uint32_t>(index_at(a.step, sample));
  e.first_element = static_cast<uint64_t>(index_at(a.first_element, sample));
  const gmm_mixture& m = a.mixture;
  e.component = 0;
  if (m.components > 1) {
    const int64_t* cdf = m.cdf + table_row(m.cdf_rows, e.row) * (m.components - 1);
    e.component = choose_component(e.keys, e.step, cdf, m.components);
  }
  e.offset_row = table_row(m.offset_rows, e.row) * m.components + e.component;
  e.std_row = table_row(m.std_rows, e.row) * m.std_components + (m.std_components == 1 ? 0 : e.component);
  return e;
}

template <class T>
struct SampleStep {
  Row<T> row;
  PhiloxKeys keys;
  uint32_t step;
  uint64_t first_element;  // of the noise
  Source x, output, uncond;
  Source history[GMM_MAX_HISTORY];  // those whose coefficient is not 0
  T history_coefficient[GMM_MAX_HISTORY];
  int history_count;
  const T* offset;  // nullptr: no mixture, or switched off by the row
  const T* std;
  int64_t std_elements;
  bool noise;
  T inverse_std, log_std;  // of the row's sigma, where the density is wanted
  Target result, prediction;
};

template <class T>
GMM_INLINE SampleStep<T> gather(const gmm_step_arguments& a, int64_t sample) {
  SampleStep<T> s;
  const Entries entries = entries_of(a, sample);
  s.row = static_cast<const Row<T>*>(a.coefficients)[entries.row];
  s.keys = entries.keys;
  s.step = entries.step;
  s.first_element = entries.first_element;
  s.x = sample_of(a.sample, sample);
  s.output = sample_of(a.model_output, sample);
  s.uncond = sample_of(a.model_output_uncond, sample);
  s.history_count = 0;
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (a.history[j].data == nullptr || s.row.history[j] == 0) continue;
    s.history[s.history_count] = sample_of(a.history[j], sample);
    s.history_coefficient[s.history_count++] = s.row.history[j];
  }
  s.offset = nullptr;
  s.std = nullptr;
  s.std_elements = 0;
  const gmm_mixture& m = a.mixture;
  if (m.components > 0) {
    if (s.row.offset != 0) s.offset = static_cast<const T*>(m.offsets) + entries.offset_row * a.elements;
    s.std = static_cast<const T*>(m.std) + entries.std_row * m.std_elements;
    s.std_elements = m.std_elements;
  }
  s.noise = s.std_elements > 0 || s.row.sigma != 0;
  if (a.log_prob != nullptr) {
    using L = typename OneLane<T>::Lanes;
    s.inverse_std = L::div(1, s.row.sigma);
    s.log_std = logarithm<L>(s.row.sigma);
  }
  s.result = sample_of(a.result, sample);
  s.prediction = sample_of(a.prediction, sample);
  return s;
}

// ---- the step, float32 arithmetic ----

GMM_INLINE void load_std(const SampleStep<float>& s, int64_t first, int count, F (&std)[vectors]) {
  const int64_t from_table = s.std_elements - first;
  if (from_table >= count) {
    load(s.std, GMM_FLOAT32, first, count, std);
  } else if (from_table <= 0) {
    for (int i = 0; i < vectors; ++i) std[i] = Lanes::splat(s.row.sigma);
  } else {
    float mixed[group];
    for (int i = 0; i < group; ++i) mixed[i] = i < from_table ? s.std[first + i] : s.row.sigma;
    for (int i = 0; i < vectors; ++i) std[i] = Lanes::load(mixed + i * Lanes::width);
  }
}

// `terms`, where the density is wanted, gets what its sum over elements is made of.
GMM_INLINE void step_group(const SampleStep<float>& s, int32_t prediction_kind, const float* noise, int64_t first,
                           int count, float* terms) {
  F x[vectors], o[vectors], x0[vectors], y[vectors], other[vectors];
  load(s.x.data, s.x.dtype, first, count, x);
  load(s.output.data, s.output.dtype, first, count, o);
  if (s.uncond.data != nullptr) {
    load(s.uncond.data, s.uncond.dtype, first, count, other);
    for (int i = 0; i < vectors; ++i) o[i] = guide<Lanes>(s.row, other[i], o[i]);
  }
  for (int i = 0; i < vectors; ++i) {
    x0[i] = predict_x0<Lanes>(s.row, x[i], o[i]);
    y[i] = predict_mean<Lanes>(s.row, x[i], o[i], x0[i]);
  }
  for (int j = 0; j < s.history_count; ++j) {
    load(s.history[j].data, s.history[j].dtype, first, count, other);
    for (int i = 0; i < vectors; ++i) y[i] = Lanes::fma(Lanes::splat(s.history_coefficient[j]), other[i], y[i]);
  }
  F mean[vectors];
  for (int i = 0; i < vectors; ++i) mean[i] = y[i];
  if (s.offset != nullptr) {
    load(s.offset, GMM_FLOAT32, first, count, other);
    for (int i = 0; i < vectors; ++i) y[i] = Lanes::fma(Lanes::splat(s.row.offset), other[i], y[i]);
  }
  if (prediction_kind == GMM_PREDICTION_X0) {
    store(s.prediction.data, s.prediction.dtype, first, count, x0);
  } else if (prediction_kind == GMM_PREDICTION_EPSILON) {
    for (int i = 0; i < vectors; ++i) other[i] = predict_epsilon<Lanes>(s.row, x[i], o[i]);
    store(s.prediction.data, s.prediction.dtype, first, count, other);
  } else if (prediction_kind == GMM_PREDICTION_MODEL_OUTPUT) {
    store(s.prediction.data, s.prediction.dtype, first, count, o);
  } else if (prediction_kind == GMM_PREDICTION_MEAN) {
    store(s.prediction.data, s.prediction.dtype, first, count, mean);
  }
  if (s.noise) {
    load_std(s, first, count, other);
    for (int i = 0; i < vectors; ++i) y[i] = Lanes::fma(other[i], Lanes::load(noise + i * Lanes::width), y[i]);
  }
  store(s.result.data, s.result.dtype, first, count, y);
  if (terms == nullptr) return;
  load(s.result.data, s.result.dtype, first, count, y);  // as it was rounded
  for (int i = 0; i < vectors; ++i) {
    const F b = Lanes::mul(Lanes::sub(y[i], mean[i]), Lanes::splat(s.inverse_std));
    Lanes::store(terms + i * Lanes::width, base_term<Lanes>(b, Lanes::splat(s.log_std)));
  }
}

// ---- the same for the common steps: no history, no prediction, outputs of one type; its branches are the compiler's
// ----

template <int32_t dtype>
GMM_INLINE F load_vector(const void* data, int64_t i) {
  if constexpr (dtype == GMM_BFLOAT16) {
    return Lanes::load_bfloat16(static_cast<const uint16_t*>(data) + i);
  } else if constexpr (dtype == GMM_FLOAT16) {
    return Lanes::load_float16(static_cast<const uint16_t*>(data) + i);
  } else {
    return Lanes::load(static_cast<const float*>(data) + i);
  }
}

template <int32_t dtype>
GMM_INLINE void store_vector(void* data, int64_t i, F v) {
  if constexpr (dtype == GMM_BFLOAT16) {
    Lanes::store_bfloat16(static_cast<uint16_t*>(data) + i, v);
  } else if constexpr (dtype == GMM_FLOAT16) {
    Lanes::store_float16(static_cast<uint16_t*>(data) + i, v);
  } else {
    Lanes::store(static_cast<float*>(data) + i, v);
  }
}

// Whole vectors, from element `first` to `end`. The std is read at `std`, `std_step` elements further for each element:
// 0 where one vector of the row's sigma serves all.
template <int32_t dtype, int32_t output_dtype, bool guided, bool shifted, bool noisy, bool scored>
void step_vectors(const SampleStep<float>& s, const float* noise, const float* std, int64_t std_step, int64_t first,
                  int64_t end, float* terms) {
  const Row<float> row = s.row;
  const F inverse_std = Lanes::splat(scored ? s.inverse_std : 0), log_std = Lanes::splat(scored ? s.log_std : 0);
  for (int64_t i = first; i < end; i += Lanes::width) {
    const F x = load_vector<dtype>(s.x.data, i);
    F o = load_vector<output_dtype>(s.output.data, i);
    if constexpr (guided) o = guide<Lanes>(row, load_vector<output_dtype>(s.uncond.data, i), o);
    F y = predict_mean<Lanes>(row, x, o, predict_x0<Lanes>(row, x, o));
    const F mean = y;
    if constexpr (shifted) y = Lanes::fma(Lanes::splat(row.offset), Lanes::load(s.offset + i), y);
    const int64_t inside = i - first;
    if constexpr (noisy) {
      y = Lanes::fma(Lanes::load(std + inside * std_step), Lanes::load(noise + inside), y);
    }
    store_vector<dtype>(s.result.data, i, y);
    if constexpr (scored) {
      if constexpr (dtype != GMM_FLOAT32) y = load_vector<dtype>(s.result.data, i);  // as it was rounded
      const F b = Lanes::mul(Lanes::sub(y, mean), inverse_std);
      Lanes::store(terms + inside, base_term<Lanes>(b, log_std));
    }
  }
}

using StepVectors = void (*)(const SampleStep<float>&, const float*, const float*, int64_t, int64_t, int64_t, float*);

template <int32_t dtype, int32_t output, bool guided>
StepVectors step_vectors_of(const SampleStep<float>& s, bool scored) {
  if (scored) return s.noise ? step_vectors<dtype, output, guided, false, true, true> : nullptr;
  constexpr StepVectors all[2][2] = {{step_vectors<dtype, output, guided, false, false, false>,
                                      step_vectors<dtype, output, guided, false, true, false>},
                                     {step_vectors<dtype, output, guided, true, false, false>,
                                      step_vectors<dtype, output, guided, true, true, false>}};
  return all[s.offset != nullptr][s.noise];
}

template <int32_t dtype, int32_t output>
StepVectors step_vectors_of(const SampleStep<float>& s, bool scored) {
  return s.uncond.data == nullptr ? step_vectors_of<dtype, output, false>(s, scored)
                                  : step_vectors_of<dtype, output, true>(s, scored);
}

// The loop for this step, or nullptr: then every group goes through `step_group`.
StepVectors step_vectors_for(const SampleStep<float>& s, int32_t prediction_kind, bool scored) {
  const int32_t dtype = s.x.dtype, output = s.output.dtype;
  const bool one_type = s.uncond.data == nullptr || s.uncond.dtype == output;
  if (!one_type || s.history_count > 0 || prediction_kind != GMM_PREDICTION_NONE) return nullptr;
  if (dtype == GMM_FLOAT32) {
    if (output == GMM_BFLOAT16) return step_vectors_of<GMM_FLOAT32, GMM_BFLOAT16>(s, scored);
    if (output == GMM_FLOAT16) return step_vectors_of<GMM_FLOAT32, GMM_FLOAT16>(s, scored);
    return step_vectors_of<GMM_FLOAT32, GMM_FLOAT32>(s, scored);
  }
  if (output != dtype) return nullptr;
  return dtype == GMM_BFLOAT16 ? step_vectors_of<GMM_BFLOAT16, GMM_BFLOAT16>(s, scored)
                               : step_vectors_of<GMM_FLOAT16, GMM_FLOAT16>(s, scored);
}

// ---- the step, float64 arithmetic with the same float32 noise ----

GMM_INLINE double load_double(const Source& source, int64_t i) {
  return source.dtype == GMM_FLOAT64 ? static_cast<const double*>(source.data)[i]
                                     : static_cast<double>(static_cast<const float*>(source.data)[i]);
}

GMM_INLINE void step_group(const SampleStep<double>& s, int32_t prediction_kind, const float* noise, int64_t first,
                           int count, double* terms) {
  for (int i = 0; i < count; ++i) {
    const int64_t e = first + i;
    const double x = load_double(s.x, e);
    double o = load_double(s.output, e);
    if (s.uncond.data != nullptr) o = guide<DoubleLanes>(s.row, load_double(s.uncond, e), o);
    const double x0 = predict_x0<DoubleLanes>(s.row, x, o);
    double y = predict_mean<DoubleLanes>(s.row, x, o, x0);
    for (int j = 0; j < s.history_count; ++j) {
      y = DoubleLanes::fma(s.history_coefficient[j], load_double(s.history[j], e), y);
    }
    const double mean = y;
    if (s.offset != nullptr) y = DoubleLanes::fma(s.row.offset, s.offset[e], y);
    double* prediction = static_cast<double*>(s.prediction.data);
    if (prediction_kind == GMM_PREDICTION_X0) prediction[e] = x0;
    if (prediction_kind == GMM_PREDICTION_EPSILON) prediction[e] = predict_epsilon<DoubleLanes>(s.row, x, o);
    if (prediction_kind == GMM_PREDICTION_MODEL_OUTPUT) prediction[e] = o;
    if (prediction_kind == GMM_PREDICTION_MEAN) prediction[e] = mean;
    if (s.noise) y = DoubleLanes::fma(e < s.std_elements ? s.std[e] : s.row.sigma, noise[i], y);
    static_cast<double*>(s.result.data)[e] = y;
    if (terms != nullptr) terms[i] = base_term<DoubleLanes>((y - mean) * s.inverse_std, s.log_std);
  }
}

// ---- ranges of groups ----

template <class T>
GMM_INLINE void prefetch_group(const SampleStep<T>& s, int64_t first) {
  constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  prefetch(s.x.data, s.x.dtype, first);
  prefetch(s.result.data, s.result.dtype, first);
  prefetch(s.output.data, s.output.dtype, first);
  prefetch(s.uncond.data, s.uncond.dtype, first);
  prefetch(s.offset, table_dtype, first);
  if (first < s.std_elements) prefetch(s.std, table_dtype, first);
}

// Elements first .. end - 1 of a sample, whose noise has been drawn.
void step_block(const SampleStep<float>& s, StepVectors vectors_of_step, int32_t prediction_kind, const float* noise,
                int64_t first, int64_t end, float* terms) {
  const int64_t whole = first + (end - first) / group * group;
  int64_t done = first;
  const bool all_from_table = s.std_elements >= whole, all_sigma = s.std_elements <= first;
  if (vectors_of_step != nullptr && (all_from_table || all_sigma)) {
    float sigma[Lanes::width];
    Lanes::store(sigma, Lanes::splat(s.row.sigma));
    vectors_of_step(s, noise, all_sigma ? sigma : s.std + first, all_sigma ? 0 : 1, first, whole, terms);
    done = whole;
  }
  for (; done < end; done += group) {
    const int64_t at = done - first;
    step_group(s, prediction_kind, noise + at, done, group_size(end, done), terms == nullptr ? nullptr : terms + at);
  }
}

void step_block(const SampleStep<double>& s, StepVectors, int32_t prediction_kind, const float* noise, int64_t first,
                int64_t end, double* terms) {
  for (int64_t done = first; done < end; done += group) {
    const int64_t at = done - first;
    step_group(s, prediction_kind, noise + at, done, group_size(end, done), terms == nullptr ? nullptr : terms + at);
  }
}

GMM_INLINE StepVectors step_vectors_for(const SampleStep<double>&, int32_t, bool) { return nullptr; }

// Elements first .. end - 1, a tile at most: noise for all, then the rest, so that each of the two loops keeps its own
// constants in registers.
template <class T>
void step_elements(const SampleStep<T>& s, StepVectors vectors_of_step, int32_t prediction_kind, int64_t first,
                   int64_t end, T* terms) {
  float room[noise_room];
  const float* noise = room;
  if (s.noise) {
    noise = draw_noise(s.keys, s.first_element + first, end - first, s.step, Stream::transition, room,
                       [&](int64_t at) { prefetch_group(s, first + at); });
  }
  step_block(s, vectors_of_step, prediction_kind, noise, first, end, terms);
}

template <class T>
void step(const gmm_step_arguments& a, int64_t first_group, int64_t last_group) {
  const int64_t per_sample = (a.elements + group - 1) / group;
  for (int64_t g = first_group; g < last_group;) {
    const int64_t sample = g / per_sample;
    const int64_t stop = (sample + 1) * per_sample < last_group ? (sample + 1) * per_sample : last_group;
    const int64_t last =
        (stop - sample * per_sample) * group < a.elements ? (stop - sample * per_sample) * group : a.elements;
    const SampleStep<T> s = gather<T>(a, sample);
    const StepVectors vectors_of_step = step_vectors_for(s, a.prediction_kind, false);
    for (int64_t first = (g - sample * per_sample) * group; first < last; first += tile) {
      step_elements<T>(s, vectors_of_step, a.prediction_kind, first, first + tile < last ? first + tile : last,
                       nullptr);
    }
    g = stop;
  }
}

// The same, and the sums of tiles that the log-density of the sample drawn is made of.
template <class T>
void step_density_tiles(const gmm_step_arguments& a, int64_t first_tile, int64_t last_tile) {
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t t = first_tile; t < last_tile;) {
    const int64_t sample = t / tiles;
    const SampleStep<T> s = gather<T>(a, sample);
    const StepVectors vectors_of_step = step_vectors_for(s, a.prediction_kind, true);
    T* sums = static_cast<T*>(a.workspace) + sample * (tiles + 1);
    for (; t < last_tile && t / tiles == sample; ++t) {
      const int64_t number = t - sample * tiles, first = number * tile;
      const int64_t end = first + tile < a.elements ? first + tile : a.elements;
      T terms[tile];
      step_elements(s, vectors_of_step, a.prediction_kind, first, end, terms);
      for (int64_t at = end - first; at < tile; ++at) terms[at] = 0;
      sums[number] = sum_tile(terms);
    }
  }
}

template <class T>
void sum_densities(const gmm_step_arguments& a) {
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    T* sums = static_cast<T*>(a.workspace) + sample * (tiles + 1);
    static_cast<T*>(a.log_prob)[sample] = log_density(sum_level(sums, tiles, 1), a.elements);
  }
}

}  // namespace
}  // namespace gmmkernel
