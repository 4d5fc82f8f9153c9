// Ten DDPM-like steps (DDIM with eta = 1) through the C interface, without Python.
//
// The data are Gaussian, x0 ~ N(0.5, 0.2^2) in every element, so that the exact noise prediction is known and stands in
// for a network: eps(x, t) = sqrt(1 - a) (x - sqrt(a) 0.5) / (a 0.2^2 + 1 - a), a = alpha-bar of t. Each step is then
// linear in x, and mean and variance of the samples follow in closed form. The transition is a two-component mixture,
// offsets +d and -d with d = sigma / 2, whose components have the variance sigma^2 - d^2: the moments stay the same.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gmmkernel/gmmkernel.h"

namespace {

constexpr int64_t batch = 8192, elements = 64, steps = 10;
constexpr double data_mean = 0.5, data_variance = 0.2 * 0.2;

void check(int status) {
  if (status == GMM_SUCCESS) return;
  std::fprintf(stderr, "gmmkernel: %s\n", gmm_last_error());
  std::exit(1);
}

// alpha-bar before each step and, in [steps], after the last: the linear schedule at t = 900, 800, ... 0.
std::vector<double> alpha_bars() {
  std::vector<double> all(1000), chosen;
  double product = 1;
  for (int t = 0; t < 1000; ++t) all[t] = product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999);
  for (int t = 900; t >= 0; t -= 100) chosen.push_back(all[t]);
  chosen.push_back(1);
  return chosen;
}

}  // namespace

int main() {
  const std::vector<double> alpha_bar = alpha_bars();

  // One row of coefficients for each step, and the mixture's tables bound to them.
  std::vector<float> coefficients(steps * GMM_ROW_COLUMNS), offsets(steps * 2 * elements), std(steps * elements);
  std::vector<double> sigmas(steps), output_coefficients(steps);
  for (int64_t s = 0; s < steps; ++s) {
    const double a = alpha_bar[s], next = alpha_bar[s + 1];
    const double sigma = std::sqrt((1 - next) / (1 - a) * (1 - a / next));
    float* row = &coefficients[s * GMM_ROW_COLUMNS];
    row[GMM_X0_SAMPLE] = static_cast<float>(1 / std::sqrt(a));
    row[GMM_X0_OUTPUT] = static_cast<float>(-std::sqrt(1 - a) / std::sqrt(a));
    row[GMM_CLIP_MIN] = -INFINITY;
    row[GMM_CLIP_MAX] = INFINITY;
    row[GMM_X0] = static_cast<float>(std::sqrt(next));
    row[GMM_OUTPUT] = static_cast<float>(std::sqrt(std::fmax(1 - next - sigma * sigma, 0)));
    row[GMM_SIGMA] = static_cast<float>(sigma);
    row[GMM_OFFSET] = s + 1 < steps ? 1.0f : 0.0f;  // no offset at the last step
    for (int64_t i = 0; i < elements; ++i) {
      offsets[(2 * s + 0) * elements + i] = static_cast<float>(sigma / 2);
      offsets[(2 * s + 1) * elements + i] = static_cast<float>(-sigma / 2);
      std[s * elements + i] = static_cast<float>(std::sqrt(sigma * sigma * 3 / 4));
    }
  }
  const int64_t threshold = int64_t{1} << 31;  // floor(2^32 cdf): both components with probability 1/2

  // Every sample has its own seed; the starting noise comes from it too.
  std::vector<float> x(batch * elements), eps(batch * elements);
  std::vector<int64_t> seeds(batch);
  for (int64_t b = 0; b < batch; ++b) seeds[b] = b;
  const gmm_cpu_options options = {2, GMM_BEST};
  const gmm_normal_arguments initial = {
      batch, elements, {x.data(), elements, GMM_FLOAT32}, seeds.data(), {nullptr, 0, 0}, GMM_STREAM_INITIAL, {}};
  check(gmm_cpu_standard_normal(&initial, &options));

  double mean = 0, variance = 1;  // the closed form, step by step
  for (int64_t s = 0; s < steps; ++s) {
    const double a = alpha_bar[s];
    const double slope = std::sqrt(1 - a) / (a * data_variance + 1 - a), shift = -slope * std::sqrt(a) * data_mean;
    for (size_t i = 0; i < x.size(); ++i) eps[i] = static_cast<float>(slope * x[i] + shift);

    gmm_step_arguments step = {};
    step.batch = batch;
    step.elements = elements;
    step.sample = {x.data(), elements, GMM_FLOAT32};
    step.model_output = {eps.data(), elements, GMM_FLOAT32};
    step.result = {x.data(), elements, GMM_FLOAT32};  // in place
    step.coefficients = coefficients.data();
    step.coefficient_rows = steps;
    step.row = {nullptr, 0, s};   // one row for the whole batch
    step.step = {nullptr, 0, s};  // the noise counter's step
    step.seeds = seeds.data();
    gmm_mixture& mixture = step.mixture;
    mixture.components = 2;
    mixture.cdf = &threshold;
    mixture.cdf_rows = 1;
    mixture.offsets = offsets.data();
    mixture.offset_rows = steps;
    mixture.std = std.data();
    mixture.std_rows = steps;
    mixture.std_components = 1;
    mixture.std_elements = elements;
    check(gmm_cpu_step(&step, &options));

    const float* row = &coefficients[s * GMM_ROW_COLUMNS];
    const double by_eps = row[GMM_X0] * row[GMM_X0_OUTPUT] + row[GMM_OUTPUT];
    const double factor = row[GMM_X0] * row[GMM_X0_SAMPLE] + by_eps * slope;
    mean = factor * mean + by_eps * shift;
    variance = factor * factor * variance + row[GMM_SIGMA] * row[GMM_SIGMA];
  }

  double sum = 0, squares = 0;
  for (const float value : x) sum += value;
  const double sample_mean = sum / static_cast<double>(x.size());
  for (const float value : x) squares += (value - sample_mean) * (value - sample_mean);
  const double sample_variance = squares / static_cast<double>(x.size());
  std::printf("gmmkernel %s, %lld samples of %lld elements, %lld steps\n", gmm_version(), (long long)batch,
              (long long)elements, (long long)steps);
  std::printf("          samples     closed form  data\n");
  std::printf("mean      %-10.6f  %-10.6f   %g\n", sample_mean, mean, data_mean);
  std::printf("variance  %-10.6f  %-10.6f   %g\n", sample_variance, variance, data_variance);
  const bool close = std::fabs(sample_mean - mean) < 0.005 && std::fabs(sample_variance / variance - 1) < 0.02;
  return close ? 0 : 1;
}
