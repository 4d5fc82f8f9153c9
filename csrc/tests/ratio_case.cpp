#include "ratio_case.h"

#include <cmath>

namespace {

gmm_input input(const Tensor& t) { return {t.data(), t.stride(), t.dtype()}; }

}  // namespace

RatioOptions random_ratio(TestRandom& random, const StepOptions& step) {
  const auto coin = [&random] { return (random.word() & 1) != 0; };
  RatioOptions o;
  o.step = step;
  o.step.components = o.step.std_elements = 0;
  o.step.prediction_kind = GMM_PREDICTION_NONE;
  o.step.shard = o.step.scored = false;
  for (bool& wanted : o.wanted) wanted = random.word() % 4 != 0;
  o.of_tiles = coin();
  o.clips = coin();
  o.idle = coin();
  return o;
}

RatioCase::RatioCase(const RatioOptions& chosen, uint64_t seed, unsigned char poison)
    : options(chosen), step(chosen.step, seed, poison) {
  const StepOptions& o = options.step;
  const int32_t table_dtype = o.dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32;
  TestRandom random(seed + 3);
  for (int64_t r = 0; r < o.coefficient_rows && !options.clips; ++r) {
    step.coefficients.set(r, GMM_CLIP_MIN, -HUGE_VAL);
    step.coefficients.set(r, GMM_CLIP_MAX, HUGE_VAL);
  }
  gmm_log_ratio_arguments& a = arguments;
  a.step = step.arguments;
  // Not looked at by a ratio.
  a.step.seeds = nullptr;
  a.step.step = {nullptr, 0, -1};
  const auto fill = [&](Tensor& tensor, int32_t dtype) {
    tensor = Tensor(dtype, o.batch, o.elements, o.padding, poison);
    tensor.fill(random, o.special);
    return input(tensor);
  };
  a.prev_sample = fill(prev, o.dtype);
  a.old_model_output = fill(old_output, o.output_dtype);
  for (int64_t b = 0; b < o.batch; ++b) {  // some of the outputs are equal
    for (int64_t i = 0; i < o.elements; i += 3) old_output.set(b, i, step.model_output.get(b, i));
  }
  if (o.guidance) a.old_model_output_uncond = fill(old_uncond, o.output_dtype);
  const int64_t tiles = GMM_SUM_ENTRIES(o.elements) - 1;
  result = Tensor(table_dtype, o.batch, 2, 0, poison);
  workspace = Tensor(table_dtype, o.batch, 2 * (tiles + 1), 0, poison);
  a.result = options.of_tiles ? nullptr : result.data();
  a.workspace = workspace.data();

  gmm_log_ratio_backward_arguments& b = gradients;
  b.of = a;
  b.of.result = b.of.workspace = nullptr;
  b.of_tiles = options.of_tiles;
  const int64_t grads = options.of_tiles ? 2 * tiles : 2;
  grad = Tensor(table_dtype, o.batch, grads, 0, poison);
  grad.fill(random, o.special);
  for (int64_t s = 0; options.idle && s < o.batch; s += 2) {
    for (int64_t i = 0; i < grads; ++i) grad.set(s, i, i % 4 == 0 ? 0.0 : -0.0);
  }
  b.grad = grad.data();
  const struct {
    gmm_output& gradient;
    const gmm_input& of;
  } all[] = {{b.grad_sample, a.step.sample},
             {b.grad_model_output, a.step.model_output},
             {b.grad_old_model_output, a.old_model_output},
             {b.grad_prev_sample, a.prev_sample},
             {b.grad_model_output_uncond, a.step.model_output_uncond},
             {b.grad_old_model_output_uncond, a.old_model_output_uncond}};
  const auto want = [&](Tensor& tensor, gmm_output& gradient, const gmm_input& of) {
    tensor = Tensor(of.dtype, o.batch, o.elements, o.padding, poison);
    gradient = {tensor.data(), tensor.stride(), of.dtype};
  };
  for (int i = 0; i < 6; ++i) {
    if (options.wanted[i] && all[i].of.data != nullptr) want(elementwise[i], all[i].gradient, all[i].of);
  }
  for (int j = 0; j < o.history && options.wanted[6]; ++j) want(history[j], b.grad_history[j], a.step.history[j]);
}

int RatioCase::run(int32_t threads, int32_t instruction_set) {
  const gmm_cpu_options cpu = {threads, instruction_set};
  if (const int status = gmm_cpu_log_ratio(&arguments, &cpu)) return status;
  return gmm_cpu_log_ratio_backward(&gradients, &cpu);
}

bool RatioCase::padding_is(unsigned char poison) const {
  bool untouched = true;
  for (const Tensor& tensor : elementwise) untouched = untouched && tensor.padding_is(poison);
  for (const Tensor& tensor : history) untouched = untouched && tensor.padding_is(poison);
  return untouched;
}

bool same_ratios(const RatioCase& a, const RatioCase& b) {
  bool same = a.options.of_tiles || a.result.same_as(b.result);
  // The place after the tiles' sums, and all of them once they have been added up, is the kernels' own.
  const int64_t sums = a.options.of_tiles ? 2 * (GMM_SUM_ENTRIES(a.options.step.elements) - 1) : 0;
  for (int64_t s = 0; s < a.options.step.batch; ++s) {
    for (int64_t i = 0; i < sums; ++i) {
      const double one = a.workspace.get(s, i), other = b.workspace.get(s, i);
      same = same && (one == other || (one != one && other != other));
    }
  }
  for (int i = 0; i < 6; ++i) same = same && a.elementwise[i].same_as(b.elementwise[i]);
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) same = same && a.history[j].same_as(b.history[j]);
  return same;
}
