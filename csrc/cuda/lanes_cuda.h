// One CUDA thread's lanes: ScalarLanes with cheaper instructions where they give the same bits. Compiled for the host,
// the same functions in plain C++, so that kernels can be run and tested without a GPU.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

// The square root from an estimate of its reciprocal: what the compiler makes of sqrt.rn for arguments from 2^-101 on,
// without its branch for the others; the radius' are in [2^-31, 45). csrc/tests/test_cuda_square_root.cpp tries every
// estimate that rsqrt.approx.ftz may return.
template <class Lanes>
GMM_INLINE typename Lanes::real square_root_from_estimate(typename Lanes::real a, typename Lanes::real estimate) {
  const typename Lanes::real root = Lanes::mul(a, estimate);
  const typename Lanes::real minus_half = Lanes::mul(Lanes::splat(-0.5f), estimate);
  const typename Lanes::real excess = Lanes::fma(root, root, Lanes::negative(a));
  return Lanes::fma(excess, minus_half, root);
}

struct CudaLanes : ScalarLanes {
  GMM_INLINE real negative(real a) { return -a; }
  // Two numbers' larger and smaller, NaN if either is NaN; of two zeros the larger is +0. So these clip as ScalarLanes
  // do for bounds that are neither NaN nor zero.
#if defined(__CUDA_ARCH__)
  GMM_INLINE real at_least(real value, real low) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(low));
    return result;
  }
  GMM_INLINE real at_most(real value, real high) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(high));
    return result;
  }
#else
  GMM_INLINE real at_least(real value, real low) {
    if (value == low) return bits_float(float_bits(value) & float_bits(low));
    return value != value || value > low ? value : low;
  }
  GMM_INLINE real at_most(real value, real high) {
    if (value == high) return bits_float(float_bits(value) | float_bits(high));
    return value != value || value < high ? value : high;
  }
#endif

#if defined(__CUDA_ARCH__)
  GMM_INLINE real reciprocal_root_estimate(real a) {
    float estimate;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(a));
    return estimate;
  }
  GMM_INLINE real sqrt(real a) { return square_root_from_estimate<CudaLanes>(a, reciprocal_root_estimate(a)); }
  // The bit by itself, out of the compiler's sight: it would make two instructions of the test below, not one.
  using mask = uint32_t;
  GMM_INLINE mask bit30(u32 word) {
    uint32_t bit;
    asm("and.b32 %0, %1, 0x40000000;" : "=r"(bit) : "r"(word));
    return bit;
  }
  GMM_INLINE real select(mask m, real yes, real no) { return m != 0 ? yes : no; }
#endif
};

// Two numbers side by side, each rounded by itself. From sm_100 on one instruction multiplies, and adds, both; whatever
// has none is done to one after the other.
template <class Lanes>
struct Pairs {
  struct real {
    float first, second;
  };
  struct u32 {
    uint32_t first, second;
  };
  struct mask {
    typename Lanes::mask first, second;
  };

  GMM_INLINE real splat(float value) { return {value, value}; }
  GMM_INLINE real negative(real a) { return {-a.first, -a.second}; }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  GMM_INLINE real fma(real a, real b, real c) {
    real sum;
    asm("{\n.reg .b64 a, b, c;\n"
        "mov.b64 a, {%2, %3};\nmov.b64 b, {%4, %5};\nmov.b64 c, {%6, %7};\n"
        "fma.rn.f32x2 c, a, b, c;\n"
        "mov.b64 {%0, %1}, c;\n}"
        : "=f"(sum.first), "=f"(sum.second)
        : "f"(a.first), "f"(a.second), "f"(b.first), "f"(b.second), "f"(c.first), "f"(c.second));
    return sum;
  }
  GMM_INLINE real mul(real a, real b) {
    real product;
    asm("{\n.reg .b64 a, b;\n"
        "mov.b64 a, {%2, %3};\nmov.b64 b, {%4, %5};\n"
        "mul.rn.f32x2 a, a, b;\n"
        "mov.b64 {%0, %1}, a;\n}"
        : "=f"(product.first), "=f"(product.second)
        : "f"(a.first), "f"(a.second), "f"(b.first), "f"(b.second));
    return product;
  }
  GMM_INLINE real sqrt(real a) {
    const real estimate = {Lanes::reciprocal_root_estimate(a.first), Lanes::reciprocal_root_estimate(a.second)};
    return square_root_from_estimate<Pairs>(a, estimate);
  }
#else
  GMM_INLINE real fma(real a, real b, real c) {
    return {Lanes::fma(a.first, b.first, c.first), Lanes::fma(a.second, b.second, c.second)};
  }
  GMM_INLINE real mul(real a, real b) { return {Lanes::mul(a.first, b.first), Lanes::mul(a.second, b.second)}; }
  GMM_INLINE real sqrt(real a) { return {Lanes::sqrt(a.first), Lanes::sqrt(a.second)}; }
#endif
  GMM_INLINE real sub(real a, real b) { return {Lanes::sub(a.first, b.first), Lanes::sub(a.second, b.second)}; }
  GMM_INLINE real signed_to_float(u32 a) { return {Lanes::signed_to_float(a.first), Lanes::signed_to_float(a.second)}; }
  GMM_INLINE u32 count_leading_zeros(u32 a) {
    return {Lanes::count_leading_zeros(a.first), Lanes::count_leading_zeros(a.second)};
  }
  GMM_INLINE u32 shift_left_mod32(u32 a, u32 count) {
    return {Lanes::shift_left_mod32(a.first, count.first), Lanes::shift_left_mod32(a.second, count.second)};
  }
  GMM_INLINE u32 times_four_plus_two(u32 a) {
    return {Lanes::times_four_plus_two(a.first), Lanes::times_four_plus_two(a.second)};
  }
  GMM_INLINE real flip_sign_by_bit31(real a, u32 word) {
    return {Lanes::flip_sign_by_bit31(a.first, word.first), Lanes::flip_sign_by_bit31(a.second, word.second)};
  }
  GMM_INLINE mask bit30(u32 word) { return {Lanes::bit30(word.first), Lanes::bit30(word.second)}; }
  GMM_INLINE real select(mask m, real yes, real no) {
    return {Lanes::select(m.first, yes.first, no.first), Lanes::select(m.second, yes.second, no.second)};
  }
  GMM_INLINE real at_least(real a, real low) {
    return {Lanes::at_least(a.first, low.first), Lanes::at_least(a.second, low.second)};
  }
  GMM_INLINE real at_most(real a, real high) {
    return {Lanes::at_most(a.first, high.first), Lanes::at_most(a.second, high.second)};
  }
};

// to[j] = f(lanes, from[j]...) for each j, neighbours of float32 as a pair; n is even.
template <class Lanes, uint32_t n, class F, class... From>
GMM_INLINE void apply(F&& f, float (&to)[n], const From&... from) {
  using Both = Pairs<Lanes>;
  for (uint32_t j = 0; j < n; j += 2) {
    const typename Both::real two = f(Both(), typename Both::real{from[j], from[j + 1]}...);
    to[j] = two.first;
    to[j + 1] = two.second;
  }
}

template <class Lanes, uint32_t n, class F, class... From>
GMM_INLINE void apply(F&& f, double (&to)[n], const From&... from) {
  for (uint32_t j = 0; j < n; ++j) to[j] = f(Lanes(), static_cast<double>(from[j])...);
}

}  // namespace gmmkernel
