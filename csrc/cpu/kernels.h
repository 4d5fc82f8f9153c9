// What each instruction set provides: loops over ranges of work that the C interface has already checked.
#pragma once

#include <cstdint>

#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

// Work is counted in groups: `group_elements` consecutive elements of one sample, the last group of a sample may be
// partial. Group g of sample b has number b * groups_per_sample(elements) + g.
struct Kernels {
  int64_t group_elements;
  void (*step_float32)(const gmm_step_arguments&, int64_t first_group, int64_t last_group);
  void (*step_float64)(const gmm_step_arguments&, int64_t first_group, int64_t last_group);
  // Gradients by tiles of 1024 elements, numbered as groups are; then the sums of rows; then, by groups of elements,
  // each for all samples, the tables' sums.
  void (*backward_float32)(const gmm_step_backward_arguments&, int64_t first_tile, int64_t last_tile);
  void (*backward_float64)(const gmm_step_backward_arguments&, int64_t first_tile, int64_t last_tile);
  void (*sum_rows_float32)(const gmm_step_backward_arguments&);
  void (*sum_rows_float64)(const gmm_step_backward_arguments&);
  void (*scatter_float32)(const gmm_step_backward_arguments&, int64_t first_group, int64_t last_group);
  void (*scatter_float64)(const gmm_step_backward_arguments&, int64_t first_group, int64_t last_group);
  void (*standard_normal)(const gmm_normal_arguments&, int64_t first_group, int64_t last_group);
  // Sum of a[i] * b[i] by the fixed tree; `partial` has room for ceil(count / 1024) numbers.
  double (*dot)(const double* a, const double* b, int64_t count, double* partial);
  void (*subtract_scaled)(double* row, const double* other, double scale, int64_t count);

  int64_t groups_per_sample(int64_t elements) const { return (elements + group_elements - 1) / group_elements; }
};

const Kernels& portable_kernels();
#if defined(GMM_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace gmmkernel
