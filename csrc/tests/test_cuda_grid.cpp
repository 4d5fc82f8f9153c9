// The CUDA kernels' bodies over an emulated grid give the bits of the plain step: indexing, tails, types, tables.

#include <cmath>
#include <initializer_list>
#include <vector>

#include "emulated_grid.h"
#include "step_plainly.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

int plain_steps = 0, typed_steps = 0, other_steps = 0;

void compare(const StepOptions& options, uint64_t seed, int multiprocessors) {
  StepCase expected(options, seed, poison), got(options, seed, another);
  step_plainly(expected);
  const bool typed = gmmkernel::is_typed(got.arguments) && got.arguments.log_prob == nullptr;
  ++(!typed ? other_steps : gmmkernel::is_plain(got.arguments) ? plain_steps : typed_steps);
  gmmkernel::emulate_step(got.arguments, multiprocessors);
  CHECK(same_outcome(got, expected),
        "seed %llu: %lld x %lld + %lld, dtypes %d %d, guidance %d, history %d, K %lld, std %lld",
        (unsigned long long)seed, (long long)options.batch, (long long)options.elements, (long long)options.padding,
        options.dtype, options.output_dtype, options.guidance, options.history, (long long)options.components,
        (long long)options.std_elements);
  CHECK(got.result.padding_is(another) && got.prediction.padding_is(another), "wrote between samples");
}

// Steps of one type and nothing more, at sizes around a block's vectors and tiles.
void test_plain_steps() {
  TestRandom random(50);
  uint64_t seed = 5000;
  for (const int64_t elements : {8, 16, 64, 1000, 1024, 2040, 2048, 4099, 8192, 8200, 16384, 20001}) {
    for (int n = 0; n < 30; ++n) {
      StepOptions options = random_options(random, 1 + n % 3, elements);
      options.dtype = options.output_dtype = n % 3;
      options.history = 0;
      options.guidance = false;
      options.scored = false;
      options.prediction_kind = GMM_PREDICTION_NONE;
      options.padding = 0;
      if (n % 2 == 0 && options.components > 0) options.std_elements = elements;
      compare(options, ++seed, n % 4 == 0 ? 1 : 132);
    }
  }
}

// Whatever else there is beside one or two types, in the sizes of whole vectors and in others.
void test_typed_steps() {
  TestRandom random(52);
  uint64_t seed = 7000;
  for (const int64_t elements : {1, 8, 63, 1000, 2048, 4099, 16384}) {
    for (int n = 0; n < 42; ++n) {
      StepOptions options = random_options(random, 1 + n % 3, elements);
      options.dtype = n % 3;
      options.output_dtype = n % 2 == 0 ? options.dtype : options.dtype == GMM_FLOAT32 ? 1 + n % 4 / 2 : GMM_FLOAT32;
      options.history_dtype = options.dtype;
      options.scored = false;
      compare(options, ++seed, n % 4 == 0 ? 1 : 132);
    }
  }
}

void test_any_step() {
  TestRandom random(51);
  uint64_t seed = 9000;
  for (const int64_t elements : {0, 1, 2, 3, 4, 5, 7, 8, 63, 255, 1000, 1025, 4097, 8193}) {
    for (int n = 0; n < 40; ++n) compare(random_options(random, 1 + n % 3, elements), ++seed, n % 4 == 0 ? 1 : 132);
  }
}

// A bound of zero keeps the sign of the zero that meets it; an infinite one clips nothing; NaN bounds nothing.
void test_clip_bounds() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16}) {
    for (const double low : {0.0, -0.0, -1.0, -HUGE_VAL, double(NAN)}) {
      for (const double high : {0.0, 0.25, HUGE_VAL, double(NAN)}) {
        StepOptions options;
        options.dtype = options.output_dtype = dtype;
        options.elements = 2048;
        options.special = true;
        StepCase expected(options, 77, poison), got(options, 77, another);
        for (StepCase* c : {&expected, &got}) {
          for (int64_t r = 0; r < options.coefficient_rows; ++r) {
            c->coefficients.set(r, GMM_CLIP_MIN, low);
            c->coefficients.set(r, GMM_CLIP_MAX, high);
          }
        }
        step_plainly(expected);
        gmmkernel::emulate_step(got.arguments, 132);
        CHECK(same_outcome(got, expected), "bounds %g and %g, dtype %d", low, high, dtype);
      }
    }
  }
}

// Where a device's row or step is out of range, the sample is NaN and its component -1; the others are as ever.
void test_rows_out_of_range() {
  for (const bool common : {true, false}) {
    for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
      StepOptions options;
      options.batch = 3;
      options.elements = common ? 1024 : 1021;
      options.dtype = options.output_dtype = dtype;
      options.components = 8;
      options.std_elements = options.elements;
      options.prediction_kind = common ? GMM_PREDICTION_NONE : GMM_PREDICTION_X0;
      StepCase good(options, 3, poison), bad(options, 3, another);
      step_plainly(good);
      bad.row[0] = options.coefficient_rows;
      bad.step[2] = int64_t{1} << 32;
      gmmkernel::emulate_step(bad.arguments, 132);
      for (int64_t b = 0; b < 3; ++b) {
        int64_t different = 0, numbers = 0;
        for (int64_t i = 0; i < options.elements; ++i) {
          different += bad.result.get(b, i) != good.result.get(b, i);
          numbers += !std::isnan(bad.result.get(b, i));
          if (!common) numbers += !std::isnan(bad.prediction.get(b, i));
        }
        if (b == 1) {
          CHECK(different == 0 && bad.components[b] == good.components[b], "dtype %d: sample 1 changed", dtype);
        } else {
          CHECK(numbers == 0 && bad.components[b] == -1, "dtype %d: sample %lld is not NaN", dtype, (long long)b);
        }
      }
    }
  }
}

void test_noise() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
    for (const int64_t elements : {1, 3, 4, 1023, 1024, 4099, 20000, 20001}) {
      for (const int64_t padding : {0, 1}) {
        Tensor expected(dtype, 2, elements, padding, poison), got(dtype, 2, elements, padding, another);
        const int64_t seeds[] = {5, -7}, steps[] = {3, 0xFFFFFFFF};
        gmm_normal_arguments a = {2,
                                  elements,
                                  {expected.data(), expected.stride(), dtype},
                                  seeds,
                                  {steps, 1, 0},
                                  2,
                                  {nullptr, 0, elements % 2 == 0 ? 4 * elements : elements}};
        const gmm_cpu_options options = {1, GMM_PORTABLE};
        CHECK(gmm_cpu_standard_normal(&a, &options) == GMM_SUCCESS, "%s", gmm_last_error());
        a.result.data = got.data();
        gmmkernel::emulate_standard_normal(a, elements > 5000 ? 1 : 132);
        CHECK(got.same_as(expected) && got.padding_is(another), "dtype %d, %lld elements", dtype, (long long)elements);
      }
    }
  }
}

// More samples than one dimension of the grid has blocks.
void test_many_samples() {
  constexpr int64_t batch = gmmkernel::largest_grid_y + 3;
  std::vector<float> expected(batch), got(batch, NAN);
  std::vector<int64_t> seeds(batch);
  for (int64_t b = 0; b < batch; ++b) seeds[b] = b;
  gmm_normal_arguments a = {batch, 1, {expected.data(), 1, GMM_FLOAT32}, seeds.data(), {nullptr, 0, 4}, 0, {}};
  const gmm_cpu_options options = {1, GMM_BEST};
  CHECK(gmm_cpu_standard_normal(&a, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  a.result.data = got.data();
  gmmkernel::emulate_standard_normal(a, 132);
  CHECK(std::memcmp(expected.data(), got.data(), batch * sizeof(float)) == 0, "noise of many samples");
}

void test_components() {
  const int64_t cdf[] = {1ll << 30, 1ll << 31, 3ll << 30, 0, 1ll << 32, 1ll << 32};
  std::vector<int64_t> seeds, rows, steps, expected(200), got(200, -9);
  for (int64_t b = 0; b < 200; ++b) {
    seeds.push_back(b * b);
    rows.push_back(b % 2);
    steps.push_back(b % 7);
  }
  gmm_component_arguments a = {200, expected.data(), seeds.data(), {rows.data(), 1, 0}, {steps.data(), 1, 0}, 4, cdf,
                               2};
  CHECK(gmm_cpu_draw_components(&a) == GMM_SUCCESS, "%s", gmm_last_error());
  a.result = got.data();
  for (int64_t b = 0; b < 200; ++b) gmmkernel::draw_component_body(a, b);
  CHECK(got == expected, "components");
  rows[3] = 2;
  steps[4] = -1;
  for (int64_t b = 3; b < 5; ++b) {
    gmmkernel::draw_component_body(a, b);
    CHECK(got[b] == -1, "out of range: %lld", (long long)got[b]);
  }
}

// Tiles are powers of two, cover a sample, and grow with the work.
void test_tiling() {
  for (const int64_t elements : {1, 1000, 16384, 1 << 20}) {
    for (const int64_t batch : {1, 16, 4096}) {
      const gmmkernel::Tiling t = gmmkernel::tiling_of(batch, elements, 1024, 132);
      CHECK((t.tile_elements & (t.tile_elements - 1)) == 0 && t.tile_elements >= 256 && t.tile_elements <= 16384,
            "tile of %u", t.tile_elements);
      CHECK(t.threads % 32 == 0 && t.threads <= 256 && (t.threads == 256 || t.threads * 4 == t.tile_elements),
            "%u threads for %u elements", t.threads, t.tile_elements);
    }
  }
  for (const uint32_t per_pass : {1024, 2048}) {
    const gmmkernel::Tiling latent = gmmkernel::tiling_of(1, 16384, per_pass, 132);
    CHECK(latent.tile_elements == 256 && latent.threads == 64, "little work: blocks of two warps");
    const gmmkernel::Tiling larger = gmmkernel::tiling_of(1, 262144, per_pass, 132);
    CHECK(larger.tile_elements == per_pass && larger.threads == 256, "one pass a tile, %u", larger.tile_elements);
  }
  CHECK(gmmkernel::tiling_of(64, 1 << 20, 1024, 132).tile_elements == 16384, "much work: large tiles");
}

}  // namespace

int main() {
  test_plain_steps();
  test_typed_steps();
  test_any_step();
  test_clip_bounds();
  test_rows_out_of_range();
  test_noise();
  test_many_samples();
  test_components();
  test_tiling();
  CHECK(plain_steps > 200 && typed_steps > 200 && other_steps > 200, "%d, %d and %d steps", plain_steps, typed_steps,
        other_steps);
  return check_report();
}
