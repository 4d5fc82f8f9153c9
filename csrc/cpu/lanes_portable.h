// One lane of plain C++: every processor, and the meaning of the wider lanes.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

struct PortableLanes : ScalarLanes {
  GMM_INLINE void interleave(f32 (&)[4]) {}
  GMM_INLINE f32 load(const float* p) { return *p; }
  GMM_INLINE void store(float* p, f32 v) { *p = v; }
  GMM_INLINE f32 load_bfloat16(const uint16_t* p) { return bfloat16_to_float(*p); }
  GMM_INLINE void store_bfloat16(uint16_t* p, f32 v) { *p = float_to_bfloat16(v); }
  GMM_INLINE f32 load_float16(const uint16_t* p) { return float16_to_float(*p); }
  GMM_INLINE void store_float16(uint16_t* p, f32 v) { *p = float_to_float16(v); }
};

}  // namespace gmmkernel
