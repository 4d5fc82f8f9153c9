// A sample's tensors as a thread block sees them: where a tile begins in each, and how elements are read and written.
#pragma once

#include "cuda/formats.h"
#include "cuda/lanes_cuda.h"
#include "cuda/tiling.h"

namespace gmmkernel {

GMM_INLINE const void* advance(const void* data, int64_t elements, int32_t dtype) {
  return static_cast<const char*>(data) + elements * size_of(dtype);
}

GMM_INLINE void* advance(void* data, int64_t elements, int32_t dtype) {
  return static_cast<char*>(data) + elements * size_of(dtype);
}

// Types known when compiling are left out of the arithmetic of addresses.
constexpr int32_t any_dtype = -1;

template <int32_t dtype>
GMM_INLINE const void* sample_at(const gmm_input& input, int64_t sample, int64_t first) {
  return advance(input.data, sample * input.batch_stride + first, dtype == any_dtype ? input.dtype : dtype);
}

template <int32_t dtype>
GMM_INLINE void* sample_at(const gmm_output& output, int64_t sample, int64_t first) {
  return advance(output.data, sample * output.batch_stride + first, dtype == any_dtype ? output.dtype : dtype);
}

template <int32_t dtype, class Tensor>
GMM_INLINE auto present_at(const Tensor& tensor, int64_t sample, int64_t first) {
  return tensor.data == nullptr ? nullptr : sample_at<dtype>(tensor, sample, first);
}

// ---- of a type known when compiling, aligned to 16 bytes ----

template <int32_t dtype>
GMM_INLINE typename Format<dtype>::bits load128(const void* data, uint32_t i) {
  return read_bits<typename Format<dtype>::bits>(static_cast<const typename Format<dtype>::storage*>(data) + i);
}

template <int32_t dtype>
GMM_INLINE void store128(void* data, uint32_t i, const typename Format<dtype>::bits& bits) {
  write_bits(static_cast<typename Format<dtype>::storage*>(data) + i, bits);
}

// The same where `data` is not nullptr, without a branch: the compiler would make a loop for each set of what is
// wanted.
template <int32_t dtype>
GMM_INLINE void store128_if_wanted(void* data, uint32_t i, const typename Format<dtype>::bits& vector) {
#if defined(__CUDA_ARCH__)
  Bits128 bits;
  __builtin_memcpy(&bits, &vector, sizeof bits);
  const uint32_t wanted = data != nullptr;
  const size_t at = __cvta_generic_to_global(static_cast<typename Format<dtype>::storage*>(data) + i);
  asm volatile(
      "{\n\t"
      ".reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %0, 0;\n\t"
      "@wanted st.global.v4.b32 [%1], {%2, %3, %4, %5};\n\t"
      "}"
      :
      : "r"(wanted), "l"(at), "r"(bits.word[0]), "r"(bits.word[1]), "r"(bits.word[2]), "r"(bits.word[3])
      : "memory");
#else
  if (data != nullptr) store128<dtype>(data, i, vector);
#endif
}

// ---- of any type: it and the alignment are looked at as elements are read ----

template <class T>
GMM_INLINE T load_element(const void* data, int32_t dtype, uint32_t i) {
  switch (dtype) {
    case GMM_BFLOAT16:
      return bfloat16_to_float(static_cast<const uint16_t*>(data)[i]);
    case GMM_FLOAT16:
      return Format<GMM_FLOAT16>::widen(static_cast<const uint16_t*>(data)[i]);
    case GMM_FLOAT64:
      return static_cast<T>(static_cast<const double*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Elements i .. i + 3 of the tile, zero beyond `count`.
template <class T>
GMM_INLINE void load_four(const void* data, int32_t dtype, uint32_t i, uint32_t count, T (&values)[4]) {
  if (i + 4 <= count && dtype == GMM_FLOAT32 && is_aligned(data, 16)) {
    const Floats128 bits = load128<GMM_FLOAT32>(data, i);
    for (int j = 0; j < 4; ++j) values[j] = bits.value[j];
  } else if (i + 4 <= count && dtype == GMM_FLOAT64 && is_aligned(data, 16)) {
    for (int j = 0; j < 4; j += 2) {
      const Bits128 bits = read_bits<Bits128>(static_cast<const double*>(data) + i + j);
      double two[2];
      __builtin_memcpy(two, &bits, 16);
      values[j] = static_cast<T>(two[0]);
      values[j + 1] = static_cast<T>(two[1]);
    }
  } else if (i + 4 <= count && size_of(dtype) == 2 && is_aligned(data, 8)) {
    const Bits64 bits = read_bits<Bits64>(static_cast<const uint16_t*>(data) + i);
    for (int j = 0; j < 4; ++j) {
      const uint16_t half = static_cast<uint16_t>(bits.word[j / 2] >> 16 * (j % 2));
      values[j] = dtype == GMM_BFLOAT16 ? bfloat16_to_float(half) : Format<GMM_FLOAT16>::widen(half);
    }
  } else {
    for (int j = 0; j < 4; ++j) values[j] = i + j < count ? load_element<T>(data, dtype, i + j) : T(0);
  }
}

template <class T>
GMM_INLINE void store_four(void* data, int32_t dtype, uint32_t i, uint32_t count, const T (&values)[4]) {
  if constexpr (sizeof(T) == 8) {
    double* to = static_cast<double*>(data) + i;
    if (i + 4 <= count && is_aligned(data, 16)) {
      for (int j = 0; j < 4; j += 2) {
        Bits128 bits;
        __builtin_memcpy(&bits, values + j, 16);
        write_bits(to + j, bits);
      }
    } else {
      for (int j = 0; j < 4; ++j)
        if (i + j < count) to[j] = values[j];
    }
  } else if (dtype == GMM_FLOAT32) {
    if (i + 4 <= count && is_aligned(data, 16)) {
      store128<GMM_FLOAT32>(data, i, Format<GMM_FLOAT32>::pack(values));
    } else {
      for (int j = 0; j < 4; ++j)
        if (i + j < count) static_cast<float*>(data)[i + j] = values[j];
    }
  } else {
    Bits64 bits;
    for (int j = 0; j < 2; ++j) {
      bits.word[j] = dtype == GMM_BFLOAT16 ? Format<GMM_BFLOAT16>::pair(values[2 * j], values[2 * j + 1])
                                           : Format<GMM_FLOAT16>::pair(values[2 * j], values[2 * j + 1]);
    }
    uint16_t* to = static_cast<uint16_t*>(data) + i;
    if (i + 4 <= count && is_aligned(data, 8)) {
      write_bits(to, bits);
    } else {
      for (int j = 0; j < 4; ++j)
        if (i + j < count) to[j] = static_cast<uint16_t>(bits.word[j / 2] >> 16 * (j % 2));
    }
  }
}

template <class T>
GMM_INLINE void store_element(void* data, int32_t dtype, uint32_t i, T value) {
  switch (dtype) {
    case GMM_BFLOAT16:
      static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(Format<GMM_BFLOAT16>::pair(static_cast<float>(value), 0));
      break;
    case GMM_FLOAT16:
      static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(Format<GMM_FLOAT16>::pair(static_cast<float>(value), 0));
      break;
    case GMM_FLOAT64:
      static_cast<double*>(data)[i] = value;
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

// Beside float64 a gradient may be float32.
template <class T, int n>
GMM_INLINE void store_some(void* data, int32_t dtype, uint32_t i, uint32_t count, const T (&values)[n]) {
  if (sizeof(T) == 8 && dtype != GMM_FLOAT64) {
    float narrow[n];
    for (int j = 0; j < n; ++j) narrow[j] = static_cast<float>(values[j]);
    store_some(data, dtype, i, count, narrow);
  } else if constexpr (n == 4) {
    store_four(data, dtype, i, count, values);
  } else {
    store_element(data, dtype, i, values[0]);
  }
}

template <class T>
struct LanesOf {
  using type = ScalarLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};

}  // namespace gmmkernel
