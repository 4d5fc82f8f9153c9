// The kernels of projections, bodies of project_body.h, and their launches.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/project_body.h"

namespace gmmkernel {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    project_sums_kernel(const __grid_constant__ gmm_project_arguments a, const __grid_constant__ SumRows rows) {
  __shared__ Columns<T> columns;
  const Place place = here();
  if (place.sample() >= a.batch) return;
  const int64_t entry = entry_of(a, place.sample());
  if (entry < 0) return;
  ThreadElements<T> x;
  load_sample(a, place, x);
  for (int64_t column = 0; column < a.columns; column += sum_columns) {
    sum_products(a, place, entry, x, column, columns);
    __syncthreads();
    sum_to_sixteenths(place.thread, columns);
    __syncthreads();
    write_products(rows, place, column, columns);
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 4)
    project_kernel(const __grid_constant__ gmm_project_arguments a, const __grid_constant__ SumRows rows) {
  write_projection<T>(a, rows, here());
}

template <class T>
cudaError_t launch_projections(const gmm_project_arguments& a, cudaStream_t stream) {
  const SumRows rows = sum_rows(a.workspace, a.batch, a.elements, a.columns);
  const auto sums = reinterpret_cast<const void*>(project_sums_kernel<T>);
  const auto results = reinterpret_cast<const void*>(project_kernel<T>);
  cudaError_t error = cudaSuccess;
  if (a.elements > 0) error = launch(sums, a.batch, {a.elements, sum_tile}, a, rows, stream);
  if (error == cudaSuccess) error = launch_sums(rows, sizeof(T), stream);
  if (error == cudaSuccess) error = launch(results, a.batch, {a.columns, block_threads}, a, rows, stream);
  return error;
}

}  // namespace

cudaError_t launch_project(const gmm_project_arguments& a, cudaStream_t stream) {
  return a.sample.dtype == GMM_FLOAT64 ? launch_projections<double>(a, stream) : launch_projections<float>(a, stream);
}

}  // namespace gmmkernel
