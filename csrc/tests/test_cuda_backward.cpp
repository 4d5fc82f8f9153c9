// The bodies of the gradients' CUDA kernels over an emulated grid give the bits of the CPU core.

#include <cmath>
#include <initializer_list>

#include "backward_case.h"
#include "emulated_backward.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

int plain_cases = 0, typed_cases = 0, other_cases = 0, summed_cases = 0;

void compare(const BackwardOptions& options, uint64_t seed, int multiprocessors) {
  BackwardCase expected(options, seed, poison), got(options, seed, another);
  CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
  const bool typed = gmmkernel::is_typed(got.arguments), plain = typed && gmmkernel::is_plain(got.arguments);
  ++(options.coefficients ? summed_cases : plain ? plain_cases : typed ? typed_cases : other_cases);
  gmmkernel::emulate_step_backward(got.arguments, multiprocessors);
  const StepOptions& o = options.step;
  CHECK(same_gradients(got, expected),
        "seed %llu: %lld x %lld + %lld, dtypes %d %d %d, guidance %d, history %d, prediction %d %d, K %lld, std %lld, "
        "coefficients %d, offsets %d, std %d, clips %d",
        (unsigned long long)seed, (long long)o.batch, (long long)o.elements, (long long)o.padding, o.dtype,
        o.output_dtype, o.history_dtype, o.guidance, o.history, o.prediction_kind, options.grad_prediction,
        (long long)o.components, (long long)o.std_elements, options.coefficients, options.offsets, options.std,
        options.clips);
  CHECK(got.padding_is(another), "seed %llu: wrote between samples", (unsigned long long)seed);
}

// Gradients of one type, at sizes around a block's vectors and tiles.
void test_plain_gradients() {
  TestRandom random(60);
  uint64_t seed = 15000;
  for (const int64_t elements : {8, 16, 1000, 1024, 2040, 2048, 4096, 8192, 8200, 16384, 20000}) {
    for (int n = 0; n < 24; ++n) {
      StepOptions step = random_options(random, 1 + n % 3, elements);
      step.dtype = step.output_dtype = step.history_dtype = n % 3;
      step.padding = 0;
      BackwardOptions options = random_backward(random, step);
      options.grad_prediction = options.history = options.coefficients = false;
      compare(options, ++seed, n % 4 == 0 ? 1 : 132);
    }
  }
}

void test_any_gradients() {
  TestRandom random(61);
  uint64_t seed = 19000;
  for (const int64_t elements : {0, 1, 2, 3, 4, 5, 7, 8, 63, 255, 1000, 1023, 1024, 1025, 4097}) {
    for (int n = 0; n < 60; ++n) {
      const int64_t batch = n % 10 == 9 ? 0 : 1 + n % 5;
      compare(random_backward(random, random_options(random, batch, elements)), ++seed, n % 4 == 0 ? 1 : 132);
    }
  }
}

// More samples than are looked at in one round, for tables with a row each and with one for all.
void test_many_samples() {
  TestRandom random(62);
  for (int n = 0; n < 16; ++n) {
    StepOptions step = random_options(random, 255 + 150 * (n % 3), 1 + 9 * (n % 4));
    step.components = n % 4 == 0 ? 1 : 8;
    step.shard = false;
    step.std_elements = step.elements;
    BackwardOptions options = random_backward(random, step);
    options.coefficients = options.offsets = options.std = true;
    compare(options, 300 + n, 132);
  }
}

// Sums of more than one tile of tiles' sums; the last tile of them is not full, or holds a single one.
void test_two_levels() {
  for (const int64_t tiles : {1025, 2047}) {
    BackwardOptions options;
    options.step.batch = 2;
    options.step.elements = 1024 * tiles - 5;
    options.step.dtype = options.step.output_dtype = tiles % 2 == 0 ? GMM_BFLOAT16 : GMM_FLOAT32;
    options.sample = options.model_output = false;
    options.coefficients = true;
    compare(options, 7, 132);
  }
}

// Bounds of zero, infinite and NaN ones.
void test_clip_bounds() {
  for (const bool sums : {false, true}) {
    for (const double low : {0.0, -0.0, -HUGE_VAL, double(NAN)}) {
      for (const double high : {0.0, 0.25, HUGE_VAL, double(NAN)}) {
        BackwardOptions options;
        options.step.elements = 2048;
        options.step.special = true;
        options.coefficients = sums;
        BackwardCase expected(options, 78, poison), got(options, 78, another);
        for (BackwardCase* c : {&expected, &got}) {
          for (int64_t r = 0; r < options.step.coefficient_rows; ++r) {
            c->step.coefficients.set(r, GMM_CLIP_MIN, low);
            c->step.coefficients.set(r, GMM_CLIP_MAX, high);
          }
        }
        CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        gmmkernel::emulate_step_backward(got.arguments, 132);
        CHECK(same_gradients(got, expected), "bounds %g and %g, sums %d", low, high, sums);
      }
    }
  }
}

// One tensor of all begins beside the addresses of vectors.
void test_one_misaligned_tensor() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT64}) {
    for (int which = 0; which < 7; ++which) {
      BackwardOptions options;
      options.step.batch = 1;
      options.step.elements = 4096;
      options.step.padding = 8;
      options.step.dtype = options.step.output_dtype = dtype;
      options.step.guidance = true;
      BackwardCase expected(options, 80, poison), got(options, 80, poison);
      for (BackwardCase* c : {&expected, &got}) {
        gmm_step_backward_arguments& b = c->arguments;
        const void** inputs[] = {&b.step.sample.data, &b.step.model_output.data, &b.step.model_output_uncond.data,
                                 &b.grad_result.data};
        void** outputs[] = {&b.grad_sample.data, &b.grad_model_output.data, &b.grad_model_output_uncond.data};
        const int64_t element = dtype == GMM_FLOAT64 ? 8 : dtype == GMM_FLOAT32 ? 4 : 2;
        if (which < 4) {
          *inputs[which] = static_cast<const char*>(*inputs[which]) + element;
        } else {
          *outputs[which - 4] = static_cast<char*>(*outputs[which - 4]) + element;
        }
      }
      CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
      gmmkernel::emulate_step_backward(got.arguments, 132);
      CHECK(same_gradients(got, expected), "dtype %d, tensor %d", dtype, which);
    }
  }
}

// A row that clips nothing is not asked for sample and output.
void test_what_is_not_read() {
  for (const int64_t elements : {1024, 1021}) {
    BackwardOptions options;
    options.step.elements = elements;
    options.step.coefficient_rows = 2;
    options.clips = false;
    BackwardCase expected(options, 79, poison), got(options, 79, another);
    for (BackwardCase* c : {&expected, &got}) c->arguments.step.row = {nullptr, 0, 1};
    CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
    got.arguments.step.sample.data = got.arguments.step.model_output.data = reinterpret_cast<const void*>(16);
    gmmkernel::emulate_step_backward(got.arguments, 132);
    CHECK(same_gradients(got, expected), "%lld elements", (long long)elements);
  }
}

// Where a device's row or step is out of range, the sample's gradients are NaN and no table notices it.
void test_rows_out_of_range() {
  for (const bool common : {true, false}) {
    for (const bool sums : {true, false}) {
      for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
        BackwardOptions options;
        options.step.batch = 3;
        options.step.elements = common ? 2048 : 2045;
        options.step.dtype = options.step.output_dtype = dtype;
        options.step.guidance = true;
        options.step.components = 8;
        options.step.offset_per_row = options.step.std_per_component = true;
        options.step.std_elements = options.step.elements;
        options.coefficients = sums;
        options.offsets = options.std = true;
        BackwardCase bad(options, 3, another), whole(options, 3, poison), good(options, 3, poison);
        CHECK(whole.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        bad.step.row[0] = options.step.coefficient_rows;
        bad.step.step[2] = int64_t{1} << 32;
        gmmkernel::emulate_step_backward(bad.arguments, 132);

        gmm_step_backward_arguments& alone = good.arguments;  // sample 1 by itself
        const int64_t at = good.sample.stride() * (dtype == GMM_FLOAT64 ? 8 : dtype == GMM_FLOAT32 ? 4 : 2);
        const auto second = [at](auto& tensor) { tensor.data = (char*)(tensor.data) + at; };
        alone.step.batch = 1;
        ++alone.step.seeds;
        ++alone.step.row.data;
        ++alone.step.step.data;
        for (gmm_input* tensor :
             {&alone.step.sample, &alone.step.model_output, &alone.step.model_output_uncond, &alone.grad_result}) {
          second(*tensor);
        }
        for (gmm_output* tensor : {&alone.grad_sample, &alone.grad_model_output, &alone.grad_model_output_uncond}) {
          second(*tensor);
        }
        CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        CHECK(bad.coefficients.same_as(good.coefficients) && bad.offsets.same_as(good.offsets) &&
                  bad.std.same_as(good.std),
              "dtype %d: a table has something of sample 0 or 2", dtype);
        for (int64_t s = 0; s < 3; ++s) {
          for (int64_t i = 0; i < options.step.elements; ++i) {
            for (const auto& pair : {std::pair{&bad.sample, &whole.sample},
                                     {&bad.model_output, &whole.model_output},
                                     {&bad.uncond, &whole.uncond}}) {
              const double found = pair.first->get(s, i);
              CHECK(s == 1 ? found == pair.second->get(s, i) : std::isnan(found), "dtype %d: sample %lld", dtype,
                    (long long)s);
            }
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  test_plain_gradients();
  test_any_gradients();
  test_many_samples();
  test_two_levels();
  test_clip_bounds();
  test_one_misaligned_tensor();
  test_what_is_not_read();
  test_rows_out_of_range();
  CHECK(plain_cases > 100 && typed_cases > 200 && other_cases > 200 && summed_cases > 200, "%d, %d, %d and %d cases",
        plain_cases, typed_cases, other_cases, summed_cases);
  return check_report();
}
