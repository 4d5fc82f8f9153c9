#include "backward_case.h"

#include <cmath>

namespace {

gmm_input input(const Tensor& t) { return {t.data(), t.stride(), t.dtype()}; }

gmm_output output(Tensor& t) { return {t.data(), t.stride(), t.dtype()}; }

}  // namespace

BackwardOptions random_backward(TestRandom& random, const StepOptions& step) {
  const auto coin = [&random] { return (random.word() & 1) != 0; };
  BackwardOptions o;
  o.step = step;
  o.grad_prediction = step.prediction_kind != GMM_PREDICTION_NONE && coin();
  o.clips = coin();
  o.sample = random.word() % 4 != 0;
  o.model_output = random.word() % 4 != 0;
  o.uncond = random.word() % 4 != 0;
  o.history = coin();
  o.coefficients = coin();
  o.offsets = coin();
  o.std = coin();
  return o;
}

BackwardCase::BackwardCase(const BackwardOptions& chosen, uint64_t seed, unsigned char poison)
    : options(chosen), step(chosen.step, seed, poison) {
  const StepOptions& o = options.step;
  TestRandom random(seed + 1);
  gmm_step_backward_arguments& b = arguments;
  if (!options.clips) {
    for (int64_t r = 1; r < o.coefficient_rows; r += 2) {
      step.coefficients.set(r, GMM_CLIP_MIN, -HUGE_VAL);
      step.coefficients.set(r, GMM_CLIP_MAX, HUGE_VAL);
    }
  }
  b.step = step.arguments;

  const auto given = [&](Tensor& tensor) {
    tensor = Tensor(o.dtype, o.batch, o.elements, o.padding, poison);
    tensor.fill(random, o.special);
    return input(tensor);
  };
  b.grad_result = given(grad_result);
  if (options.grad_prediction) b.grad_prediction = given(grad_prediction);

  const auto wanted = [&](Tensor& tensor, gmm_output& gradient, int32_t dtype) {
    tensor = Tensor(dtype, o.batch, o.elements, o.padding, poison);
    gradient = output(tensor);
  };
  if (options.sample) wanted(sample, b.grad_sample, o.dtype);
  if (options.model_output) wanted(model_output, b.grad_model_output, o.output_dtype);
  if (options.uncond && o.guidance) wanted(uncond, b.grad_model_output_uncond, o.output_dtype);
  for (int j = 0; options.history && j < o.history; ++j) wanted(history[j], b.grad_history[j], o.history_dtype);

  const int32_t table_dtype = o.dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32;
  if (options.coefficients) {
    coefficients = Tensor(table_dtype, o.coefficient_rows, GMM_ROW_COLUMNS, 0, poison);
    b.grad_coefficients = coefficients.data();
    workspace = Tensor(table_dtype, o.batch, GMM_SUM_ENTRIES(o.elements) * GMM_ROW_COLUMNS, 0, poison);
    b.workspace = workspace.data();
  }
  const gmm_mixture& m = step.arguments.mixture;
  if (options.offsets && o.components > 0) {
    offsets = Tensor(table_dtype, m.offset_rows, m.components * o.elements, 0, poison);
    b.grad_offsets = offsets.data();
  }
  if (options.std && o.components > 0) {
    std = Tensor(table_dtype, m.std_rows, m.std_components * m.std_elements, 0, poison);
    b.grad_std = std.data();
  }
}

int BackwardCase::run(int32_t threads, int32_t instruction_set) {
  const gmm_cpu_options cpu = {threads, instruction_set};
  return gmm_cpu_step_backward(&arguments, &cpu);
}

bool BackwardCase::padding_is(unsigned char poison) const {
  bool untouched = sample.padding_is(poison) && model_output.padding_is(poison) && uncond.padding_is(poison);
  for (const Tensor& stored : history) untouched = untouched && stored.padding_is(poison);
  return untouched;
}

bool same_gradients(const BackwardCase& a, const BackwardCase& b) {
  bool same = a.sample.same_as(b.sample) && a.model_output.same_as(b.model_output) && a.uncond.same_as(b.uncond) &&
              a.coefficients.same_as(b.coefficients) && a.offsets.same_as(b.offsets) && a.std.same_as(b.std);
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) same = same && a.history[j].same_as(b.history[j]);
  return same;
}
