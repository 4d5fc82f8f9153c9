// Neighbouring elements of a tile as a kernel takes them at once: four with any type, alignment and end, looked at as
// they are read, or eight that are known to be whole vectors.
#pragma once

#include "cuda/draws.h"
#include "cuda/operands.h"

namespace gmmkernel {

// Whose type a tensor has.
enum class TypeOf { sample, model_output };

template <TypeOf type, int32_t sample_dtype, int32_t output_dtype>
constexpr int32_t dtype_of = type == TypeOf::sample ? sample_dtype : output_dtype;

// Elements i .. i + 3 of a tile of `count`; zero beyond its end.
template <class T, int32_t sample_dtype, int32_t output_dtype>
struct FourElements {
  static constexpr uint32_t n = 4;
  static constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  struct Read {
    T values[n];
  };

  uint32_t i, count;

  template <TypeOf type>
  GMM_METHOD static int32_t known(int32_t dtype) {
    constexpr int32_t known_dtype = dtype_of<type, sample_dtype, output_dtype>;
    return known_dtype == any_dtype ? dtype : known_dtype;
  }
  template <TypeOf type>
  GMM_METHOD Read read(const void* data, int32_t dtype) const {
    Read read;
    load_four(data, known<type>(dtype), i, count, read.values);
    return read;
  }
  template <TypeOf type>
  GMM_METHOD void unpack(const Read& read, T (&values)[n]) const {
    for (uint32_t j = 0; j < n; ++j) values[j] = read.values[j];
  }
  template <TypeOf type>
  GMM_METHOD void write(void* data, int32_t dtype, const T (&values)[n]) const {
    store_some(data, known<type>(dtype), i, count, values);
  }
  GMM_METHOD void read_table(const T* row, uint32_t end, T (&values)[n]) const {
    load_four(row, table_dtype, i, end, values);
  }
  GMM_METHOD void draw(const PhiloxKeys& keys, uint64_t element, uint32_t step, Stream stream, float (&z)[n]) const {
    draw_normals_from(keys, element + i, step, stream, z);
  }
};

// The i-th element of a tile, of any type.
template <class T>
struct OneElement {
  static constexpr uint32_t n = 1;
  struct Read {
    T value;
  };

  uint32_t i;

  template <TypeOf type>
  GMM_METHOD Read read(const void* data, int32_t dtype) const {
    return {load_element<T>(data, dtype, i)};
  }
  template <TypeOf type>
  GMM_METHOD void unpack(const Read& read, T (&values)[n]) const {
    values[0] = read.value;
  }
  template <TypeOf type>
  GMM_METHOD void write(void* data, int32_t dtype, const T (&values)[n]) const {
    store_some(data, dtype, i, i + 1, values);
  }
};

// Elements i .. i + 7, a multiple of 8, inside a tile that is aligned to 16 bytes in every tensor and whose noise
// begins with a Philox block.
template <int32_t sample_dtype, int32_t output_dtype>
struct EightElements {
  static constexpr uint32_t n = 8;
  template <int32_t dtype>
  static constexpr uint32_t vectors = n / Format<dtype>::count;
  template <int32_t dtype>
  struct Read {
    typename Format<dtype>::bits vector[vectors<dtype>];
  };

  uint32_t i;

  template <int32_t dtype>
  GMM_METHOD Read<dtype> read_type(const void* data) const {
    Read<dtype> read;
    const auto from = static_cast<const typename Format<dtype>::storage*>(data) + i;
    for (uint32_t v = 0; v < vectors<dtype>; ++v) read.vector[v] = load128<dtype>(from + v * Format<dtype>::count, 0);
    return read;
  }
  template <int32_t dtype>
  GMM_METHOD void unpack_type(const Read<dtype>& read, float (&values)[n]) const {
    for (uint32_t v = 0; v < vectors<dtype>; ++v)
      Format<dtype>::unpack(read.vector[v], values + v * Format<dtype>::count);
  }
  template <int32_t dtype>
  GMM_METHOD void write_type(void* data, const float (&values)[n]) const {
    const auto to = static_cast<typename Format<dtype>::storage*>(data) + i;
    for (uint32_t v = 0; v < vectors<dtype>; ++v) {
      constexpr uint32_t count = Format<dtype>::count;
      store128<dtype>(to + v * count, 0, Format<dtype>::pack(values + v * count));
    }
  }

  template <TypeOf type>
  GMM_METHOD auto read(const void* data, int32_t) const {
    return read_type<dtype_of<type, sample_dtype, output_dtype>>(data);
  }
  template <TypeOf type, class Bits>
  GMM_METHOD void unpack(const Bits& read, float (&values)[n]) const {
    unpack_type<dtype_of<type, sample_dtype, output_dtype>>(read, values);
  }
  template <TypeOf type>
  GMM_METHOD void write(void* data, int32_t, const float (&values)[n]) const {
    write_type<dtype_of<type, sample_dtype, output_dtype>>(data, values);
  }
  GMM_METHOD void read_table(const float* row, uint32_t end, float (&values)[n]) const {
    if (i + n <= end) {
      unpack_type<GMM_FLOAT32>(read_type<GMM_FLOAT32>(row), values);
    } else {
      for (uint32_t j = 0; j < n; ++j) values[j] = i + j < end ? global(row)[i + j] : 0.0f;
    }
  }
  GMM_METHOD void draw(const PhiloxKeys& keys, uint64_t element, uint32_t step, Stream stream, float (&z)[n]) const {
    const uint64_t first = element / 4;
    for (uint32_t j = 0; j < n; j += 4) {
      float four[4];
      draw_normals(keys, static_cast<uint32_t>(first) + (i + j) / 4, static_cast<uint32_t>(first >> 32), step, stream,
                   four);
      for (uint32_t e = 0; e < 4; ++e) z[j + e] = four[e];
    }
  }
};

}  // namespace gmmkernel
