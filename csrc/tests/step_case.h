// A call of gmm_cpu_step with everything it points to, filled with random numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"
#include "gmmkernel/gmmkernel.h"

// Numbers of one of the interface's types, `batch` samples some padding apart; all bytes start as `poison`.
class Tensor {
 public:
  Tensor() = default;
  Tensor(int32_t dtype, int64_t batch, int64_t elements, int64_t padding, unsigned char poison);

  int32_t dtype() const { return dtype_; }
  int64_t stride() const { return stride_; }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }

  // A number, widened; and its setting, which rounds.
  double get(int64_t sample, int64_t element) const;
  void set(int64_t sample, int64_t element, double value);
  // Random numbers of the size of samples, and a special value (NaN, infinity, subnormal ...) here and there on
  // request.
  void fill(TestRandom& random, bool special);

  // Equal bits of every number, or both NaN; what lies between samples does not count.
  bool same_as(const Tensor& other) const;
  bool padding_is(unsigned char poison) const;  // nothing was written between samples
  bool bytes_are(unsigned char poison) const;   // nothing was written at all

 private:
  int32_t dtype_ = GMM_FLOAT32;
  int64_t batch_ = 0, elements_ = 0, stride_ = 0;
  std::vector<unsigned char> bytes_;
};

struct StepOptions {
  int64_t batch = 2, elements = 100, padding = 0;
  int32_t dtype = GMM_FLOAT32, output_dtype = GMM_FLOAT32, history_dtype = GMM_FLOAT32;
  bool guidance = false;
  int history = 0;
  int32_t prediction_kind = GMM_PREDICTION_NONE;
  bool components_wanted = true;
  int64_t coefficient_rows = 3;
  bool one_row = false, one_step = false;
  int64_t components = 0;  // K, 0: no mixture
  bool threshold_per_row = false, offset_per_row = false, std_per_row = false, std_per_component = false;
  int64_t std_elements = 0;
  bool offset_off = false, sigma_off = false, history_off = false;  // these columns are 0 in every other row
  bool special = false;
  bool shard = false;   // not from the first element on; without a mixture
  bool scored = false;  // with log-densities; without a mixture
};

// Any combination that is allowed.
StepOptions random_options(TestRandom& random, int64_t batch, int64_t elements);

class StepCase {
 public:
  StepCase(const StepOptions& options, uint64_t seed, unsigned char poison = 0xA5);
  StepCase(const StepCase&) = delete;
  StepCase& operator=(const StepCase&) = delete;

  int run(int32_t threads, int32_t instruction_set);

  StepOptions options;
  gmm_step_arguments arguments = {};
  gmm_cpu_options cpu = {1, GMM_BEST};

  Tensor sample, model_output, uncond, history[GMM_MAX_HISTORY], result, prediction;
  std::vector<int64_t> components, row, step, first_element, seeds, cdf;
  Tensor coefficients, offsets, std;  // one "sample" for each table row
  Tensor log_prob, workspace;
};

// Result, prediction, components and log-densities are the same.
bool same_outcome(const StepCase& a, const StepCase& b);

// The instruction sets of this processor, GMM_PORTABLE first.
std::vector<int32_t> available_instruction_sets();
