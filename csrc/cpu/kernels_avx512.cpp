#include "cpu/lanes_avx512.h"

#define GMM_LANES Avx512Lanes
#include "cpu/kernels.inl"

namespace gmmkernel {
const Kernels& avx512_kernels() { return kernels; }
}  // namespace gmmkernel
