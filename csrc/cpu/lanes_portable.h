// One lane of plain C++: every processor, and the meaning of the wider lanes.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

struct PortableLanes : ScalarLanes {
  GMM_INLINE void interleave(real (&)[4]) {}
  GMM_INLINE real load(const float* p) { return *p; }
  GMM_INLINE void store(float* p, real v) { *p = v; }
  GMM_INLINE real load_bfloat16(const uint16_t* p) { return bfloat16_to_float(*p); }
  GMM_INLINE void store_bfloat16(uint16_t* p, real v) { *p = float_to_bfloat16(v); }
  GMM_INLINE real load_float16(const uint16_t* p) { return float16_to_float(*p); }
  GMM_INLINE void store_float16(uint16_t* p, real v) { *p = float_to_float16(v); }
};

}  // namespace gmmkernel
