// The kernels of exact moment matching, bodies of low_rank_body.h, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/low_rank_body.h"

namespace gmmkernel {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    project_noise_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ SumRows rows) {
  __shared__ NoiseTile<T> tile;
  __shared__ Columns<T> columns;
  const uint32_t thread = threadIdx.x;
  if (thread == 0) gather_noise(a, here(), tile);
  __syncthreads();
  if (tile.offsets == nullptr) return;
  draw_noise(tile, thread);
  __syncthreads();
  for (int64_t column = 0; column < rows.columns; column += sum_columns) {
    project_quarters(a, tile, thread, column, columns);
    __syncthreads();
    sum_to_sixteenths(thread, columns);
    __syncthreads();
    write_projections(rows, tile, thread, column, columns);
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    weigh_offsets_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ SumRows rows) {
  __shared__ Pulls<T> pulls;
  const int64_t sample = here().sample();
  if (sample >= a.batch) return;
  if (threadIdx.x < gathering_lanes) gather_pulls(a, sample, threadIdx.x, pulls);
  __syncthreads();
  if (!pulls.removes) return;
  find_pulls(a, rows, sample, threadIdx.x, pulls);
  __syncthreads();
  weigh_offsets(a, rows, sample, threadIdx.x, pulls);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    step_in_directions_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<T> tile;
  __shared__ LastOffsets<T> last;
  if (threadIdx.x < gathering_lanes) gather<any_dtype>(a, tiling, here(), tile);
  __syncthreads();
  if (threadIdx.x == 0) gather_last(a, tile, last);
  __syncthreads();
  step_in_directions(a, tile, last, threadIdx.x);
}

template <class T>
cudaError_t launch_low_rank(const gmm_step_arguments& a, const Tiling& tiling, cudaStream_t stream) {
  const SumRows rows = sum_rows(a.workspace, a, a.mixture.components);
  const auto project = reinterpret_cast<const void*>(project_noise_kernel<T>);
  const auto weigh = reinterpret_cast<const void*>(weigh_offsets_kernel<T>);
  const auto step = reinterpret_cast<const void*>(step_in_directions_kernel<T>);
  cudaError_t error = launch(project, a.batch, {a.elements, sum_tile}, a, rows, stream);
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(weigh, a.batch, {1, 1}, a, rows, stream);
  if (error == cudaSuccess) error = launch(step, a.batch, tiling, a, tiling, stream);
  return error;
}

}  // namespace

cudaError_t launch_step_in_directions(const gmm_step_arguments& a, const Tiling& tiling, cudaStream_t stream) {
  return a.sample.dtype == GMM_FLOAT64 ? launch_low_rank<double>(a, tiling, stream)
                                       : launch_low_rank<float>(a, tiling, stream);
}

}  // namespace gmmkernel
