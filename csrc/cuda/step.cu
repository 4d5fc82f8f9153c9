// The kernels of the step, bodies of step_body.h over a grid of blocks, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/step_body.h"

namespace gmmkernel {
namespace {

// The first warp gathers what the tile needs.
template <bool more, int32_t sample_dtype, int32_t output_dtype, class T>
__device__ __forceinline__ void prepare(const gmm_step_arguments& a, const Tiling& tiling, StepTile<T>& tile) {
  if (threadIdx.x < gathering_lanes) gather<more, sample_dtype, output_dtype>(a, tiling, here(), tile);
  __syncthreads();
}

// The second number of the bounds: blocks that share a multiprocessor, as many as the registers of loops without spills
// allow on every architecture.
template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, dtype == GMM_FLOAT32 ? 3 : 2)
    step_plain_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<float> tile;
  prepare<false, dtype, dtype>(a, tiling, tile);
  step_plain<dtype>(a, tile, threadIdx.x);
}

template <int32_t sample_dtype, int32_t output_dtype>
__global__ void __launch_bounds__(block_threads, 2)
    step_typed_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<float> tile;
  prepare<true, sample_dtype, output_dtype>(a, tiling, tile);
  step_typed<sample_dtype, output_dtype>(a, tile, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    step_any_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<T> tile;
  prepare<true, any_dtype, any_dtype>(a, tiling, tile);
  step_any(a, tile, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    step_density_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ SumRows rows) {
  __shared__ StepTile<T> tile;
  __shared__ DensitySum<T> sum;
  prepare<true, any_dtype, any_dtype>(a, {a.elements, sum_tile}, tile);
  if (tile.kind == TileKind::nothing) return;
  step_scored(a, tile, threadIdx.x, sum);
  __syncthreads();
  sum_terms(threadIdx.x, sum);
  __syncthreads();
  sum_quarters(threadIdx.x, sum);
  __syncthreads();
  write_sum(rows, tile, threadIdx.x, sum);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    step_log_prob_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ SumRows rows) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (sample >= a.batch) return;
  const T base = rows.tiles == 0 ? T(0) : sums_of<T>(rows, sample)[0];
  static_cast<T*>(a.log_prob)[sample] = log_density(base, a.elements);
}

// A launch for the step, one for each level of the tree over tiles, and one for the densities.
template <class T>
cudaError_t launch_scored(const gmm_step_arguments& a, cudaStream_t stream) {
  const SumRows rows = sum_rows(a.workspace, a, 1);
  const auto step = reinterpret_cast<const void*>(step_density_kernel<T>);
  const auto densities = reinterpret_cast<const void*>(step_log_prob_kernel<T>);
  cudaError_t error = launch(step, a.batch, {a.elements, sum_tile}, a, rows, stream);
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(densities, 1, {a.batch, block_threads}, a, rows, stream);
  return error;
}

template <int32_t dtype>
const void* plain_or_typed(bool plain, Types<dtype, dtype>) {
  return plain ? reinterpret_cast<const void*>(step_plain_kernel<dtype>)
               : reinterpret_cast<const void*>(step_typed_kernel<dtype, dtype>);
}

template <int32_t sample_dtype, int32_t output_dtype>
const void* plain_or_typed(bool, Types<sample_dtype, output_dtype>) {
  return reinterpret_cast<const void*>(step_typed_kernel<sample_dtype, output_dtype>);
}

const void* kernel_for(const gmm_step_arguments& a) {
  if (is_typed(a)) {
    return with_types(a.sample.dtype, a.model_output.dtype,
                      [&](auto types) { return plain_or_typed(is_plain(a), types); });
  }
  return a.sample.dtype == GMM_FLOAT64 ? reinterpret_cast<const void*>(step_any_kernel<double>)
                                       : reinterpret_cast<const void*>(step_any_kernel<float>);
}

}  // namespace

cudaError_t launch_step(const gmm_step_arguments& a, int multiprocessors, cudaStream_t stream) {
  if (a.log_prob != nullptr) {
    return a.sample.dtype == GMM_FLOAT64 ? launch_scored<double>(a, stream) : launch_scored<float>(a, stream);
  }
  const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(a, a), multiprocessors);
  return launch(kernel_for(a), a.batch, tiling, a, tiling, stream);
}

}  // namespace gmmkernel
