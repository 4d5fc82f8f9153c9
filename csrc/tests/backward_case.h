// A call of gmm_cpu_step_backward with everything it points to, filled with random numbers.
#pragma once

#include "step_case.h"

// Which gradients there are and which are wanted, of a step with the options of `step`.
struct BackwardOptions {
  StepOptions step;
  bool grad_prediction = false;  // where the step has a prediction
  bool clips = true;             // else every other row has infinite bounds
  bool sample = true, model_output = true, uncond = true, history = true;
  bool coefficients = false, offsets = false, std = false;
};

// Any combination that is allowed.
BackwardOptions random_backward(TestRandom& random, const StepOptions& step);

class BackwardCase {
 public:
  BackwardCase(const BackwardOptions& options, uint64_t seed, unsigned char poison = 0xA5);
  BackwardCase(const BackwardCase&) = delete;
  BackwardCase& operator=(const BackwardCase&) = delete;

  int run(int32_t threads, int32_t instruction_set);
  // Nothing was written between samples.
  bool padding_is(unsigned char poison) const;

  BackwardOptions options;
  StepCase step;
  gmm_step_backward_arguments arguments = {};

  Tensor grad_result, grad_prediction;
  Tensor sample, model_output, uncond, history[GMM_MAX_HISTORY], coefficients, offsets, std, workspace;
};

// All gradients are the same.
bool same_gradients(const BackwardCase& a, const BackwardCase& b);
