// The kernels of the step, bodies of step_body.h over a grid of blocks, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/step_body.h"

namespace gmmkernel {
namespace {

// The first warp gathers what the tile needs.
template <int32_t dtype, class T>
__device__ __forceinline__ void prepare(const gmm_step_arguments& a, const Tiling& tiling, StepTile<T>& tile) {
  if (threadIdx.x < gathering_lanes) gather<dtype>(a, tiling, here(), tile);
  __syncthreads();
}

// Blocks that share a multiprocessor: as many as the registers of loops without spills allow on every architecture.
constexpr int resident_blocks = 3;

template <int32_t dtype, bool guided>
__global__ void __launch_bounds__(block_threads, guided ? 2 : resident_blocks)
    step_common_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<float> tile;
  prepare<dtype>(a, tiling, tile);
  step_common<dtype, guided>(a, tile, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    step_any_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<T> tile;
  prepare<any_dtype>(a, tiling, tile);
  step_any(a, tile, threadIdx.x);
}

template <int32_t dtype>
const void* common_kernel(bool guided) {
  return guided ? reinterpret_cast<const void*>(step_common_kernel<dtype, true>)
                : reinterpret_cast<const void*>(step_common_kernel<dtype, false>);
}

const void* kernel_for(const gmm_step_arguments& a) {
  const bool guided = a.model_output_uncond.data != nullptr;
  if (is_common(a)) {
    switch (a.sample.dtype) {
      case GMM_BFLOAT16:
        return common_kernel<GMM_BFLOAT16>(guided);
      case GMM_FLOAT16:
        return common_kernel<GMM_FLOAT16>(guided);
      default:
        return common_kernel<GMM_FLOAT32>(guided);
    }
  }
  return a.sample.dtype == GMM_FLOAT64 ? reinterpret_cast<const void*>(step_any_kernel<double>)
                                       : reinterpret_cast<const void*>(step_any_kernel<float>);
}

}  // namespace

cudaError_t launch_step(const gmm_step_arguments& a, int multiprocessors, cudaStream_t stream) {
  const uint32_t per_pass = elements_per_pass(a, a.sample.dtype);
  const Tiling tiling = tiling_of(a.batch, a.elements, per_pass, multiprocessors);
  return launch(kernel_for(a), a.batch, tiling, a, tiling, stream);
}

}  // namespace gmmkernel
