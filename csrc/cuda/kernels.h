// Launches of the kernels, on the current device; arguments have been checked. Batch and elements are not 0, but for
// gradients, where tables are written all the same, and samples without elements, which have a density, a
// loss and projections.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/tiling.h"

namespace gmmkernel {

cudaError_t launch_step(const gmm_step_arguments& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t launch_step_backward(const gmm_step_backward_arguments& arguments, int multiprocessors,
                                 cudaStream_t stream);
cudaError_t launch_log_prob(const gmm_log_prob_arguments& arguments, cudaStream_t stream);
cudaError_t launch_log_prob_backward(const gmm_log_prob_backward_arguments& arguments, cudaStream_t stream);
cudaError_t launch_log_ratio(const gmm_log_ratio_arguments& arguments, cudaStream_t stream);
cudaError_t launch_log_ratio_backward(const gmm_log_ratio_backward_arguments& arguments, cudaStream_t stream);
cudaError_t launch_add_noise(const gmm_add_noise_arguments& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t launch_skip_loss(const gmm_skip_loss_arguments& arguments, cudaStream_t stream);
cudaError_t launch_scale_residual(const gmm_scale_residual_arguments& arguments, int multiprocessors,
                                  cudaStream_t stream);
cudaError_t launch_skip_loss_backward(const gmm_skip_loss_backward_arguments& arguments, int multiprocessors,
                                      cudaStream_t stream);
cudaError_t launch_standard_normal(const gmm_normal_arguments& arguments, int multiprocessors, cudaStream_t stream);
cudaError_t launch_draw_components(const gmm_component_arguments& arguments, cudaStream_t stream);
cudaError_t launch_project(const gmm_project_arguments& arguments, cudaStream_t stream);

// Of the launches above: the tree over every sample's tiles, of numbers of `size` bytes; and gradients of coefficients.
cudaError_t launch_sums(const SumRows& rows, size_t size, cudaStream_t stream);
cudaError_t launch_add_samples(const gmm_step_backward_arguments& b, const SumRows& rows, cudaStream_t stream);

}  // namespace gmmkernel
