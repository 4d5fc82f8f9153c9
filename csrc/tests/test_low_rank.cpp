// Exact moment matching: the bodies of the CUDA kernels over an emulated grid, and every instruction set and number of
// threads, give the bits of the portable core; steps and log-densities.

#include <cmath>
#include <initializer_list>

#include "density_case.h"
#include "emulated_density.h"
#include "emulated_low_rank.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

int removing = 0;      // samples with directions
int common_steps = 0;  // for which the GPU has kernels of their own

void compare(const StepOptions& options, uint64_t seed) {
  StepCase expected(options, seed, poison);
  CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%s", gmm_last_error());
  char text[256];
  std::snprintf(text, sizeof text, "seed %llu: %lld x %lld + %lld, dtypes %d %d, history %d, K %lld, R %lld",
                (unsigned long long)seed, (long long)options.batch, (long long)options.elements,
                (long long)options.padding, options.dtype, options.output_dtype, options.history,
                (long long)options.components, (long long)options.directions);
  for (const int32_t set : available_instruction_sets()) {
    for (const int32_t threads : {1, 3}) {
      StepCase got(options, seed, another);
      CHECK(got.run(threads, set) == GMM_SUCCESS, "%s: %s", text, gmm_last_error());
      CHECK(same_outcome(got, expected), "set %d, %d threads, %s", set, threads, text);
      CHECK(got.result.padding_is(another) && got.prediction.padding_is(another), "%s: wrote between samples", text);
    }
  }
  for (const int multiprocessors : {1, 132}) {
    StepCase got(options, seed, another);
    common_steps += gmmkernel::is_common(got.arguments);
    gmmkernel::emulate_step_in_directions(got.arguments, multiprocessors);
    CHECK(same_outcome(got, expected), "CUDA, %s", text);
    CHECK(got.result.padding_is(another) && got.prediction.padding_is(another), "%s: wrote between samples", text);
  }
  for (int64_t b = 0; b < options.batch; ++b) {
    const int64_t row =
        expected.arguments.row.data == nullptr ? expected.arguments.row.value : expected.row[options.one_row ? 0 : b];
    removing += expected.coefficients.get(row, GMM_OFFSET) != 0 && expected.coefficients.get(row, GMM_SIGMA) != 0;
  }
}

void test_steps() {
  TestRandom random(80);
  uint64_t seed = 30000;
  for (const int64_t elements : {0, 1, 2, 3, 5, 63, 255, 1000, 1023, 1024, 1025, 4097, 8193}) {
    for (int n = 0; n < 24; ++n) compare(with_directions(random, random_options(random, 1 + n % 6, elements)), ++seed);
  }
  for (const int64_t batch : {15, 16, 17, 35}) {
    compare(with_directions(random, random_options(random, batch, 2500)), ++seed);
  }
}

// Groups of samples on a GPU: whole and not, of samples that share their offsets, do not, or have none to add last.
void test_common_steps() {
  TestRandom random(83);
  uint64_t seed = 32000;
  for (const int64_t elements : {8, 64, 1000, 1024, 1032, 4096, 8200}) {
    for (int n = 0; n < 24; ++n) {
      StepOptions options = with_directions(random, random_options(random, 1 + n % 9, elements));
      options.dtype = options.output_dtype = n % 3;
      options.history = 0;
      options.prediction_kind = GMM_PREDICTION_NONE;
      options.padding = 0;
      options.offset_per_row = n % 4 == 3;
      options.one_row = options.one_row || n % 8 == 7;
      options.offset_off = options.offset_off && n % 4 > 0;
      options.sigma_off = options.sigma_off && n % 4 > 0;
      compare(options, ++seed);
    }
  }
}

// A sample may be written over what it was made from.
void test_in_place() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
    StepOptions options;
    options.batch = 5;
    options.elements = 4104;
    options.components = 7;
    options.directions = 6;
    options.dtype = options.output_dtype = dtype;
    StepCase expected(options, 5, poison), got(options, 5, poison);
    CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%s", gmm_last_error());
    got.arguments.result.data = got.sample.data();
    gmmkernel::emulate_step_in_directions(got.arguments, 132);
    CHECK(got.sample.same_as(expected.result) && got.result.bytes_are(poison), "dtype %d", dtype);
  }
}

void test_many_components() {
  TestRandom random(81);
  for (const int64_t components : {15, 16, 17, 33, 255, 257, 1024}) {
    StepOptions options = random_options(random, 2, 1030);
    options.components = components;
    options.special = false;
    compare(with_directions(random, options), 700 + components);
  }
}

// Sums of more than one tile of tiles' sums.
void test_two_levels() {
  StepOptions options;
  options.batch = 1;
  options.elements = 1024 * 1025 - 5;
  options.components = 3;
  options.directions = 2;
  compare(options, 7);
}

void test_densities() {
  TestRandom random(82);
  uint64_t seed = 35000;
  int numbers = 0;
  for (const int64_t elements : {0, 1, 3, 63, 257, 1024, 1025, 4097}) {
    for (int n = 0; n < 20; ++n) {
      StepOptions step = with_directions(random, random_options(random, 1 + n % 4, elements));
      if (n % 2 == 0) step.sigma_off = step.special = false;
      const DensityOptions options = random_density(random, step);
      DensityCase expected(options, ++seed, poison);
      CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%s", gmm_last_error());
      for (const int32_t set : available_instruction_sets()) {
        DensityCase got(options, seed, another);
        CHECK(got.run(2, set) == GMM_SUCCESS, "%s", gmm_last_error());
        CHECK(same_densities(got, expected), "seed %llu, set %d", (unsigned long long)seed, set);
      }
      DensityCase got(options, seed, another);
      gmmkernel::emulate_log_prob(got.arguments);
      CHECK(same_densities(got, expected), "CUDA, seed %llu, dtype %d, %lld elements", (unsigned long long)seed,
            step.dtype, (long long)elements);
      for (int64_t b = 0; b < step.batch; ++b) numbers += !std::isnan(expected.log_prob.get(b, 0));
    }
  }
  CHECK(numbers > 100, "%d densities are numbers", numbers);
}

// Where a device's row or step is out of range, the sample and its density are NaN, and nothing is read there.
void test_indices_out_of_range() {
  for (const int64_t elements : {1030, 1032}) {
    for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
      StepOptions options;
      options.batch = 6;
      options.elements = elements;
      options.dtype = options.output_dtype = dtype;
      options.components = 9;
      options.directions = 8;
      options.offset_per_row = options.direction_per_row = true;
      StepCase bad(options, 3, another), good(options, 3, poison);
      bad.row[1] = 1 << 30;
      bad.step[2] = -1;
      bad.row[4] = -1;
      CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
      gmmkernel::emulate_step_in_directions(bad.arguments, 132);
      for (int64_t b = 0; b < options.batch; ++b) {
        const bool valid = b != 1 && b != 2 && b != 4;
        int64_t different = 0, numbers = 0;
        for (int64_t i = 0; i < elements; ++i) {
          different += bad.result.get(b, i) != good.result.get(b, i);
          numbers += !std::isnan(bad.result.get(b, i));
        }
        CHECK(valid ? different == 0 : numbers == 0, "dtype %d, sample %lld", dtype, (long long)b);
        CHECK(bad.components[b] == (valid ? good.components[b] : -1), "dtype %d, sample %lld", dtype, (long long)b);
      }
    }
  }
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT64}) {
    DensityOptions options;
    StepOptions& step = options.backward.step;
    step.elements = 1030;
    step.dtype = step.output_dtype = dtype;
    step.components = 9;
    step.directions = 8;
    step.direction_per_row = true;
    DensityCase density(options, 3, another);
    density.backward.step.row[1] = -1;
    gmmkernel::emulate_log_prob(density.arguments);
    CHECK(std::isnan(density.log_prob.get(1, 0)) && std::isnan(density.energies.get(1, 4)), "dtype %d", dtype);
    CHECK(!std::isnan(density.log_prob.get(0, 0)), "dtype %d", dtype);
  }
}

void test_errors() {
  StepOptions options;
  options.components = 4;
  options.directions = 3;
  const auto refused = [&](const char* expected, const auto& change) {
    StepCase c(options, 1);
    change(c.arguments);
    CHECK(c.run(1, GMM_BEST) == GMM_INVALID_ARGUMENT, "%s", expected);
    CHECK(std::strstr(gmm_last_error(), expected) != nullptr, "%s", gmm_last_error());
    CHECK(c.result.bytes_are(0xA5), "%s: wrote", expected);
  };
  refused("directions: expected 0 to 4, got 5", [](gmm_step_arguments& a) { a.mixture.directions = 5; });
  refused("directions: expected 0 to 4, got -1", [](gmm_step_arguments& a) { a.mixture.directions = -1; });
  refused("basis: no data", [](gmm_step_arguments& a) { a.mixture.basis = nullptr; });
  refused("basis_rows: expected 1 or 3 rows, got 2", [](gmm_step_arguments& a) { a.mixture.basis_rows = 2; });
  refused("std_delta: no data", [](gmm_step_arguments& a) { a.mixture.std_delta = nullptr; });
  refused("std_delta_components: expected 1 or 4, got 3",
          [](gmm_step_arguments& a) { a.mixture.std_delta_components = 3; });
  refused("workspace: no data", [](gmm_step_arguments& a) { a.workspace = nullptr; });
  float std[4] = {};
  refused("std_elements: expected 0 with directions, got 1", [&](gmm_step_arguments& a) {
    a.mixture.std_elements = 1;
    a.mixture.std = std;
  });
}

}  // namespace

int main() {
  test_steps();
  test_common_steps();
  test_in_place();
  test_many_components();
  test_two_levels();
  test_densities();
  test_indices_out_of_range();
  test_errors();
  CHECK(removing > 300, "%d samples have directions", removing);
  CHECK(common_steps > 200, "%d common steps", common_steps);
  return check_report();
}
