// The kernels of exact moment matching, bodies of low_rank_body.h, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/low_rank_body.h"

namespace gmmkernel {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    project_noise_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ SumRows rows) {
  __shared__ NoiseTiles<T> tiles;
  __shared__ NoiseOrColumns<T> memory;
  const Place place = here();
  if (place.thread < samples_together) gather_noise(a, place, place.thread, tiles);
  __syncthreads();
  const SharedRow<T> shared = row_of(tiles);
  if (shared.row == nullptr) return;
  draw_noise(tiles, place.thread, memory.noise);
  __syncthreads();
  ThreadNoise noise;
  take_noise(tiles, place.thread, memory.noise, noise);
  __syncthreads();
  for (int64_t first = 0; first < rows.columns; first += components_together) {
    project(a, tiles, shared, place.thread, noise, first, memory.columns);
    __syncthreads();
    sum_to_sixteenths(place.thread, memory.columns);
    __syncthreads();
    write_projections(rows, tiles, place, first, memory.columns);
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
    step_in_directions_any_kernel(const __grid_constant__ gmm_step_arguments a, const __grid_constant__ Tiling tiling) {
  __shared__ StepTile<T> tile;
  __shared__ LastOffsets<T> last;
  if (threadIdx.x < gathering_lanes) gather<any_dtype>(a, tiling, here(), tile);
  if (threadIdx.x == 0) last = gather_last(a, tile);
  __syncthreads();
  step_in_directions_any(a, tile, last, threadIdx.x);
}

template <int32_t dtype, bool guided>
__global__ void __launch_bounds__(block_threads, guided ? 2 : 3)
    step_in_directions_common_kernel(const __grid_constant__ gmm_step_arguments a,
                                     const __grid_constant__ Tiling tiling) {
  __shared__ StepTiles tiles;
  const uint32_t warp = threadIdx.x / gathering_lanes, lane = threadIdx.x % gathering_lanes;
  if (warp < samples_together) gather_in_group<dtype>(a, tiling, here(), warp, lane, tiles);
  __syncthreads();
  take_weights(a, threadIdx.x, tiles);
  __syncthreads();
  step_in_directions_common<dtype, guided>(a, tiles, threadIdx.x);
}

template <int32_t dtype>
const void* common_kernel(bool guided) {
  return guided ? reinterpret_cast<const void*>(step_in_directions_common_kernel<dtype, true>)
                : reinterpret_cast<const void*>(step_in_directions_common_kernel<dtype, false>);
}

const void* common_kernel_for(const gmm_step_arguments& a) {
  const bool guided = a.model_output_uncond.data != nullptr;
  switch (a.sample.dtype) {
    case GMM_BFLOAT16:
      return common_kernel<GMM_BFLOAT16>(guided);
    case GMM_FLOAT16:
      return common_kernel<GMM_FLOAT16>(guided);
    default:
      return common_kernel<GMM_FLOAT32>(guided);
  }
}

template <class T>
cudaError_t launch_low_rank(const gmm_step_arguments& a, int multiprocessors, cudaStream_t stream) {
  const SumRows rows = sum_rows(a.workspace, a, a.mixture.components);
  const auto project = reinterpret_cast<const void*>(project_noise_kernel<T>);
  const auto weigh = reinterpret_cast<const void*>(weigh_offsets_kernel<T>);
  cudaError_t error = launch(project, groups_of(a.batch), {a.elements, sum_tile}, a, rows, stream);
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(weigh, a.batch, {1, 1}, a, rows, stream);
  if (error != cudaSuccess) return error;
  const uint32_t per_pass = elements_per_pass(a, a.sample.dtype);
  const bool common = is_common(a);
  const int64_t blocks = common ? groups_of(a.batch) : a.batch;
  const Tiling tiling = tiling_of(blocks, a.elements, per_pass, multiprocessors);
  const void* step = common ? common_kernel_for(a) : reinterpret_cast<const void*>(step_in_directions_any_kernel<T>);
  return launch(step, blocks, tiling, a, tiling, stream);
}

}  // namespace

cudaError_t launch_step_in_directions(const gmm_step_arguments& a, int multiprocessors, cudaStream_t stream) {
  return a.sample.dtype == GMM_FLOAT64 ? launch_low_rank<double>(a, multiprocessors, stream)
                                       : launch_low_rank<float>(a, multiprocessors, stream);
}

}  // namespace gmmkernel
