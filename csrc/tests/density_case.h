// A call of gmm_cpu_log_prob, and of its gradients, with everything they point to, filled with random numbers.
#pragma once

#include "backward_case.h"

// Which gradients are wanted, of a density with the options of `backward`, those of the step's inputs among them.
struct DensityOptions {
  BackwardOptions backward;
  bool responsibilities = true, energies = false, penalties = false;
  bool weight_per_row = false;
  bool prev_sample = true, weights = false;
  bool idle = false;  // every other sample has a gradient of 0
};

DensityOptions random_density(TestRandom& random, const StepOptions& step);

class DensityCase {
 public:
  DensityCase(const DensityOptions& options, uint64_t seed, unsigned char poison = 0xA5);
  DensityCase(const DensityCase&) = delete;
  DensityCase& operator=(const DensityCase&) = delete;

  int run(int32_t threads, int32_t instruction_set);
  int run_backward(int32_t threads, int32_t instruction_set);

  DensityOptions options;
  BackwardCase backward;
  gmm_log_prob_arguments arguments = {};
  gmm_log_prob_backward_arguments gradients = {};

  Tensor prev_sample, weights, log_prob, responsibilities, energies, penalties, workspace;
  Tensor shares, grad, grad_prev_sample, grad_weights;  // `shares` are the responsibilities that gradients read
};

bool same_densities(const DensityCase& a, const DensityCase& b);
bool same_density_gradients(const DensityCase& a, const DensityCase& b);
