// gmm_cpu_step: every instruction set and thread count gives the bits of the plain step, over random configurations.

#include "step_plainly.h"

namespace {

void describe(char* text, size_t size, const StepOptions& o, int32_t set, int32_t threads) {
  std::snprintf(text, size,
                "set %d, %d threads, %lld x %lld + %lld, dtypes %d %d %d, guidance %d, history %d, prediction %d, "
                "K %lld, std elements %lld, special %d",
                set, threads, (long long)o.batch, (long long)o.elements, (long long)o.padding, o.dtype, o.output_dtype,
                o.history_dtype, o.guidance, o.history, o.prediction_kind, (long long)o.components,
                (long long)o.std_elements, o.special);
}

void compare(const StepOptions& options, uint64_t seed, const std::vector<int32_t>& threads) {
  constexpr unsigned char poison = 0xA5, another = 0x5A;  // so that an element left alone differs
  StepCase expected(options, seed, poison);
  step_plainly(expected);
  for (const int32_t set : available_instruction_sets()) {
    for (const int32_t count : threads) {
      char text[256];
      describe(text, sizeof text, options, set, count);
      StepCase got(options, seed, another);
      CHECK(got.run(count, set) == GMM_SUCCESS, "%s: %s", text, gmm_last_error());
      CHECK(same_outcome(got, expected), "%s", text);
      CHECK(got.result.padding_is(another) && got.prediction.padding_is(another), "%s: wrote between samples", text);
    }
  }
}

// A sample's result is its own: alone, or anywhere in a batch, it has the same bits.
void test_batch_split() {
  TestRandom random(20);
  for (int n = 0; n < 40; ++n) {
    StepOptions options = random_options(random, 5, 131);
    StepCase whole(options, 1000 + n);
    CHECK(whole.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
    StepCase parts(options, 1000 + n);
    gmm_step_arguments all = parts.arguments;
    for (int64_t b = 0; b < options.batch; ++b) {
      gmm_step_arguments& one = parts.arguments;
      const auto move_input = [&](gmm_input& part, const gmm_input& of, int32_t dtype) {
        const int64_t bytes = dtype == GMM_FLOAT64 ? 8 : dtype == GMM_FLOAT32 ? 4 : 2;
        if (of.data != nullptr) part.data = static_cast<const char*>(of.data) + b * of.batch_stride * bytes;
      };
      const auto move_output = [&](gmm_output& part, const gmm_output& of) {
        const int64_t bytes = of.dtype == GMM_FLOAT64 ? 8 : of.dtype == GMM_FLOAT32 ? 4 : 2;
        if (of.data != nullptr) part.data = static_cast<char*>(of.data) + b * of.batch_stride * bytes;
      };
      one.batch = 1;
      move_input(one.sample, all.sample, all.sample.dtype);
      move_input(one.model_output, all.model_output, all.model_output.dtype);
      move_input(one.model_output_uncond, all.model_output_uncond, all.model_output_uncond.dtype);
      for (int j = 0; j < GMM_MAX_HISTORY; ++j) move_input(one.history[j], all.history[j], all.history[j].dtype);
      move_output(one.result, all.result);
      move_output(one.prediction, all.prediction);
      if (all.components != nullptr) one.components = all.components + b;
      one.row.data = all.row.data + b * all.row.stride;
      one.step.data = all.step.data + b * all.step.stride;
      if (all.first_element.data != nullptr) {
        one.first_element.data = all.first_element.data + b * all.first_element.stride;
      }
      if (all.log_prob != nullptr) {
        const int64_t bytes = options.dtype == GMM_FLOAT64 ? 8 : 4;
        one.log_prob = static_cast<char*>(all.log_prob) + b * bytes;
      }
      one.seeds = all.seeds + b;
      CHECK(parts.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
    }
    CHECK(same_outcome(whole, parts), "case %d", n);
  }
}

// The result may take the sample's place.
void test_in_place() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
    StepOptions options;
    options.dtype = options.output_dtype = options.history_dtype = dtype;
    options.components = 8;
    options.std_elements = options.elements;
    for (const int32_t set : available_instruction_sets()) {
      StepCase apart(options, 3), in_place(options, 3);
      in_place.arguments.result.data = in_place.sample.data();
      CHECK(apart.run(1, set) == GMM_SUCCESS && in_place.run(1, set) == GMM_SUCCESS, "%s", gmm_last_error());
      CHECK(apart.result.same_as(in_place.sample), "dtype %d, set %d", dtype, set);
    }
  }
}

}  // namespace

int main() {
  TestRandom random(10);
  uint64_t seed = 0;
  for (const int64_t elements : {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 1000}) {
    for (const int64_t batch : {1, 2, 3}) {
      for (int n = 0; n < 25; ++n) compare(random_options(random, batch, elements), ++seed, {1});
    }
  }
  for (const int64_t elements : {0, 4097, 40003}) {  // more than one piece of work, so that threads share it
    for (int n = 0; n < 8; ++n) compare(random_options(random, 3, elements), ++seed, {1, 2, 7});
  }
  compare(random_options(random, 0, 10), ++seed, {1, 2});
  compare(random_options(random, 100, 3), ++seed, {1, 2, 7});
  test_batch_split();
  test_in_place();
  return check_report();
}
