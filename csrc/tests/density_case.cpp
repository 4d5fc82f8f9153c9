#include "density_case.h"

#include <cmath>

DensityOptions random_density(TestRandom& random, const StepOptions& step) {
  const auto coin = [&random] { return (random.word() & 1) != 0; };
  DensityOptions o;
  o.backward = random_backward(random, step);
  o.backward.grad_prediction = false;
  o.responsibilities = random.word() % 4 != 0;
  o.energies = coin();
  o.penalties = coin();
  o.weight_per_row = coin();
  o.prev_sample = random.word() % 4 != 0;
  o.weights = coin();
  o.idle = coin();
  return o;
}

DensityCase::DensityCase(const DensityOptions& chosen, uint64_t seed, unsigned char poison)
    : options(chosen), backward(chosen.backward, seed, poison) {
  const StepOptions& o = options.backward.step;
  const int32_t table_dtype = o.dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32;
  TestRandom random(seed + 2);
  const auto positive = [&](Tensor& tensor, int64_t rows, int64_t elements) {
    tensor = Tensor(table_dtype, rows, elements, 0, poison);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < elements; ++i) tensor.set(r, i, 0.05 + std::fabs(random.uniform()));
    }
  };
  gmm_log_prob_arguments& p = arguments;
  p.step = backward.step.arguments;
  // Not looked at by a density.
  p.step.seeds = nullptr;
  p.step.step = {nullptr, 0, -1};
  p.step.mixture.cdf = nullptr;
  p.step.mixture.cdf_rows = 0;
  prev_sample = Tensor(o.dtype, o.batch, o.elements, o.padding, poison);
  prev_sample.fill(random, o.special);
  p.prev_sample = {prev_sample.data(), prev_sample.stride(), o.dtype};
  if (o.components > 0) {
    gmm_mixture& m = p.step.mixture;
    if (!o.special) positive(backward.step.std, m.std_rows, m.std_components * m.std_elements);
    m.std = m.std_elements == 0 ? nullptr : backward.step.std.data();
    p.weight_rows = options.weight_per_row ? o.coefficient_rows : 1;
    positive(weights, p.weight_rows, o.components);
    p.weights = weights.data();
  }
  if (o.components > 0 && options.energies) {
    energies = Tensor(table_dtype, o.batch, o.components, 0, poison);
    p.energies = energies.data();
  }
  if (o.components > 0 && options.penalties) {
    penalties = Tensor(table_dtype, o.batch, o.components, 0, poison);
    penalties.fill(random, o.special);
    p.penalties = penalties.data();
  }
  log_prob = Tensor(table_dtype, o.batch, 1, 0, poison);
  p.log_prob = log_prob.data();
  responsibilities = Tensor(table_dtype, o.batch, o.components, 0, poison);
  if (options.responsibilities) p.responsibilities = responsibilities.data();
  workspace = Tensor(table_dtype, o.batch, GMM_SUM_ENTRIES(o.elements) * (o.components + 1), 0, poison);
  p.workspace = workspace.data();

  gmm_log_prob_backward_arguments& b = gradients;
  b.of = p;
  b.of.log_prob = b.of.workspace = nullptr;
  positive(shares, o.batch, o.components);
  b.of.responsibilities = shares.data();
  grad = Tensor(table_dtype, o.batch, 1, 0, poison);
  grad.fill(random, o.special);
  for (int64_t s = 0; options.idle && s < o.batch; s += 2) grad.set(s, 0, s % 4 == 0 ? 0.0 : -0.0);
  b.grad_log_prob = grad.data();
  b.gradients = backward.arguments;
  b.gradients.step = {};
  if (options.prev_sample) {
    grad_prev_sample = Tensor(o.dtype, o.batch, o.elements, o.padding, poison);
    b.grad_prev_sample = {grad_prev_sample.data(), grad_prev_sample.stride(), o.dtype};
  }
  if (options.weights && o.components > 0) {
    grad_weights = Tensor(table_dtype, p.weight_rows, o.components, 0, poison);
    b.grad_weights = grad_weights.data();
  }
}

int DensityCase::run(int32_t threads, int32_t instruction_set) {
  const gmm_cpu_options cpu = {threads, instruction_set};
  return gmm_cpu_log_prob(&arguments, &cpu);
}

int DensityCase::run_backward(int32_t threads, int32_t instruction_set) {
  const gmm_cpu_options cpu = {threads, instruction_set};
  return gmm_cpu_log_prob_backward(&gradients, &cpu);
}

bool same_densities(const DensityCase& a, const DensityCase& b) {
  return a.log_prob.same_as(b.log_prob) && a.energies.same_as(b.energies) &&
         (a.arguments.responsibilities == nullptr || a.responsibilities.same_as(b.responsibilities));
}

bool same_density_gradients(const DensityCase& a, const DensityCase& b) {
  return same_gradients(a.backward, b.backward) && a.grad_prev_sample.same_as(b.grad_prev_sample) &&
         a.grad_weights.same_as(b.grad_weights);
}
