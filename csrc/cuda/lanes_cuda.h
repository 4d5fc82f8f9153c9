// One CUDA thread's lanes: ScalarLanes with cheaper instructions where they give the same bits. Compiled for the host,
// the same functions in plain C++, so that kernels can be run and tested without a GPU.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

// The square root from an estimate of its reciprocal: what the compiler makes of sqrt.rn for arguments from 2^-101 on,
// without its branch for the others; the radius' are in [2^-31, 45). csrc/tests/test_cuda_square_root.cpp tries every
// estimate that rsqrt.approx.ftz may return.
GMM_INLINE float square_root_from_estimate(float a, float estimate) {
  const float root = a * estimate;
  const float half = 0.5f * estimate;
  const float error = fused_multiply_add(-root, root, a);
  return fused_multiply_add(error, half, root);
}

struct CudaLanes : ScalarLanes {
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
  GMM_INLINE real sqrt(real a) {
    float estimate;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(a));
    return square_root_from_estimate(a, estimate);
  }
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

}  // namespace gmmkernel
