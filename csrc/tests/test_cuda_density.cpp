// The bodies of the log-densities' CUDA kernels over an emulated grid give the bits of the CPU core.

#include <cmath>
#include <initializer_list>

#include "density_case.h"
#include "emulated_density.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

int densities = 0;  // that are numbers

void compare(const DensityOptions& options, uint64_t seed) {
  DensityCase expected(options, seed, poison), got(options, seed, another);
  CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
  CHECK(expected.run_backward(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
  gmmkernel::emulate_log_prob(got.arguments);
  gmmkernel::emulate_log_prob_backward(got.gradients);
  const BackwardOptions& b = options.backward;
  const StepOptions& o = b.step;
  char text[256];
  std::snprintf(text, sizeof text,
                "seed %llu: %lld x %lld + %lld, dtypes %d %d %d, guidance %d, history %d, K %lld, std %lld, "
                "coefficients %d, offsets %d, std %d",
                (unsigned long long)seed, (long long)o.batch, (long long)o.elements, (long long)o.padding, o.dtype,
                o.output_dtype, o.history_dtype, o.guidance, o.history, (long long)o.components,
                (long long)o.std_elements, b.coefficients, b.offsets, b.std);
  CHECK(same_densities(got, expected), "density, %s", text);
  CHECK(same_density_gradients(got, expected), "gradients, %s", text);
  CHECK(got.backward.padding_is(another) && got.grad_prev_sample.padding_is(another), "wrote between samples: %s",
        text);
  for (int64_t s = 0; s < o.batch; ++s) densities += !std::isnan(expected.log_prob.get(s, 0));
}

void test_random_densities() {
  TestRandom random(70);
  uint64_t seed = 25000;
  for (const int64_t elements : {0, 1, 2, 3, 5, 63, 255, 256, 257, 1000, 1023, 1024, 1025, 4097}) {
    for (int n = 0; n < 40; ++n) {
      StepOptions step = random_options(random, n % 10 == 9 ? 0 : 1 + n % 4, elements);
      if (n % 2 == 0) step.sigma_off = step.special = false;
      compare(random_density(random, step), ++seed);
    }
  }
}

// Components around what is summed at once, and the most there may be.
void test_many_components() {
  TestRandom random(71);
  for (const int64_t components : {7, 8, 9, 14, 15, 16, 17, 33, 255, 256, 257, 1023, 1024}) {
    StepOptions step = random_options(random, 3, 1 + components % 5 * 7);
    step.components = components;
    step.shard = false;
    step.std_elements = step.elements;
    step.special = false;
    DensityOptions options = random_density(random, step);
    options.weights = options.backward.coefficients = options.backward.offsets = options.backward.std = true;
    compare(options, 400 + components);
  }
}

// More samples than are looked at in one round.
void test_many_samples() {
  TestRandom random(72);
  for (int n = 0; n < 6; ++n) {
    StepOptions step = random_options(random, 255 + 150 * (n % 3), 3);
    step.components = 3;
    step.special = false;
    DensityOptions options = random_density(random, step);
    options.weights = options.backward.coefficients = options.backward.offsets = options.backward.std = true;
    compare(options, 500 + n);
  }
}

// Sums of more than one tile of tiles' sums, in more columns than a block sums.
void test_two_levels() {
  DensityOptions options;
  StepOptions& step = options.backward.step;
  step.batch = 1;
  step.elements = 1024 * 1025 - 5;
  step.components = 18;
  step.std_elements = 1000;
  options.backward.sample = options.backward.model_output = options.prev_sample = false;
  compare(options, 7);
}

// Where a device's row is out of range, the density, the shares and the gradients of samples are NaN; no table notices.
void test_rows_out_of_range() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT64}) {
    for (const bool sums : {false, true}) {
      DensityOptions options;
      StepOptions& step = options.backward.step;
      step.batch = 2;
      step.elements = 1030;
      step.dtype = step.output_dtype = dtype;
      step.components = 9;
      step.offset_per_row = true;
      step.std_elements = 1030;
      options.weights = options.backward.offsets = options.backward.std = true;
      options.backward.coefficients = sums;
      DensityCase bad(options, 3, another), good(options, 3, poison);
      bad.backward.step.row[1] = -1;
      good.arguments.step.batch = good.gradients.of.step.batch = 1;
      CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
      CHECK(good.run_backward(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
      gmmkernel::emulate_log_prob(bad.arguments);
      gmmkernel::emulate_log_prob_backward(bad.gradients);
      CHECK(bad.log_prob.get(0, 0) == good.log_prob.get(0, 0) && std::isnan(bad.log_prob.get(1, 0)), "dtype %d", dtype);
      for (int64_t k = 0; k < 9; ++k) CHECK(std::isnan(bad.responsibilities.get(1, k)), "dtype %d", dtype);
      for (int64_t i = 0; i < step.elements; ++i) {
        for (const auto& pair : {std::pair{&bad.grad_prev_sample, &good.grad_prev_sample},
                                 {&bad.backward.sample, &good.backward.sample}}) {
          CHECK(pair.first->get(0, i) == pair.second->get(0, i) && std::isnan(pair.first->get(1, i)), "dtype %d",
                dtype);
        }
      }
      CHECK(bad.grad_weights.same_as(good.grad_weights) && bad.backward.offsets.same_as(good.backward.offsets) &&
                bad.backward.std.same_as(good.backward.std) &&
                bad.backward.coefficients.same_as(good.backward.coefficients),
            "dtype %d: a table has something of sample 1", dtype);
    }
  }
}

// A sample that has no part in the loss, its gradient being 0, gives zeros, and nothing to a table, whatever it is.
void test_samples_without_a_part() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT64}) {
    for (const bool sums : {false, true}) {
      DensityOptions options;
      StepOptions& step = options.backward.step;
      step.batch = 3;
      step.elements = 1030;
      step.dtype = step.output_dtype = step.history_dtype = dtype;
      step.guidance = true;
      step.history = 2;
      step.components = 9;
      step.std_elements = 700;
      options.idle = options.weights = options.backward.offsets = options.backward.std = true;
      options.backward.coefficients = sums;
      DensityCase expected(options, 3, poison);
      CHECK(expected.run_backward(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
      for (const bool on_grid : {false, true}) {
        DensityCase spoilt(options, 3, another);
        for (const int64_t sample : {0, 2}) {
          for (Tensor* tensor : {&spoilt.backward.step.sample, &spoilt.backward.step.history[1], &spoilt.prev_sample}) {
            for (int64_t i = 0; i < step.elements; ++i) tensor->set(sample, i, i % 2 == 0 ? NAN : INFINITY);
          }
          for (int64_t k = 0; k < step.components; ++k) spoilt.shares.set(sample, k, NAN);
        }
        if (on_grid) {
          gmmkernel::emulate_log_prob_backward(spoilt.gradients);
        } else {
          CHECK(spoilt.run_backward(2, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        }
        CHECK(same_density_gradients(spoilt, expected), "dtype %d, on grid %d", dtype, on_grid);
        for (const Tensor* tensor : {&spoilt.grad_prev_sample, &spoilt.backward.sample, &spoilt.backward.model_output,
                                     &spoilt.backward.uncond, &spoilt.backward.history[1]}) {
          bool zeros = true, some = false;
          for (int64_t i = 0; i < step.elements; ++i) {
            for (const int64_t sample : {0, 2}) {
              zeros = zeros && tensor->get(sample, i) == 0 && !std::signbit(tensor->get(sample, i));
            }
            some = some || tensor->get(1, i) != 0;
          }
          CHECK(zeros && some, "dtype %d, on grid %d", dtype, on_grid);
        }
      }
    }
  }
}

}  // namespace

int main() {
  test_random_densities();
  test_many_components();
  test_many_samples();
  test_two_levels();
  test_rows_out_of_range();
  test_samples_without_a_part();
  CHECK(densities > 200, "%d densities are numbers", densities);
  return check_report();
}
