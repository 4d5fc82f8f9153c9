// What each instruction set provides: loops over ranges of work that the C interface has already checked.
#pragma once

#include <cstdint>

#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

// Work is counted in groups: `group_elements` consecutive elements of one sample, the last group of a sample may be
// partial. Group g of sample b has number b * groups_per_sample(elements) + g. What sums over elements, and training,
// counts in tiles of 1024 elements in the same way. Tables' gradients are added up over all samples for a range of
// groups of elements.

// Kernels of one arithmetic, float or double.
struct TypedKernels {
  void (*step)(const gmm_step_arguments&, int64_t first_group, int64_t last_group);
  // The same with the tiles' sums of log-densities; then these.
  void (*step_density_tiles)(const gmm_step_arguments&, int64_t first_tile, int64_t last_tile);
  void (*sum_densities)(const gmm_step_arguments&);
  // Elementwise gradients and tiles' sums; then the rows' sums; then offsets and std.
  void (*backward)(const gmm_step_backward_arguments&, int64_t first_tile, int64_t last_tile);
  void (*sum_rows)(const gmm_step_backward_arguments&);
  void (*scatter)(const gmm_step_backward_arguments&, int64_t first_group, int64_t last_group);
  // Tiles' sums; then the densities.
  void (*log_prob_tiles)(const gmm_log_prob_arguments&, int64_t first_tile, int64_t last_tile);
  void (*log_prob_samples)(const gmm_log_prob_arguments&, int64_t first_sample, int64_t last_sample);
  void (*log_prob_backward)(const gmm_log_prob_backward_arguments&, int64_t first_tile, int64_t last_tile);
  void (*sum_weights)(const gmm_log_prob_backward_arguments&);
  void (*log_prob_scatter)(const gmm_log_prob_backward_arguments&, int64_t first_group, int64_t last_group);
  // Tiles' sums; then the ratios.
  void (*log_ratio_tiles)(const gmm_log_ratio_arguments&, int64_t first_tile, int64_t last_tile);
  void (*sum_ratios)(const gmm_log_ratio_arguments&);
  void (*log_ratio_backward)(const gmm_log_ratio_backward_arguments&, int64_t first_tile, int64_t last_tile);
  void (*add_noise)(const gmm_add_noise_arguments&, int64_t first_tile, int64_t last_tile);
  // Tiles' sums; then the losses.
  void (*skip_loss_tiles)(const gmm_skip_loss_arguments&, int64_t first_tile, int64_t last_tile);
  void (*skip_loss_samples)(const gmm_skip_loss_arguments&);
  void (*scale_residual)(const gmm_scale_residual_arguments&, int64_t first_tile, int64_t last_tile);
  void (*skip_loss_backward)(const gmm_skip_loss_backward_arguments&, int64_t first_tile, int64_t last_tile);
  // Tiles' sums; then the projections.
  void (*project_tiles)(const gmm_project_arguments&, int64_t first_tile, int64_t last_tile);
  void (*project_samples)(const gmm_project_arguments&, int64_t first_sample, int64_t last_sample);
};

struct Kernels {
  int64_t group_elements;
  TypedKernels of_float, of_double;
  void (*standard_normal)(const gmm_normal_arguments&, int64_t first_group, int64_t last_group);
  // Sum of a[i] * b[i] by the fixed tree; `partial` has room for ceil(count / 1024) numbers.
  double (*dot)(const double* a, const double* b, int64_t count, double* partial);
  void (*subtract_scaled)(double* row, const double* other, double scale, int64_t count);

  const TypedKernels& of(int32_t dtype) const { return dtype == GMM_FLOAT64 ? of_double : of_float; }
  int64_t groups_per_sample(int64_t elements) const { return (elements + group_elements - 1) / group_elements; }
};

const Kernels& portable_kernels();
#if defined(GMM_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace gmmkernel
