// A call of gmm_cpu_log_ratio, and of its gradients, with everything they point to.
#pragma once

#include "step_case.h"

struct RatioOptions {
  StepOptions step;                                             // without a mixture
  bool wanted[7] = {true, true, true, true, true, true, true};  // gradients: four tensors, two unconditional, history
  bool of_tiles = false, clips = true, idle = false;            // idle: every other sample has no part in the loss
};

RatioOptions random_ratio(TestRandom& random, const StepOptions& step);

class RatioCase {
 public:
  RatioCase(const RatioOptions& options, uint64_t seed, unsigned char poison = 0xA5);
  RatioCase(const RatioCase&) = delete;
  RatioCase& operator=(const RatioCase&) = delete;

  int run(int32_t threads, int32_t instruction_set);
  bool padding_is(unsigned char poison) const;

  RatioOptions options;
  StepCase step;
  gmm_log_ratio_arguments arguments = {};
  gmm_log_ratio_backward_arguments gradients = {};
  Tensor prev, old_output, old_uncond, result, workspace, grad;
  Tensor elementwise[6], history[GMM_MAX_HISTORY];  // gradients
};

// The results, or the tiles' sums, and the gradients are the same.
bool same_ratios(const RatioCase& a, const RatioCase& b);
