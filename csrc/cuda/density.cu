// The kernels of log-densities and their gradients, bodies of density_body.h and density_backward_body.h; and their
// launches.

#include "cuda/density_backward_body.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace gmmkernel {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    density_sums_kernel(const __grid_constant__ gmm_log_prob_arguments p, const __grid_constant__ SumRows rows) {
  __shared__ DensityTile<T> tile;
  __shared__ Columns<T> columns;
  const Place place = here();
  if (place.sample() >= p.step.batch) return;
  const Tiling tiling = {p.step.elements, sum_tile};
  if (place.thread == 0) gather_density(p, place.sample(), place.first(tiling), place.count(tiling), tile);
  __syncthreads();
  if (!tile.valid) {
    // Of tiles' sums nothing else tells.
    if (place.thread == 0 && p.log_prob == nullptr) {
      sums_of<T>(rows, tile.sample)[place.tile] = static_cast<T>(bits_float(0x7FC00000));
    }
    return;
  }
  DensityElements<T> elements;
  load_elements(p, tile, place.thread, elements);
  for (int64_t column = 0; column < rows.columns; column += sum_columns) {
    is_shifted_alone(p, tile) ? sum_shifted_quarters(p, tile, place.thread, elements, column, columns)
                              : sum_density_quarters(p, tile, place.thread, elements, column, columns);
    __syncthreads();
    sum_to_sixteenths(place.thread, columns);
    __syncthreads();
    write_density_sums(rows, tile, place.thread, column, columns);
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    log_prob_kernel(const __grid_constant__ gmm_log_prob_arguments p, const __grid_constant__ SumRows rows) {
  __shared__ DensityParts<T> parts;
  const int64_t sample = here().sample();
  if (sample >= p.step.batch) return;
  ThreadComponents<T> components;
  find_levels(p, rows, sample, threadIdx.x, components, parts);
  __syncthreads();
  find_largest(threadIdx.x, parts);
  __syncthreads();
  find_parts(p, threadIdx.x, components, parts);
  __syncthreads();
  sum_parts(threadIdx.x, parts);
  __syncthreads();
  write_density(p, rows, sample, threadIdx.x, components, parts);
}

// The first warp gathers what gradients of a step need, the second what densities do.
template <class T>
__device__ __forceinline__ void prepare(const gmm_log_prob_backward_arguments& b, const Tiling& tiling,
                                        DensityTile<T>& density, BackwardTile<T>& tile) {
  const Place place = here();
  if (place.thread < gathering_lanes) gather<true, any_dtype, any_dtype, false>(b.gradients, tiling, place, tile);
  if (place.thread == gathering_lanes && place.sample() < b.of.step.batch) {
    gather_density(b.of, place.sample(), place.first(tiling), place.count(tiling), density);
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    density_backward_kernel(const __grid_constant__ gmm_log_prob_backward_arguments b,
                            const __grid_constant__ Tiling tiling) {
  __shared__ DensityTile<T> density;
  __shared__ BackwardTile<T> tile;
  prepare(b, tiling, density, tile);
  if (tile.kind == FlowKind::nothing) return;
  density_backward<false, T>(b, density, tile, threadIdx.x, nullptr);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    density_backward_sums_kernel(const __grid_constant__ gmm_log_prob_backward_arguments b,
                                 const __grid_constant__ SumRows rows) {
  __shared__ DensityTile<T> density;
  __shared__ BackwardTile<T> tile;
  __shared__ Columns<T> columns;
  prepare(b, {b.of.step.elements, sum_tile}, density, tile);
  if (tile.kind == FlowKind::nothing) return;
  density_backward<true>(b, density, tile, threadIdx.x, &columns);
  __syncthreads();
  sum_to_sixteenths(threadIdx.x, columns);
  __syncthreads();
  write_sums(rows, tile, threadIdx.x, columns);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    add_shares_kernel(const __grid_constant__ gmm_log_prob_backward_arguments b, const __grid_constant__ Tiling) {
  add_shares<T>(b, static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x);
}

// A tile of a row of a table: of 8 components' entries in the offsets, of one in the std.
template <class T, bool offsets>
__device__ __forceinline__ void sum_entries(const gmm_log_prob_backward_arguments& b, const Table& table,
                                            const Tiling& tiling) {
  __shared__ RowUsers users;
  const Place place = here();
  const int64_t first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  const Part part = part_of(table, place.sample(), offsets ? entries_together : 1);
  if (part.row >= table.rows) return;
  T sum[entries_together] = {};
  for (int64_t first_sample = 0; first_sample < b.of.step.batch; first_sample += block_threads) {
    find_row_user<T>(b, table.rows, part.row, first_sample, place.thread, users);
    __syncthreads();
    add_density_users<T, offsets>(b, users, first_sample, first, count, place.thread, part.component, sum);
    __syncthreads();
  }
  write_density_entries<T, offsets>(table, part, first, count, place.thread, sum);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    density_offsets_kernel(const __grid_constant__ gmm_log_prob_backward_arguments b,
                           const __grid_constant__ Tiling tiling) {
  sum_entries<T, true>(b, offsets_of(b.gradients), tiling);
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    density_std_kernel(const __grid_constant__ gmm_log_prob_backward_arguments b,
                       const __grid_constant__ Tiling tiling) {
  sum_entries<T, false>(b, std_of(b.gradients), tiling);
}

cudaError_t launch_entries(const void* kernel, const Table& table, uint32_t together,
                           const gmm_log_prob_backward_arguments& b, cudaStream_t stream) {
  if (table.data == nullptr || table.elements == 0) return cudaSuccess;
  const Tiling tiling = {table.elements, block_threads};
  return launch(kernel, table.rows * parts_of_row(table, together), tiling, b, tiling, stream);
}

template <class T>
cudaError_t launch_density(const gmm_log_prob_arguments& p, cudaStream_t stream) {
  const gmm_step_arguments& a = p.step;
  const SumRows rows = sum_rows(p.workspace, a, a.mixture.components + 1);
  const auto sums = reinterpret_cast<const void*>(density_sums_kernel<T>);
  const auto densities = reinterpret_cast<const void*>(log_prob_kernel<T>);
  cudaError_t error = cudaSuccess;
  if (a.elements > 0) error = launch(sums, a.batch, {a.elements, sum_tile}, p, rows, stream);
  if (p.log_prob == nullptr) return error;
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(densities, a.batch, {1, 1}, p, rows, stream);
  return error;
}

template <class T>
cudaError_t launch_density_backward(const gmm_log_prob_backward_arguments& b, cudaStream_t stream) {
  const gmm_step_arguments& a = b.of.step;
  const gmm_step_backward_arguments& to = b.gradients;
  const bool any = a.batch > 0 && a.elements > 0;
  cudaError_t error = cudaSuccess;
  if (to.grad_coefficients != nullptr) {
    gmm_step_backward_arguments of_rows = to;
    if (!any) of_rows.step.batch = 0;  // no sample gives anything to a row
    const SumRows rows = sum_rows(to.workspace, of_rows.step, row_columns);
    const auto kernel = reinterpret_cast<const void*>(density_backward_sums_kernel<T>);
    if (any) error = launch(kernel, a.batch, {a.elements, sum_tile}, b, rows, stream);
    if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
    if (error == cudaSuccess) error = launch_add_samples(of_rows, rows, stream);
  } else if (any && (writes_samples(to) || b.grad_prev_sample.data != nullptr)) {
    const Tiling tiling = {a.elements, sum_tile};
    error = launch(reinterpret_cast<const void*>(density_backward_kernel<T>), a.batch, tiling, b, tiling, stream);
  }
  if (b.grad_weights != nullptr && error == cudaSuccess) {
    const Tiling numbers = {b.of.weight_rows * a.mixture.components, block_threads};
    error = launch(reinterpret_cast<const void*>(add_shares_kernel<T>), 1, numbers, b, numbers, stream);
  }
  const auto offsets = reinterpret_cast<const void*>(density_offsets_kernel<T>);
  const auto std = reinterpret_cast<const void*>(density_std_kernel<T>);
  if (error == cudaSuccess) error = launch_entries(offsets, offsets_of(to), entries_together, b, stream);
  if (error == cudaSuccess) error = launch_entries(std, std_of(to), 1, b, stream);
  return error;
}

}  // namespace

cudaError_t launch_log_prob(const gmm_log_prob_arguments& p, cudaStream_t stream) {
  return p.step.sample.dtype == GMM_FLOAT64 ? launch_density<double>(p, stream) : launch_density<float>(p, stream);
}

cudaError_t launch_log_prob_backward(const gmm_log_prob_backward_arguments& given, cudaStream_t stream) {
  const gmm_log_prob_backward_arguments b = completed(given);
  return b.of.step.sample.dtype == GMM_FLOAT64 ? launch_density_backward<double>(b, stream)
                                               : launch_density_backward<float>(b, stream);
}

}  // namespace gmmkernel
