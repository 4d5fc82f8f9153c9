// The kernels of the step's gradients, bodies of backward_body.h, sums_body.h and tables_body.h; and their launches.

#include "cuda/backward_body.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/tables_body.h"

namespace gmmkernel {
namespace {

template <int32_t dtype>
__global__ void __launch_bounds__(block_threads, 3)
    backward_plain_kernel(const __grid_constant__ gmm_step_backward_arguments b,
                          const __grid_constant__ Tiling tiling) {
  __shared__ BackwardTile<float> tile;
  if (threadIdx.x < gathering_lanes) gather<false, dtype, dtype, false>(b, tiling, here(), tile);
  __syncthreads();
  backward_plain<dtype>(b, tile, threadIdx.x);
}

template <int32_t sample_dtype, int32_t output_dtype>
__global__ void __launch_bounds__(block_threads, 2)
    backward_typed_kernel(const __grid_constant__ gmm_step_backward_arguments b,
                          const __grid_constant__ Tiling tiling) {
  __shared__ BackwardTile<float> tile;
  if (threadIdx.x < gathering_lanes) gather<true, sample_dtype, output_dtype, false>(b, tiling, here(), tile);
  __syncthreads();
  backward_typed<sample_dtype, output_dtype>(b, tile, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    backward_any_kernel(const __grid_constant__ gmm_step_backward_arguments b, const __grid_constant__ Tiling tiling) {
  __shared__ BackwardTile<T> tile;
  if (threadIdx.x < gathering_lanes) gather<true, any_dtype, any_dtype, false>(b, tiling, here(), tile);
  __syncthreads();
  backward_any(b, tile, threadIdx.x);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    backward_sums_kernel(const __grid_constant__ gmm_step_backward_arguments b, const __grid_constant__ SumRows rows) {
  __shared__ BackwardTile<T> tile;
  __shared__ BackwardSums<T> sums;
  const Tiling tiling = {b.step.elements, sum_tile};
  if (threadIdx.x < gathering_lanes) gather<true, any_dtype, any_dtype, true>(b, tiling, here(), tile);
  __syncthreads();
  if (tile.kind == FlowKind::nothing) return;
  draw_noise(tile, threadIdx.x, sums);
  __syncthreads();
  backward_sums(b, tile, threadIdx.x, sums);
  __syncthreads();
  sum_to_sixteenths(threadIdx.x, sums.columns);
  __syncthreads();
  write_sums(rows, tile, threadIdx.x, sums.columns);
}

// A tile of an entry of a table.
template <class T, bool noise>
__device__ __forceinline__ void sum_entries(const gmm_step_backward_arguments& b, const Table& table,
                                            const Tiling& tiling) {
  __shared__ Users<T> users;
  const Place place = here();
  const int64_t entry = place.sample(), first = place.first(tiling);
  if (entry >= table.rows * table.of_row) return;
  const uint32_t i = 4 * place.thread, count = place.count(tiling);
  T sum[4] = {};
  for (int64_t first_sample = 0; first_sample < b.step.batch; first_sample += block_threads) {
    find_user(b.step, table, entry, first_sample, place.thread, users);
    __syncthreads();
    add_users<T, noise>(b, users, first_sample, first, i, count, sum);
    __syncthreads();
  }
  write_entry(table, entry, first, i, count, sum);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    sum_offsets_kernel(const __grid_constant__ gmm_step_backward_arguments b, const __grid_constant__ Tiling tiling) {
  sum_entries<T, false>(b, offsets_of(b), tiling);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    sum_std_kernel(const __grid_constant__ gmm_step_backward_arguments b, const __grid_constant__ Tiling tiling) {
  sum_entries<T, true>(b, std_of(b), tiling);
}

template <int32_t dtype>
const void* plain_or_typed(bool plain, Types<dtype, dtype>) {
  return plain ? reinterpret_cast<const void*>(backward_plain_kernel<dtype>)
               : reinterpret_cast<const void*>(backward_typed_kernel<dtype, dtype>);
}

template <int32_t sample_dtype, int32_t output_dtype>
const void* plain_or_typed(bool, Types<sample_dtype, output_dtype>) {
  return reinterpret_cast<const void*>(backward_typed_kernel<sample_dtype, output_dtype>);
}

template <class T>
const void* kernel_for(const gmm_step_backward_arguments& b) {
  if (!is_typed(b)) return reinterpret_cast<const void*>(backward_any_kernel<T>);
  return with_types(b.step.sample.dtype, b.step.model_output.dtype,
                    [&](auto types) { return plain_or_typed(is_plain(b), types); });
}

cudaError_t launch_entries(const void* kernel, const Table& table, const gmm_step_backward_arguments& b,
                           cudaStream_t stream) {
  if (table.data == nullptr || table.elements == 0) return cudaSuccess;
  const Tiling tiling = {table.elements, 4 * block_threads};
  return launch(kernel, table.rows * table.of_row, tiling, b, tiling, stream);
}

template <class T>
cudaError_t launch_all(const gmm_step_backward_arguments& b, int multiprocessors, cudaStream_t stream) {
  const gmm_step_arguments& a = b.step;
  cudaError_t error = cudaSuccess;
  if (b.grad_coefficients != nullptr) {
    const SumRows rows = sum_rows(b.workspace, a, row_columns);
    const auto kernel = reinterpret_cast<const void*>(backward_sums_kernel<T>);
    if (a.batch > 0) error = launch(kernel, a.batch, {a.elements, sum_tile}, b, rows, stream);
    if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
    if (error == cudaSuccess) error = launch_add_samples(b, rows, stream);
  } else if (a.batch > 0 && writes_samples(b)) {
    const Tiling tiling = tiling_of(a.batch, a.elements, elements_per_pass(b, a), multiprocessors);
    error = launch(kernel_for<T>(b), a.batch, tiling, b, tiling, stream);
  }
  const auto offsets = reinterpret_cast<const void*>(sum_offsets_kernel<T>);
  const auto std = reinterpret_cast<const void*>(sum_std_kernel<T>);
  if (error == cudaSuccess) error = launch_entries(offsets, offsets_of(b), b, stream);
  if (error == cudaSuccess) error = launch_entries(std, std_of(b), b, stream);
  return error;
}

}  // namespace

cudaError_t launch_step_backward(const gmm_step_backward_arguments& given, int multiprocessors, cudaStream_t stream) {
  gmm_step_backward_arguments b = given;
  if (b.step.elements == 0) b.step.batch = 0;  // no sample gives anything to a table
  return b.step.sample.dtype == GMM_FLOAT64 ? launch_all<double>(b, multiprocessors, stream)
                                            : launch_all<float>(b, multiprocessors, stream);
}

}  // namespace gmmkernel
