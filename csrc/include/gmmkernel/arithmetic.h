// Exact scalar arithmetic: IEEE-754 fused multiply-add, bit casts and the 16-bit formats.
//
// Compile with -ffp-contract=off (host) or -fmad=false (nvcc): a multiply-add happens only where fma is written.
#pragma once

#include "gmmkernel/config.h"

namespace gmmkernel {

GMM_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

GMM_INLINE float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

GMM_INLINE uint64_t double_bits(double value) {
  uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

GMM_INLINE double bits_double(uint64_t bits) {
  double value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// a * b + c rounded once.
GMM_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  // The product is exact in double. Rounding its sum with c to double and then to float is right unless the double lies
  // just halfway between two floats, or below the normal floats, where halfway is elsewhere.
  const double product = static_cast<double>(a) * b;
  const double sum = product + c;
  int64_t bits;
  __builtin_memcpy(&bits, &sum, sizeof bits);
  const bool halfway = (bits & 0x1FFFFFFF) == 0x10000000;
  const bool small = (bits & INT64_MAX) < 0x3810000000000000;  // 2^-126
  if (__builtin_expect(!halfway && !small, 1)) return static_cast<float>(sum);
  // There, TwoSum gives what the sum lost. Cutting the sum towards zero and setting its last bit where anything was
  // lost (rounding to odd) makes the final rounding decide as on the exact sum.
  const double c_part = sum - product;
  const double lost = (product - (sum - c_part)) + (c - c_part);
  int64_t lost_bits;
  __builtin_memcpy(&lost_bits, &lost, sizeof lost_bits);
  const int64_t inexact = (lost < 0) | (lost > 0);
  const int64_t rounded_away = inexact & ((bits ^ lost_bits) < 0);
  bits = (bits - rounded_away) | inexact;
  double odd;
  __builtin_memcpy(&odd, &bits, sizeof odd);
  return static_cast<float>(odd);
#endif
}

GMM_INLINE float bfloat16_to_float(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

GMM_INLINE uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

GMM_INLINE float float16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t fraction = half & 0x3FF;
  if (exponent == 31) return bits_float(sign | 0x7F800000 | (fraction << 13));
  if (exponent == 0) {  // fraction * 2^-24, exact
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return bits_float(sign | float_bits(magnitude));
  }
  return bits_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

GMM_INLINE uint16_t float_to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                       // below 2^-14: a multiple of 2^-24
    // Adding 1/2 leaves the float's last bit worth 2^-24, so the addition itself rounds to nearest even.
    const float shifted = bits_float(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(float_bits(shifted) - 0x3F000000);
  }
  const uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

}  // namespace gmmkernel
