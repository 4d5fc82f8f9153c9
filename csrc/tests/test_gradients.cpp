// Gradients and log-densities of the C interface: instruction sets, threads, and bad arguments.

#include <functional>
#include <string>

#include "density_case.h"

namespace {

constexpr unsigned char poison = 0xA5;

bool available(int32_t set) {
  const gmm_normal_arguments nothing = {};
  const gmm_cpu_options options = {1, set};
  return gmm_cpu_standard_normal(&nothing, &options) == GMM_SUCCESS;
}

StepOptions step_options(int number) {
  StepOptions o;
  o.batch = 1 + number % 3;
  o.elements = number % 5 == 0 ? 1 : number % 5 == 1 ? 2500 : 37 * (1 + number % 7);
  o.padding = number % 2 == 0 ? 0 : 3;
  o.dtype = o.output_dtype = o.history_dtype = number % 4;
  o.guidance = number % 3 == 0;
  o.history = number % 5;
  o.prediction_kind = number % 5;
  o.components = number % 2 == 0 ? 8 : number % 3;
  o.shard = o.components == 0;
  o.offset_per_row = number % 3 == 1;
  o.std_per_component = number % 5 == 2;
  o.std_elements = o.components == 0 ? 0 : o.elements / (1 + number % 3);
  return o;
}

void test_sets_and_threads() {
  for (int number = 0; number < 60; ++number) {
    TestRandom random(number);
    const StepOptions step = step_options(number);
    const BackwardOptions backward = random_backward(random, step);
    const DensityOptions density = random_density(random, step);
    BackwardCase expected(backward, number);
    DensityCase expected_density(density, number);
    CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
    CHECK(expected_density.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
    CHECK(expected_density.run_backward(1, GMM_PORTABLE) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
    for (const int32_t set : {GMM_PORTABLE, GMM_AVX2, GMM_AVX512}) {
      if (!available(set)) continue;
      for (const int32_t threads : {1, 3}) {
        BackwardCase made(backward, number);
        made.run(threads, set);
        CHECK(same_gradients(made, expected), "%d: set %d, %d threads", number, set, threads);
        CHECK(made.padding_is(poison), "%d: set %d", number, set);
        DensityCase of_density(density, number);
        of_density.run(threads, set);
        of_density.run_backward(threads, set);
        CHECK(same_densities(of_density, expected_density), "%d: set %d, %d threads", number, set, threads);
        CHECK(same_density_gradients(of_density, expected_density), "%d: set %d, %d threads", number, set, threads);
      }
    }
  }
}

// Every gradient of a step that has everything.
BackwardOptions everything() {
  BackwardOptions o;
  o.step = step_options(0);
  o.step.batch = 2;
  o.step.elements = 70;
  o.step.components = 4;
  o.step.std_elements = 30;
  o.step.guidance = true;
  o.step.history = 2;
  o.step.prediction_kind = GMM_PREDICTION_X0;
  o.grad_prediction = o.coefficients = o.offsets = o.std = true;
  return o;
}

void expect(int status, int expected, const std::string& named) {
  CHECK(status == expected, "%s: status %d, expected %d", named.c_str(), status, expected);
  CHECK(std::string(gmm_last_error()).find(named) == 0, "'%s' does not begin with '%s'", gmm_last_error(),
        named.c_str());
}

using Backward = gmm_step_backward_arguments;

const struct {
  int status;
  const char* named;
  std::function<void(Backward&)> spoil;
} bad_gradients[] = {
    {GMM_INVALID_ARGUMENT, "batch: ", [](Backward& b) { b.step.batch = -1; }},
    {GMM_INVALID_ARGUMENT, "model_output: ", [](Backward& b) { b.step.model_output.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "seeds: ", [](Backward& b) { b.step.seeds = nullptr; }},
    {GMM_INVALID_ARGUMENT, "cdf: ", [](Backward& b) { b.step.mixture.cdf = nullptr; }},
    {GMM_OUT_OF_RANGE, "row: ", [](Backward& b) { b.step.row = {nullptr, 0, 99}; }},
    {GMM_INVALID_ARGUMENT, "grad_result: ", [](Backward& b) { b.grad_result.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "grad_result: ", [](Backward& b) { b.grad_result.dtype = GMM_BFLOAT16; }},
    {GMM_INVALID_ARGUMENT, "grad_prediction: ", [](Backward& b) { b.grad_prediction.dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "grad_prediction: ", [](Backward& b) { b.step.prediction_kind = GMM_PREDICTION_NONE; }},
    {GMM_INVALID_ARGUMENT, "grad_sample: ", [](Backward& b) { b.grad_sample.dtype = GMM_FLOAT16; }},
    {GMM_INVALID_ARGUMENT, "grad_sample: ", [](Backward& b) { b.grad_sample.batch_stride = 0; }},
    {GMM_INVALID_ARGUMENT, "grad_model_output_uncond: ", [](Backward& b) { b.step.model_output_uncond = {}; }},
    {GMM_INVALID_ARGUMENT, "grad_history: ", [](Backward& b) { b.grad_history[3] = b.grad_history[0]; }},
    {GMM_INVALID_ARGUMENT, "grad_offsets: ", [](Backward& b) { b.step.mixture.components = 0; }},
    {GMM_INVALID_ARGUMENT, "workspace: ", [](Backward& b) { b.workspace = nullptr; }},
    {GMM_INVALID_ARGUMENT, "workspace: ",
     [](Backward& b) {
       b.workspace = nullptr;
       b.step.elements = 0;
       b.step.mixture.std_elements = 0;
     }},
};

using Density = gmm_log_prob_backward_arguments;

const struct {
  int status;
  const char* named;
  bool forward;  // the log-density itself fails too
  std::function<void(Density&)> spoil;
} bad_densities[] = {
    {GMM_INVALID_ARGUMENT, "prev_sample: ", true, [](Density& b) { b.of.prev_sample.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "prev_sample: ", true, [](Density& b) { b.of.prev_sample.dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "weights: ", true, [](Density& b) { b.of.weights = nullptr; }},
    {GMM_INVALID_ARGUMENT, "weight_rows: ", true, [](Density& b) { b.of.weight_rows = 7; }},
    {GMM_INVALID_ARGUMENT, "components: ", true, [](Density& b) { b.of.step.mixture.components = 1025; }},
    {GMM_OUT_OF_RANGE, "row: ", true, [](Density& b) { b.of.step.row = {nullptr, 0, -1}; }},
    {GMM_INVALID_ARGUMENT, "responsibilities: ", false, [](Density& b) { b.of.responsibilities = nullptr; }},
    {GMM_INVALID_ARGUMENT, "grad_log_prob: ", false, [](Density& b) { b.grad_log_prob = nullptr; }},
    {GMM_INVALID_ARGUMENT, "grad_prev_sample: ", false, [](Density& b) { b.grad_prev_sample.dtype = GMM_BFLOAT16; }},
    {GMM_INVALID_ARGUMENT, "grad_sample: ", false, [](Density& b) { b.gradients.grad_sample.dtype = GMM_BFLOAT16; }},
    {GMM_INVALID_ARGUMENT, "workspace: ", false, [](Density& b) { b.gradients.workspace = nullptr; }},
};

void test_bad_arguments() {
  const gmm_cpu_options options = {2, GMM_BEST};
  for (const auto& bad : bad_gradients) {
    BackwardCase made(everything(), 1);
    bad.spoil(made.arguments);
    expect(gmm_cpu_step_backward(&made.arguments, &options), bad.status, bad.named);
    CHECK(made.sample.bytes_are(poison) && made.coefficients.bytes_are(poison) && made.offsets.bytes_are(poison),
          "%s written", bad.named);
  }
  expect(gmm_cpu_step_backward(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  DensityOptions density;
  density.backward = everything();
  density.weights = true;
  for (const auto& bad : bad_densities) {
    DensityCase made(density, 1);
    bad.spoil(made.gradients);
    expect(gmm_cpu_log_prob_backward(&made.gradients, &options), bad.status, bad.named);
    CHECK(made.grad_prev_sample.bytes_are(poison) && made.grad_weights.bytes_are(poison), "%s written", bad.named);
    if (!bad.forward) continue;
    gmm_log_prob_arguments of = made.gradients.of;
    of.log_prob = made.log_prob.data();
    of.workspace = made.workspace.data();
    expect(gmm_cpu_log_prob(&of, &options), bad.status, bad.named);
    CHECK(made.log_prob.bytes_are(poison), "%s written", bad.named);
  }
  DensityCase made(density, 1);
  for (const auto& [field, named] : {std::pair<void**, const char*>{&made.arguments.log_prob, "log_prob: "},
                                     {&made.arguments.workspace, "workspace: "}}) {
    void* const before = *field;
    *field = nullptr;
    expect(gmm_cpu_log_prob(&made.arguments, &options), GMM_INVALID_ARGUMENT, named);
    *field = before;
  }
  expect(gmm_cpu_log_prob(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_log_prob_backward(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
}

}  // namespace

int main() {
  test_sets_and_threads();
  test_bad_arguments();
  return check_report();
}
