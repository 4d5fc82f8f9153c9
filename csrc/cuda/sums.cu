// The kernels of sums_body.h, for sums over elements and over the batch; and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/sums_body.h"

namespace gmmkernel {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    sum_level_kernel(const __grid_constant__ SumRows rows, const __grid_constant__ SumLevel level) {
  __shared__ T sixteenths[16][sum_columns];
  const Place place = here();
  if (place.sample() >= rows.batch) return;
  // A row of blocks is the tiles in the first 16 columns, then those in the next ones.
  const uint32_t tiles = static_cast<uint32_t>((level.count + sum_tile - 1) / sum_tile);
  uint32_t tile = place.tile, column = 0;
  for (; tile >= tiles; tile -= tiles) column += sum_columns;
  const int64_t first = static_cast<int64_t>(tile) * sum_tile;
  sum_level_part(rows, level, place.sample(), first, column, place.thread, sixteenths);
  __syncthreads();
  sum_level_whole(rows, level, place.sample(), first, column, place.thread, sixteenths);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    add_samples_kernel(const __grid_constant__ gmm_step_backward_arguments b, const __grid_constant__ SumRows rows) {
  add_samples<T>(b, rows, static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x);
}

}  // namespace

cudaError_t launch_sums(const SumRows& rows, size_t size, cudaStream_t stream) {
  const auto kernel = size == 8 ? reinterpret_cast<const void*>(sum_level_kernel<double>)
                                : reinterpret_cast<const void*>(sum_level_kernel<float>);
  cudaError_t error = cudaSuccess;
  if (rows.batch == 0) return error;
  for (SumLevel level = {rows.tiles, 1}; level.count > 1 && error == cudaSuccess; level = above(level)) {
    const Tiling blocks = {tiles_of(tiling_of(level)) * column_blocks(rows), 1};
    error = launch(kernel, rows.batch, blocks, rows, level, stream);
  }
  return error;
}

cudaError_t launch_add_samples(const gmm_step_backward_arguments& b, const SumRows& rows, cudaStream_t stream) {
  const auto kernel = b.step.sample.dtype == GMM_FLOAT64 ? reinterpret_cast<const void*>(add_samples_kernel<double>)
                                                         : reinterpret_cast<const void*>(add_samples_kernel<float>);
  return launch(kernel, 1, {b.step.coefficient_rows * row_columns, block_threads}, b, rows, stream);
}

}  // namespace gmmkernel
