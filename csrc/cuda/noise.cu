// The kernels of noise and of components, bodies of noise_body.h and draws.h, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/noise_body.h"

namespace gmmkernel {
namespace {

// The first thread works out the keys; false: the grid has more blocks than the batch has samples.
__device__ __forceinline__ bool prepare(const gmm_normal_arguments& a, PhiloxKeys& keys) {
  const Place place = here();
  if (place.sample() >= a.batch) return false;
  if (place.thread == 0) keys = philox_keys(static_cast<uint64_t>(a.seeds[place.sample()]));
  __syncthreads();
  return true;
}

template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, 4)
    standard_normal_common_kernel(const __grid_constant__ gmm_normal_arguments a,
                                  const __grid_constant__ Tiling tiling) {
  __shared__ PhiloxKeys keys;
  if (prepare(a, keys)) standard_normal_common<dtype>(a, tiling, here(), keys);
}

__global__ void __launch_bounds__(block_threads)
    standard_normal_any_kernel(const __grid_constant__ gmm_normal_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ PhiloxKeys keys;
  if (prepare(a, keys)) standard_normal_any(a, tiling, here(), keys);
}

__global__ void __launch_bounds__(block_threads)
    draw_components_kernel(const __grid_constant__ gmm_component_arguments a) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (sample < a.batch) draw_component_body(a, sample);
}

const void* kernel_for(const gmm_normal_arguments& a) {
  if (!is_common(a)) return reinterpret_cast<const void*>(standard_normal_any_kernel);
  switch (a.result.dtype) {
    case GMM_BFLOAT16:
      return reinterpret_cast<const void*>(standard_normal_common_kernel<GMM_BFLOAT16>);
    case GMM_FLOAT16:
      return reinterpret_cast<const void*>(standard_normal_common_kernel<GMM_FLOAT16>);
    default:
      return reinterpret_cast<const void*>(standard_normal_common_kernel<GMM_FLOAT32>);
  }
}

}  // namespace

cudaError_t launch_standard_normal(const gmm_normal_arguments& a, int multiprocessors, cudaStream_t stream) {
  const uint32_t per_pass = elements_per_pass(a, a.result.dtype);
  const Tiling tiling = tiling_of(a.batch, a.elements, per_pass, multiprocessors);
  return launch(kernel_for(a), a.batch, tiling, a, tiling, stream);
}

cudaError_t launch_draw_components(const gmm_component_arguments& a, cudaStream_t stream) {
  return launch(reinterpret_cast<const void*>(draw_components_kernel), a.batch, a, stream);
}

}  // namespace gmmkernel
