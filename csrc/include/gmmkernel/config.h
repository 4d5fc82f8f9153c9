// Function qualifiers that let one header serve the host compiler and nvcc.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GMM_INLINE static __host__ __device__ __forceinline__
#define GMM_METHOD __host__ __device__ __forceinline__
#else
// Always inlined and internal: translation units compiled for different instruction sets must never share a copy.
#define GMM_INLINE static inline __attribute__((always_inline))
#define GMM_METHOD inline __attribute__((always_inline))
#endif

#define GMM_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define GMM_UNROLL(count) GMM_PRAGMA(unroll)
#define GMM_NO_UNROLL GMM_PRAGMA(unroll 1)
#else
#define GMM_UNROLL(count) GMM_PRAGMA(GCC unroll count)
#define GMM_NO_UNROLL
#endif
