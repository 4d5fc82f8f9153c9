// The mathematics in philox.h, normal.h and transition.h is written over "lanes": a type that says how many numbers
// one operation handles. These are the scalar lanes, for a CUDA thread and for hosts without vector code; wider lanes
// with the same names are in csrc/cpu.
#pragma once

#include <cmath>

#include "gmmkernel/arithmetic.h"

namespace gmmkernel {

struct ScalarLanes {
  static constexpr int width = 1;

  using real = float;
  using u32 = uint32_t;
  using mask = bool;

  // Philox: `wide` holds one 32-bit state word of every block in flight, `product` its 64-bit product.
  using wide = uint32_t;
  using product = uint64_t;
  GMM_INLINE wide broadcast(uint32_t word) { return word; }
  GMM_INLINE wide block_counters(uint32_t first) { return first; }
  GMM_INLINE product multiply_wide(wide a, uint32_t constant) { return static_cast<uint64_t>(a) * constant; }
  GMM_INLINE wide high(product p) { return static_cast<uint32_t>(p >> 32); }
  GMM_INLINE wide low(product p) { return static_cast<uint32_t>(p); }
  GMM_INLINE wide xor3(wide a, wide b, uint32_t key) { return a ^ b ^ key; }
  GMM_INLINE u32 words(wide w) { return w; }

  GMM_INLINE real splat(float value) { return value; }
  GMM_INLINE real fma(real a, real b, real c) { return fused_multiply_add(a, b, c); }
#if defined(__CUDA_ARCH__)
  GMM_INLINE real mul(real a, real b) { return __fmul_rn(a, b); }
  GMM_INLINE real add(real a, real b) { return __fadd_rn(a, b); }
  GMM_INLINE real sub(real a, real b) { return __fsub_rn(a, b); }
  GMM_INLINE real div(real a, real b) { return __fdiv_rn(a, b); }
  GMM_INLINE real sqrt(real a) { return __fsqrt_rn(a); }
  GMM_INLINE real signed_to_float(u32 a) { return __int2float_rn(static_cast<int32_t>(a)); }
  GMM_INLINE u32 count_leading_zeros(u32 a) { return __clz(static_cast<int>(a)); }
#else
  GMM_INLINE real mul(real a, real b) { return a * b; }
  GMM_INLINE real add(real a, real b) { return a + b; }
  GMM_INLINE real sub(real a, real b) { return a - b; }
  GMM_INLINE real div(real a, real b) { return a / b; }
  GMM_INLINE real sqrt(real a) { return __builtin_sqrtf(a); }
  GMM_INLINE real signed_to_float(u32 a) { return static_cast<float>(static_cast<int32_t>(a)); }
  GMM_INLINE u32 count_leading_zeros(u32 a) { return a == 0 ? 32 : static_cast<uint32_t>(__builtin_clz(a)); }
#endif
  GMM_INLINE u32 shift_left_mod32(u32 a, u32 count) { return a << (count & 31); }
  GMM_INLINE u32 times_four_plus_two(u32 a) { return (a << 2) | 2; }
  GMM_INLINE real flip_sign_by_bit31(real a, u32 word) { return bits_float(float_bits(a) ^ (word & 0x80000000)); }
  GMM_INLINE mask bit30(u32 word) { return (word & 0x40000000) != 0; }
  GMM_INLINE mask less(real a, real b) { return a < b; }
  GMM_INLINE real select(mask m, real yes, real no) { return m ? yes : no; }

  // A positive normal number as significand in [sqrt(1/2), sqrt(2)) times 2^exponent.
  GMM_INLINE void split(real a, real& exponent, real& significand) {
    const uint32_t above = float_bits(a) - 0x3F3504F3;  // the bits of sqrt(1/2)
    exponent = signed_to_float(static_cast<uint32_t>(static_cast<int32_t>(above) >> 23));
    significand = bits_float((above & 0x7FFFFF) + 0x3F3504F3);
  }
  // 2^n of an integer in [-126, 127]: the sum has it, and the exponent's bias, in its lowest bits.
  GMM_INLINE real power_of_two(real n) { return bits_float(float_bits(add(n, 0x1.8p23f + 127)) << 23); }

  // NaN passes through both.
  GMM_INLINE real at_least(real value, real low) { return value < low ? low : value; }
  GMM_INLINE real at_most(real value, real high) { return value > high ? high : value; }
};

// float64 arithmetic of the step: every multiply and add rounds separately, as in the NumPy reference.
struct DoubleLanes {
  using real = double;
  using mask = bool;
  GMM_INLINE double splat(double value) { return value; }
  GMM_INLINE double add(double a, double b) { return a + b; }
  GMM_INLINE double mul(double a, double b) { return a * b; }
  GMM_INLINE double sub(double a, double b) { return a - b; }
  GMM_INLINE double div(double a, double b) { return a / b; }
  GMM_INLINE double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(__dmul_rn(a, b), c);
#else
    return a * b + c;
#endif
  }
  GMM_INLINE mask less(double a, double b) { return a < b; }
  GMM_INLINE double select(mask m, double yes, double no) { return m ? yes : no; }
  GMM_INLINE void split(double a, double& exponent, double& significand) {
    const uint64_t above = double_bits(a) - 0x3FE6A09E667F3BCD;
    exponent = static_cast<double>(static_cast<int32_t>(static_cast<int64_t>(above) >> 52));
    significand = bits_double((above & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD);
  }
  GMM_INLINE double power_of_two(double n) { return bits_double(double_bits(n + (0x1.8p52 + 1023)) << 52); }
  GMM_INLINE double at_least(double value, double low) { return value < low ? low : value; }
  GMM_INLINE double at_most(double value, double high) { return value > high ? high : value; }
};

}  // namespace gmmkernel
