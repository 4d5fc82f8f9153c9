#include "cpu/lanes_portable.h"

#define GMM_LANES PortableLanes
#include "cpu/kernels.inl"

namespace gmmkernel {
const Kernels& portable_kernels() { return kernels; }
}  // namespace gmmkernel
