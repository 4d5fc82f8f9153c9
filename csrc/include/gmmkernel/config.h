// Function qualifiers that let one header serve the host compiler and nvcc.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GMM_INLINE static __host__ __device__ __forceinline__
#else
// Always inlined and internal: translation units compiled for different instruction sets must never share a copy.
#define GMM_INLINE static inline __attribute__((always_inline))
#endif
