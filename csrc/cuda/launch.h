// What the files of kernels share: a thread's place, and launches over (tiles, samples).
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/tiling.h"

namespace gmmkernel {

static __device__ __forceinline__ Place here() { return {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x}; }

// A kernel of two arguments, for `samples` rows of blocks as `tiling` says.
template <class Arguments, class More>
cudaError_t launch(const void* kernel, int64_t samples, const Tiling& tiling, const Arguments& arguments,
                   const More& more, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tiles_of(tiling)),
                  static_cast<unsigned>(samples < largest_grid_y ? samples : largest_grid_y),
                  static_cast<unsigned>((samples + largest_grid_y - 1) / largest_grid_y));
  void* parameters[] = {const_cast<Arguments*>(&arguments), const_cast<More*>(&more)};
  return cudaLaunchKernel(kernel, grid, dim3(tiling.threads), parameters, 0, stream);
}

// A kernel of one argument, with a thread for each of `count` numbers.
template <class Arguments>
cudaError_t launch(const void* kernel, int64_t count, const Arguments& arguments, cudaStream_t stream) {
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  const dim3 grid(static_cast<unsigned>((count + block_threads - 1) / block_threads));
  return cudaLaunchKernel(kernel, grid, dim3(block_threads), parameters, 0, stream);
}

}  // namespace gmmkernel
