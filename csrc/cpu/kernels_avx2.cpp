#include "cpu/lanes_avx2.h"

#define GMM_LANES Avx2Lanes
#include "cpu/kernels.inl"

namespace gmmkernel {
const Kernels& avx2_kernels() { return kernels; }
}  // namespace gmmkernel
