// The step.

namespace gmmkernel {
namespace {

// ---- what a step needs of one sample, gathered before its groups ----

// Which entries of the tables a sample uses.
struct Entries {
  int64_t row;
  PhiloxKeys keys;
  uint32_t step;
  int64_t component, offset_row, std_row;  // rows of [offset_rows * K] and [std_rows * std_components]
};

GMM_INLINE Entries entries_of(const gmm_step_arguments& a, int64_t sample) {
  Entries e;
  e.row = index_at(a.row, sample);
  e.keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
  e.step = static_cast<uint32_t>(index_at(a.step, sample));
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
  Source x, output, uncond;
  Source history[GMM_MAX_HISTORY];  // those whose coefficient is not 0
  T history_coefficient[GMM_MAX_HISTORY];
  int history_count;
  const T* offset;  // nullptr: no mixture, or switched off by the row
  const T* std;
  int64_t std_elements;
  bool noise;
  Target result, prediction;
};

template <class T>
GMM_INLINE SampleStep<T> gather(const gmm_step_arguments& a, int64_t sample) {
  SampleStep<T> s;
  const Entries entries = entries_of(a, sample);
  s.row = static_cast<const Row<T>*>(a.coefficients)[entries.row];
  s.keys = entries.keys;
  s.step = entries.step;
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

GMM_INLINE void step_group(const SampleStep<float>& s, int32_t prediction_kind, const float* noise, int64_t first,
                           int count) {
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
  }
  if (s.noise) {
    load_std(s, first, count, other);
    for (int i = 0; i < vectors; ++i) y[i] = Lanes::fma(other[i], Lanes::load(noise + i * Lanes::width), y[i]);
  }
  store(s.result.data, s.result.dtype, first, count, y);
}

// ---- the same for the common steps: one type, no history, no prediction; its branches are the compiler's ----

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
template <int32_t dtype, bool guided, bool shifted, bool noisy>
void step_vectors(const SampleStep<float>& s, const float* noise, const float* std, int64_t std_step, int64_t first,
                  int64_t end) {
  const Row<float> row = s.row;
  for (int64_t i = first; i < end; i += Lanes::width) {
    const F x = load_vector<dtype>(s.x.data, i);
    F o = load_vector<dtype>(s.output.data, i);
    if constexpr (guided) o = guide<Lanes>(row, load_vector<dtype>(s.uncond.data, i), o);
    F y = predict_mean<Lanes>(row, x, o, predict_x0<Lanes>(row, x, o));
    if constexpr (shifted) y = Lanes::fma(Lanes::splat(row.offset), Lanes::load(s.offset + i), y);
    if constexpr (noisy) {
      const int64_t inside = i - first;
      y = Lanes::fma(Lanes::load(std + inside * std_step), Lanes::load(noise + inside), y);
    }
    store_vector<dtype>(s.result.data, i, y);
  }
}

using StepVectors = void (*)(const SampleStep<float>&, const float*, const float*, int64_t, int64_t, int64_t);

template <int32_t dtype>
StepVectors step_vectors_of(const SampleStep<float>& s) {
  constexpr StepVectors all[2][2][2] = {
      {{step_vectors<dtype, false, false, false>, step_vectors<dtype, false, false, true>},
       {step_vectors<dtype, false, true, false>, step_vectors<dtype, false, true, true>}},
      {{step_vectors<dtype, true, false, false>, step_vectors<dtype, true, false, true>},
       {step_vectors<dtype, true, true, false>, step_vectors<dtype, true, true, true>}}};
  return all[s.uncond.data != nullptr][s.offset != nullptr][s.noise];
}

// The loop for this step, or nullptr: then every group goes through `step_group`.
StepVectors step_vectors_for(const SampleStep<float>& s, int32_t prediction_kind) {
  const int32_t dtype = s.x.dtype;
  const bool one_type = s.output.dtype == dtype && (s.uncond.data == nullptr || s.uncond.dtype == dtype);
  if (!one_type || s.history_count > 0 || prediction_kind != GMM_PREDICTION_NONE) return nullptr;
  switch (dtype) {
    case GMM_BFLOAT16:
      return step_vectors_of<GMM_BFLOAT16>(s);
    case GMM_FLOAT16:
      return step_vectors_of<GMM_FLOAT16>(s);
    default:
      return step_vectors_of<GMM_FLOAT32>(s);
  }
}

// ---- the step, float64 arithmetic with the same float32 noise ----

GMM_INLINE double load_double(const Source& source, int64_t i) {
  return source.dtype == GMM_FLOAT64 ? static_cast<const double*>(source.data)[i]
                                     : static_cast<double>(static_cast<const float*>(source.data)[i]);
}

GMM_INLINE void step_group(const SampleStep<double>& s, int32_t prediction_kind, const float* noise, int64_t first,
                           int count) {
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
    if (s.offset != nullptr) y = DoubleLanes::fma(s.row.offset, s.offset[e], y);
    double* prediction = static_cast<double*>(s.prediction.data);
    if (prediction_kind == GMM_PREDICTION_X0) prediction[e] = x0;
    if (prediction_kind == GMM_PREDICTION_EPSILON) prediction[e] = predict_epsilon<DoubleLanes>(s.row, x, o);
    if (prediction_kind == GMM_PREDICTION_MODEL_OUTPUT) prediction[e] = o;
    if (s.noise) y = DoubleLanes::fma(e < s.std_elements ? s.std[e] : s.row.sigma, noise[i], y);
    static_cast<double*>(s.result.data)[e] = y;
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
                int64_t first, int64_t end) {
  const int64_t whole = first + (end - first) / group * group;
  int64_t done = first;
  const bool all_from_table = s.std_elements >= whole, all_sigma = s.std_elements <= first;
  if (vectors_of_step != nullptr && (all_from_table || all_sigma)) {
    float sigma[Lanes::width];
    Lanes::store(sigma, Lanes::splat(s.row.sigma));
    vectors_of_step(s, noise, all_sigma ? sigma : s.std + first, all_sigma ? 0 : 1, first, whole);
    done = whole;
  }
  for (; done < end; done += group) step_group(s, prediction_kind, noise + (done - first), done, group_size(end, done));
}

void step_block(const SampleStep<double>& s, StepVectors, int32_t prediction_kind, const float* noise, int64_t first,
                int64_t end) {
  for (int64_t done = first; done < end; done += group) {
    step_group(s, prediction_kind, noise + (done - first), done, group_size(end, done));
  }
}

GMM_INLINE StepVectors step_vectors_for(const SampleStep<double>&, int32_t) { return nullptr; }

template <class T>
void step(const gmm_step_arguments& a, int64_t first_group, int64_t last_group) {
  const int64_t per_sample = (a.elements + group - 1) / group;
  for (int64_t g = first_group; g < last_group;) {
    const int64_t sample = g / per_sample;
    const int64_t stop = (sample + 1) * per_sample < last_group ? (sample + 1) * per_sample : last_group;
    const int64_t last =
        (stop - sample * per_sample) * group < a.elements ? (stop - sample * per_sample) * group : a.elements;
    const SampleStep<T> s = gather<T>(a, sample);
    const StepVectors vectors_of_step = step_vectors_for(s, a.prediction_kind);
    // Noise for a block, then the block: each of the two loops keeps its own constants in registers.
    constexpr int64_t block = noise_groups * group;
    for (int64_t first = (g - sample * per_sample) * group; first < last; first += block) {
      const int64_t end = first + block < last ? first + block : last;
      float noise[block];
      if (s.noise) {
        for (int64_t i = first; i < end; i += group) {
          prefetch_group(s, i);
          draw_normals(s.keys, i, s.step, noise + (i - first));
        }
      }
      step_block(s, vectors_of_step, a.prediction_kind, noise, first, end);
    }
    g = stop;
  }
}

}  // namespace
}  // namespace gmmkernel
