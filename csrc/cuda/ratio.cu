// The kernels of log-ratios and their gradients, bodies of ratio_body.h, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/ratio_body.h"

namespace gmmkernel {
namespace {

template <class T>
__device__ __forceinline__ bool prepare(const gmm_log_ratio_arguments& r, RatioTile<T>& tile) {
  const Place place = here();
  if (place.sample() >= r.step.batch) return false;
  if (place.thread == 0) gather_ratio(r, place, tile);
  __syncthreads();
  return true;
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    ratio_sums_kernel(const __grid_constant__ gmm_log_ratio_arguments r, const __grid_constant__ SumRows rows) {
  __shared__ RatioTile<T> tile;
  __shared__ Columns<T> columns;
  if (!prepare(r, tile)) return;
  sum_ratio_quarters(r, tile, threadIdx.x, columns);
  __syncthreads();
  sum_to_sixteenths(threadIdx.x, columns);
  __syncthreads();
  write_ratio_sums(rows, tile, threadIdx.x, columns);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    log_ratio_kernel(const __grid_constant__ gmm_log_ratio_arguments r, const __grid_constant__ SumRows rows) {
  write_ratio<T>(r, rows, static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    ratio_backward_kernel(const __grid_constant__ gmm_log_ratio_backward_arguments b, const __grid_constant__ Tiling) {
  __shared__ RatioTile<T> tile;
  if (prepare(b.of, tile)) ratio_backward(b, tile, threadIdx.x);
}

template <class T>
cudaError_t launch_ratio(const gmm_log_ratio_arguments& r, cudaStream_t stream) {
  const gmm_step_arguments& a = r.step;
  const SumRows rows = sum_rows(r.workspace, a, ratio_columns);
  const auto sums = reinterpret_cast<const void*>(ratio_sums_kernel<T>);
  const auto ratios = reinterpret_cast<const void*>(log_ratio_kernel<T>);
  cudaError_t error = cudaSuccess;
  if (a.elements > 0) error = launch(sums, a.batch, {a.elements, sum_tile}, r, rows, stream);
  if (r.result == nullptr) return error;
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(ratios, 1, {a.batch * ratio_columns, block_threads}, r, rows, stream);
  return error;
}

}  // namespace

cudaError_t launch_log_ratio(const gmm_log_ratio_arguments& r, cudaStream_t stream) {
  return r.step.sample.dtype == GMM_FLOAT64 ? launch_ratio<double>(r, stream) : launch_ratio<float>(r, stream);
}

cudaError_t launch_log_ratio_backward(const gmm_log_ratio_backward_arguments& b, cudaStream_t stream) {
  const gmm_step_arguments& a = b.of.step;
  const Tiling tiling = {a.elements, sum_tile};
  const auto kernel = a.sample.dtype == GMM_FLOAT64 ? reinterpret_cast<const void*>(ratio_backward_kernel<double>)
                                                    : reinterpret_cast<const void*>(ratio_backward_kernel<float>);
  return launch(kernel, a.batch, tiling, b, tiling, stream);
}

}  // namespace gmmkernel
