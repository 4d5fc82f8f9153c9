// Calls of gmm_cpu_add_noise, gmm_cpu_skip_loss and its gradients, with everything they point to, filled with random
// numbers.
#pragma once

#include "step_case.h"

struct TrainingOptions {
  int64_t batch = 2, elements = 100, padding = 0;
  int32_t dtype = GMM_FLOAT32, sample_dtype = GMM_FLOAT32;  // of the data and the model's output; of x_t
  int64_t coefficient_rows = 3;
  bool one_row = false, one_step = false;
  bool noise = true, sample = true, residual = true, grad_output = true, grad_sample = true;  // which tensors there are
  bool special = false;
};

TrainingOptions random_training(TestRandom& random, int64_t batch, int64_t elements);

class TrainingCase {
 public:
  TrainingCase(const TrainingOptions& options, uint64_t seed, unsigned char poison = 0xA5);
  TrainingCase(const TrainingCase&) = delete;
  TrainingCase& operator=(const TrainingCase&) = delete;

  // All calls, the first that fails being the last; those that there is no residual for are left out.
  int run(int32_t threads, int32_t instruction_set);

  TrainingOptions options;
  gmm_add_noise_arguments noising = {};
  gmm_skip_loss_arguments loss_of = {};
  gmm_scale_residual_arguments scaling = {};
  gmm_skip_loss_backward_arguments backward = {};

  Tensor coefficients;  // one "sample" for each row
  std::vector<int64_t> row, step, seeds;
  Tensor data, result, noise, model_output, sample, residual, scaled, loss, workspace, grad, grad_output, grad_sample;
};

// Every result is the same.
bool same_training(const TrainingCase& a, const TrainingCase& b);

// Nothing was written between samples.
bool padding_is(const TrainingCase& c, unsigned char poison);
