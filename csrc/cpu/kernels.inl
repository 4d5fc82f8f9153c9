// The CPU loops, compiled once for each instruction set by the file that includes this one and names GMM_LANES.
//
// Everything is internal to that file, and nothing from the standard library is called: an inline function compiled
// here for AVX-512 must not become the copy that the linker keeps for every processor.

#include "common/layout.h"
#include "cpu/kernels.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {
namespace {

using Lanes = GMM_LANES;
using F = Lanes::f32;

constexpr int vectors = 4;  // one vector for each word of a Philox block
constexpr int group = vectors * Lanes::width;
constexpr int noise_groups = 16;  // how many groups' noise is drawn ahead

// ---- one group of numbers in and out, whatever the tensor's type ----

GMM_INLINE float load_number(const void* data, int32_t dtype, int64_t i) {
  switch (dtype) {
    case GMM_BFLOAT16:
      return bfloat16_to_float(static_cast<const uint16_t*>(data)[i]);
    case GMM_FLOAT16:
      return float16_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// The last group of a sample, padded with zeros. Out of line: it is rare, and large once inlined.
__attribute__((noinline)) void load_partial(const void* data, int32_t dtype, int64_t first, int count,
                                            F (&v)[vectors]) {
  float padded[group] = {};
  for (int i = 0; i < count; ++i) padded[i] = load_number(data, dtype, first + i);
  for (int i = 0; i < vectors; ++i) v[i] = Lanes::load(padded + i * Lanes::width);
}

__attribute__((noinline)) void store_partial(void* data, int32_t dtype, int64_t first, int count,
                                             const F (&v)[vectors]) {
  float padded[group];
  for (int i = 0; i < vectors; ++i) Lanes::store(padded + i * Lanes::width, v[i]);
  for (int i = 0; i < count; ++i) {
    switch (dtype) {
      case GMM_BFLOAT16:
        static_cast<uint16_t*>(data)[first + i] = float_to_bfloat16(padded[i]);
        break;
      case GMM_FLOAT16:
        static_cast<uint16_t*>(data)[first + i] = float_to_float16(padded[i]);
        break;
      default:
        static_cast<float*>(data)[first + i] = padded[i];
    }
  }
}

// Elements first .. first + count - 1 of a sample that starts at `data`.
GMM_INLINE void load(const void* data, int32_t dtype, int64_t first, int count, F (&v)[vectors]) {
  if (count < group) {
    load_partial(data, dtype, first, count, v);
    return;
  }
  switch (dtype) {
    case GMM_BFLOAT16:
      for (int i = 0; i < vectors; ++i)
        v[i] = Lanes::load_bfloat16(static_cast<const uint16_t*>(data) + first + i * Lanes::width);
      break;
    case GMM_FLOAT16:
      for (int i = 0; i < vectors; ++i)
        v[i] = Lanes::load_float16(static_cast<const uint16_t*>(data) + first + i * Lanes::width);
      break;
    default:
      for (int i = 0; i < vectors; ++i) v[i] = Lanes::load(static_cast<const float*>(data) + first + i * Lanes::width);
  }
}

GMM_INLINE void store(void* data, int32_t dtype, int64_t first, int count, const F (&v)[vectors]) {
  if (count < group) {
    store_partial(data, dtype, first, count, v);
    return;
  }
  switch (dtype) {
    case GMM_BFLOAT16:
      for (int i = 0; i < vectors; ++i)
        Lanes::store_bfloat16(static_cast<uint16_t*>(data) + first + i * Lanes::width, v[i]);
      break;
    case GMM_FLOAT16:
      for (int i = 0; i < vectors; ++i)
        Lanes::store_float16(static_cast<uint16_t*>(data) + first + i * Lanes::width, v[i]);
      break;
    default:
      for (int i = 0; i < vectors; ++i) Lanes::store(static_cast<float*>(data) + first + i * Lanes::width, v[i]);
  }
}

// ---- noise ----

GMM_INLINE void draw_normals(const PhiloxKeys& keys, int64_t element, uint32_t step, Stream stream, F (&z)[vectors]) {
  Lanes::u32 words[4];
  random_words<Lanes>(keys, static_cast<uint64_t>(element) / 4, step, stream, words);
  normals_from_words<Lanes>(words, z);
  Lanes::interleave(z);
}

GMM_INLINE void draw_normals(const PhiloxKeys& keys, int64_t element, uint32_t step, float* noise) {
  F z[vectors];
  draw_normals(keys, element, step, Stream::transition, z);
  for (int i = 0; i < vectors; ++i) Lanes::store(noise + i * Lanes::width, z[i]);
}

// ---- what a step needs of one sample, gathered before its groups ----

struct Source {
  const void* data;
  int32_t dtype;
};

struct Target {
  void* data;
  int32_t dtype;
};

GMM_INLINE Source sample_of(const gmm_input& input, int64_t sample) {
  if (input.data == nullptr) return {nullptr, input.dtype};
  const int64_t bytes = sample * input.batch_stride * size_of(input.dtype);
  return {static_cast<const char*>(input.data) + bytes, input.dtype};
}

GMM_INLINE Target sample_of(const gmm_output& output, int64_t sample) {
  if (output.data == nullptr) return {nullptr, output.dtype};
  const int64_t bytes = sample * output.batch_stride * size_of(output.dtype);
  return {static_cast<char*>(output.data) + bytes, output.dtype};
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
  const int64_t row = index_at(a.row, sample);
  s.row = static_cast<const Row<T>*>(a.coefficients)[row];
  s.keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
  s.step = static_cast<uint32_t>(index_at(a.step, sample));
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
    int64_t k = 0;
    if (m.components > 1) {
      const int64_t* thresholds = m.thresholds + table_row(m.threshold_rows, row) * (m.components - 1);
      k = choose_component(s.keys, s.step, thresholds, m.components);
    }
    if (s.row.offset != 0) {
      s.offset = static_cast<const T*>(m.offsets) + (table_row(m.offset_rows, row) * m.components + k) * a.elements;
    }
    const int64_t std_k = m.std_components == 1 ? 0 : k;
    s.std = static_cast<const T*>(m.std) + (table_row(m.std_rows, row) * m.std_components + std_k) * m.std_elements;
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

GMM_INLINE int group_size(int64_t elements, int64_t first) {
  return static_cast<int>(elements - first < group ? elements - first : group);
}

// Ask for the cache lines of one group: memory then works while noise is computed.
GMM_INLINE void prefetch(const void* data, int32_t dtype, int64_t first) {
  if (data == nullptr) return;
  const int64_t size = size_of(dtype);
  const char* begin = static_cast<const char*>(data) + first * size;
  for (int64_t byte = 0; byte < group * size; byte += 64) __builtin_prefetch(begin + byte);
}

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

void standard_normal(const gmm_normal_arguments& a, int64_t first_group, int64_t last_group) {
  const int64_t per_sample = (a.elements + group - 1) / group;
  for (int64_t g = first_group; g < last_group;) {
    const int64_t sample = g / per_sample;
    const int64_t end = (sample + 1) * per_sample < last_group ? (sample + 1) * per_sample : last_group;
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
    const uint32_t step = static_cast<uint32_t>(index_at(a.step, sample));
    const Target result = sample_of(a.result, sample);
    for (; g < end; ++g) {
      const int64_t first = (g - sample * per_sample) * group;
      const int count = group_size(a.elements, first);
      F z[vectors];
      draw_normals(keys, first, step, static_cast<Stream>(a.stream), z);
      if (result.dtype == GMM_FLOAT64) {
        float values[group];
        for (int i = 0; i < vectors; ++i) Lanes::store(values + i * Lanes::width, z[i]);
        for (int i = 0; i < count; ++i) static_cast<double*>(result.data)[first + i] = values[i];
      } else {
        store(result.data, result.dtype, first, count, z);
      }
    }
  }
}

// ---- sums in the fixed order: a tile of 1024 is halved until one number is left; tiles' sums form the next level ----

constexpr int tile = 1024;

GMM_INLINE double sum_tile(double (&values)[tile]) {
  for (int width = tile / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  }
  return values[0];
}

double dot(const double* a, const double* b, int64_t count, double* partial) {
  double values[tile];
  int64_t tiles = (count + tile - 1) / tile;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * tile;
    const int64_t inside = count - first < tile ? count - first : tile;
    for (int64_t i = 0; i < inside; ++i) values[i] = a[first + i] * b[first + i];
    for (int64_t i = inside; i < tile; ++i) values[i] = 0;
    partial[t] = sum_tile(values);
  }
  while (tiles > 1) {
    const int64_t above = (tiles + tile - 1) / tile;
    for (int64_t t = 0; t < above; ++t) {
      const int64_t first = t * tile;
      const int64_t inside = tiles - first < tile ? tiles - first : tile;
      for (int64_t i = 0; i < inside; ++i) values[i] = partial[first + i];
      for (int64_t i = inside; i < tile; ++i) values[i] = 0;
      partial[t] = sum_tile(values);
    }
    tiles = above;
  }
  return partial[0];
}

void subtract_scaled(double* row, const double* other, double scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] -= scale * other[i];
}

const Kernels kernels = {group, step<float>, step<double>, standard_normal, dot, subtract_scaled};

}  // namespace
}  // namespace gmmkernel
