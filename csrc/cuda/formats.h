// Eight or sixteen bytes of a tensor at a time, in each of the 16- and 32-bit types.
#pragma once

#include "gmmkernel/arithmetic.h"
#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

struct alignas(16) Bits128 {
  uint32_t word[4];
};

struct alignas(16) Floats128 {
  float value[4];
};

struct alignas(8) Bits64 {
  uint32_t word[2];
};

// A pointer that came through shared memory leads to device memory all the same: LDG, not the generic LD.
template <class P>
GMM_INLINE P* global(P* data) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(data));
#endif
  return data;
}

// What a GPU does.
GMM_INLINE void trap_if_misaligned(const void* data, uint32_t bytes) {
  if (reinterpret_cast<uintptr_t>(data) % bytes != 0) __builtin_trap();
}

// One access of 8 or 16 bytes, at an address that is a multiple of its size.
template <class Bits>
GMM_INLINE Bits read_bits(const void* data) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const Bits*>(global(data));
#else
  trap_if_misaligned(data, sizeof(Bits));
  Bits bits;
  __builtin_memcpy(&bits, data, sizeof bits);
  return bits;
#endif
}

template <class Bits>
GMM_INLINE void write_bits(void* data, const Bits& bits) {
#if defined(__CUDA_ARCH__)
  *static_cast<Bits*>(global(data)) = bits;
#else
  trap_if_misaligned(data, sizeof(Bits));
  __builtin_memcpy(data, &bits, sizeof bits);
#endif
}

template <int32_t dtype>
struct Format;

template <>
struct Format<GMM_FLOAT32> {
  using storage = float;
  using bits = Floats128;
  static constexpr int count = 4;
  GMM_INLINE void unpack(const Floats128& bits, float* values) {
    for (int i = 0; i < 4; ++i) values[i] = bits.value[i];
  }
  GMM_INLINE Floats128 pack(const float* values) { return {{values[0], values[1], values[2], values[3]}}; }
};

template <>
struct Format<GMM_BFLOAT16> {
  using storage = uint16_t;
  using bits = Bits128;
  static constexpr int count = 8;
  GMM_INLINE void unpack(const Bits128& bits, float* values) {
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = bits_float(bits.word[i] << 16);
      values[2 * i + 1] = bits_float(bits.word[i] & 0xFFFF0000);
    }
  }
  GMM_INLINE Bits128 pack(const float* values) {
    Bits128 bits;
    for (int i = 0; i < 4; ++i) bits.word[i] = pair(values[2 * i], values[2 * i + 1]);
    return bits;
  }
  GMM_INLINE float widen(uint16_t half) { return bfloat16_to_float(half); }
  GMM_INLINE uint32_t pair(float low, float high) {
#if defined(__CUDA_ARCH__)
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
#endif
  }
};

template <>
struct Format<GMM_FLOAT16> {
  using storage = uint16_t;
  using bits = Bits128;
  static constexpr int count = 8;
  GMM_INLINE void unpack(const Bits128& bits, float* values) {
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = widen(static_cast<uint16_t>(bits.word[i]));
      values[2 * i + 1] = widen(static_cast<uint16_t>(bits.word[i] >> 16));
    }
  }
  GMM_INLINE Bits128 pack(const float* values) {
    Bits128 bits;
    for (int i = 0; i < 4; ++i) bits.word[i] = pair(values[2 * i], values[2 * i + 1]);
    return bits;
  }
  GMM_INLINE float widen(uint16_t half) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    return float16_to_float(half);
#endif
  }
  GMM_INLINE uint32_t pair(float low, float high) {
#if defined(__CUDA_ARCH__)
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return float_to_float16(low) | static_cast<uint32_t>(float_to_float16(high)) << 16;
#endif
  }
};

}  // namespace gmmkernel
