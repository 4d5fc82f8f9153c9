// Launches of the kernels, on the current device; arguments have been checked. Batch and elements are not 0, but for
// gradients, where tables are written all the same.
#pragma once

#include <cuda_runtime_api.h>

#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

cudaError_t launch_step(const gmm_step_arguments& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t launch_step_backward(const gmm_step_backward_arguments& arguments, int multiprocessors,
                                 cudaStream_t stream);
cudaError_t launch_standard_normal(const gmm_normal_arguments& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t launch_draw_components(const gmm_component_arguments& arguments, cudaStream_t stream);

}  // namespace gmmkernel
