// The kernels of training, bodies of training_body.h; and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/training_body.h"

namespace gmmkernel {
namespace {

// The first thread gathers what the tile needs.
template <int32_t dtype, class Arguments, class T>
__device__ __forceinline__ void prepare(const Arguments& arguments, const Tiling& tiling, TrainingTile<T>& tile) {
  if (threadIdx.x == 0) gather<dtype>(arguments, tiling, here(), tile);
  __syncthreads();
}

template <int32_t dtype, class T>
__device__ __forceinline__ void add_noise(const gmm_add_noise_arguments& a, const Tiling& tiling) {
  __shared__ TrainingTile<T> tile;
  prepare<dtype>(a, tiling, tile);
  add_training_noise<dtype>(a, tile, threadIdx.x);
}

template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, 3)
    add_noise_common_kernel(const __grid_constant__ gmm_add_noise_arguments a, const __grid_constant__ Tiling tiling) {
  add_noise<dtype, float>(a, tiling);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    add_noise_any_kernel(const __grid_constant__ gmm_add_noise_arguments a, const __grid_constant__ Tiling tiling) {
  add_noise<any_dtype, T>(a, tiling);
}

template <int32_t dtype, class T>
__device__ __forceinline__ void sum_loss(const gmm_skip_loss_arguments& a, const SumRows& rows) {
  __shared__ TrainingTile<T> tile;
  __shared__ LossSums<T> sums;
  prepare<dtype>(a, {a.training.elements, loss_tiles * sum_tile}, tile);
  if (tile.kind == TrainingKind::nothing) return;
  if (tile.kind == TrainingKind::invalid) {
    fill_with_nan<dtype, T>(tile.result, a.residual.dtype, tile.count, threadIdx.x);
    return;
  }
  sum_loss_of_threads<dtype>(a, tile, threadIdx.x, sums);
  __syncthreads();
  sum_loss_to_sixteenths(threadIdx.x, sums);
  __syncthreads();
  sum_loss_to_classes(threadIdx.x, sums);
  __syncthreads();
  write_loss_sums(rows, here(), sums);
}

template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, 3)
    skip_loss_common_kernel(const __grid_constant__ gmm_skip_loss_arguments a, const __grid_constant__ SumRows rows) {
  sum_loss<dtype, float>(a, rows);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    skip_loss_any_kernel(const __grid_constant__ gmm_skip_loss_arguments a, const __grid_constant__ SumRows rows) {
  sum_loss<any_dtype, T>(a, rows);
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    finish_loss_kernel(const __grid_constant__ gmm_skip_loss_arguments a, const __grid_constant__ SumRows rows) {
  finish_loss<T>(a, rows, static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    scale_residual_kernel(const __grid_constant__ gmm_scale_residual_arguments a,
                          const __grid_constant__ Tiling tiling) {
  scale_residual<T>(a, tiling, here());
}

template <int32_t dtype, class T>
__device__ __forceinline__ void loss_backward(const gmm_skip_loss_backward_arguments& b, const Tiling& tiling) {
  __shared__ TrainingTile<T> tile;
  prepare<dtype>(b, tiling, tile);
  skip_loss_backward<dtype>(b, tile, threadIdx.x);
}

template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, 3)
    skip_loss_backward_common_kernel(const __grid_constant__ gmm_skip_loss_backward_arguments b,
                                     const __grid_constant__ Tiling tiling) {
  loss_backward<dtype, float>(b, tiling);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    skip_loss_backward_any_kernel(const __grid_constant__ gmm_skip_loss_backward_arguments b,
                                  const __grid_constant__ Tiling tiling) {
  loss_backward<any_dtype, T>(b, tiling);
}

const void* kernel_for(const gmm_add_noise_arguments& a) {
  const int32_t dtype = a.sample.dtype;
  if (dtype == GMM_FLOAT64) return reinterpret_cast<const void*>(add_noise_any_kernel<double>);
  if (!is_common(a)) return reinterpret_cast<const void*>(add_noise_any_kernel<float>);
  if (dtype == GMM_BFLOAT16) return reinterpret_cast<const void*>(add_noise_common_kernel<GMM_BFLOAT16>);
  if (dtype == GMM_FLOAT16) return reinterpret_cast<const void*>(add_noise_common_kernel<GMM_FLOAT16>);
  return reinterpret_cast<const void*>(add_noise_common_kernel<GMM_FLOAT32>);
}

const void* kernel_for(const gmm_skip_loss_arguments& a) {
  const int32_t dtype = a.model_output.dtype;
  if (dtype == GMM_FLOAT64) return reinterpret_cast<const void*>(skip_loss_any_kernel<double>);
  if (!is_common(a)) return reinterpret_cast<const void*>(skip_loss_any_kernel<float>);
  if (dtype == GMM_BFLOAT16) return reinterpret_cast<const void*>(skip_loss_common_kernel<GMM_BFLOAT16>);
  if (dtype == GMM_FLOAT16) return reinterpret_cast<const void*>(skip_loss_common_kernel<GMM_FLOAT16>);
  return reinterpret_cast<const void*>(skip_loss_common_kernel<GMM_FLOAT32>);
}

const void* kernel_for(const gmm_skip_loss_backward_arguments& b) {
  const int32_t dtype = b.of.model_output.dtype;
  if (dtype == GMM_FLOAT64) return reinterpret_cast<const void*>(skip_loss_backward_any_kernel<double>);
  if (!is_common(b)) return reinterpret_cast<const void*>(skip_loss_backward_any_kernel<float>);
  if (dtype == GMM_BFLOAT16) return reinterpret_cast<const void*>(skip_loss_backward_common_kernel<GMM_BFLOAT16>);
  if (dtype == GMM_FLOAT16) return reinterpret_cast<const void*>(skip_loss_backward_common_kernel<GMM_FLOAT16>);
  return reinterpret_cast<const void*>(skip_loss_backward_common_kernel<GMM_FLOAT32>);
}

}  // namespace

cudaError_t launch_add_noise(const gmm_add_noise_arguments& a, int multiprocessors, cudaStream_t stream) {
  const uint32_t per_pass = elements_per_pass(a, a.sample.dtype);
  const Tiling tiling = tiling_of(a.training.batch, a.training.elements, per_pass, multiprocessors);
  return launch(kernel_for(a), a.training.batch, tiling, a, tiling, stream);
}

cudaError_t launch_skip_loss(const gmm_skip_loss_arguments& a, cudaStream_t stream) {
  const gmm_training& t = a.training;
  const bool wide = a.model_output.dtype == GMM_FLOAT64;
  const SumRows rows = sum_rows(a.workspace, t.batch, t.elements, 1);
  const auto finish = wide ? reinterpret_cast<const void*>(finish_loss_kernel<double>)
                           : reinterpret_cast<const void*>(finish_loss_kernel<float>);
  cudaError_t error = cudaSuccess;
  if (t.elements > 0) error = launch(kernel_for(a), t.batch, {t.elements, loss_tiles * sum_tile}, a, rows, stream);
  if (error == cudaSuccess) error = launch_sums(rows, wide ? 8 : 4, stream);
  if (error == cudaSuccess) error = launch(finish, 1, {t.batch, block_threads}, a, rows, stream);
  return error;
}

cudaError_t launch_scale_residual(const gmm_scale_residual_arguments& a, int multiprocessors, cudaStream_t stream) {
  const auto kernel = a.residual.dtype == GMM_FLOAT64 ? reinterpret_cast<const void*>(scale_residual_kernel<double>)
                                                      : reinterpret_cast<const void*>(scale_residual_kernel<float>);
  const Tiling tiling = tiling_of(a.training.batch, a.training.elements, 4 * block_threads, multiprocessors);
  return launch(kernel, a.training.batch, tiling, a, tiling, stream);
}

cudaError_t launch_skip_loss_backward(const gmm_skip_loss_backward_arguments& b, int multiprocessors,
                                      cudaStream_t stream) {
  const gmm_training& t = b.of.training;
  const Tiling tiling = tiling_of(t.batch, t.elements, 4 * block_threads, multiprocessors);
  return launch(kernel_for(b), t.batch, tiling, b, tiling, stream);
}

}  // namespace gmmkernel
