// One group of numbers at a time, whatever the tensor's type: in, out, and noise.

namespace gmmkernel {
namespace {

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

GMM_INLINE int group_size(int64_t elements, int64_t first) {
  return static_cast<int>(elements - first < group ? elements - first : group);
}

// ---- one sample of a tensor ----

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

// Ask for the cache lines of one group: memory then works while noise is computed.
GMM_INLINE void prefetch(const void* data, int32_t dtype, int64_t first) {
  if (data == nullptr) return;
  const int64_t size = size_of(dtype);
  const char* begin = static_cast<const char*>(data) + first * size;
  for (int64_t byte = 0; byte < group * size; byte += 64) __builtin_prefetch(begin + byte);
}

// ---- noise ----

GMM_INLINE void draw_normals(const PhiloxKeys& keys, uint64_t element, uint32_t step, Stream stream, F (&z)[vectors]) {
  Lanes::u32 words[4];
  random_words<Lanes>(keys, element / 4, step, stream, words);
  normals_from_words<Lanes>(words, z);
  Lanes::interleave(z);
}

// Draw the noise of `count` elements from `element` on, a tile of them at most, by whole groups around them; returns
// where it begins in `room`. `ahead(i)` is called before the group that has the i-th of them is drawn.
template <class Ahead>
GMM_INLINE const float* draw_noise(const PhiloxKeys& keys, uint64_t element, int64_t count, uint32_t step,
                                   Stream stream, float (&room)[noise_room], Ahead ahead) {
  const int64_t lead = static_cast<int64_t>(element % group);
  for (int64_t at = 0; at < lead + count; at += group) {
    ahead(at);
    F z[vectors];
    draw_normals(keys, element - lead + at, step, stream, z);
    for (int i = 0; i < vectors; ++i) Lanes::store(room + at + i * Lanes::width, z[i]);
  }
  return room + lead;
}

GMM_INLINE const float* draw_noise(const PhiloxKeys& keys, uint64_t element, int64_t count, uint32_t step,
                                   Stream stream, float (&room)[noise_room]) {
  return draw_noise(keys, element, count, step, stream, room, [](int64_t) {});
}

void standard_normal(const gmm_normal_arguments& a, int64_t first_group, int64_t last_group) {
  const int64_t per_sample = (a.elements + group - 1) / group;
  for (int64_t g = first_group; g < last_group;) {
    const int64_t sample = g / per_sample;
    const int64_t end = (sample + 1) * per_sample < last_group ? (sample + 1) * per_sample : last_group;
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
    const uint32_t step = static_cast<uint32_t>(index_at(a.step, sample));
    const uint64_t start = static_cast<uint64_t>(index_at(a.first_element, sample));
    const Target result = sample_of(a.result, sample);
    const int64_t last = (end - sample * per_sample) * group;
    for (int64_t first = (g - sample * per_sample) * group; first < last; first += tile) {
      const int64_t stop = last < a.elements ? last : a.elements;
      const int64_t count = stop - first < tile ? stop - first : tile;
      float room[noise_room];
      const float* noise = draw_noise(keys, start + first, count, step, static_cast<Stream>(a.stream), room);
      for (int64_t at = 0; at < count && result.dtype == GMM_FLOAT64; ++at) {
        static_cast<double*>(result.data)[first + at] = noise[at];
      }
      for (int64_t at = 0; at < count && result.dtype != GMM_FLOAT64; at += group) {
        F z[vectors];
        for (int i = 0; i < vectors; ++i) z[i] = Lanes::load(noise + at + i * Lanes::width);
        store(result.data, result.dtype, first + at, group_size(count, at), z);
      }
    }
    g = end;
  }
}

}  // namespace
}  // namespace gmmkernel
