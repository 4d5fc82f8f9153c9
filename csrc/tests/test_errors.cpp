// Bad arguments of the C interface: the status, a message that names the argument, and nothing written.

#include <functional>
#include <limits>
#include <string>

#include "step_case.h"

namespace {

constexpr unsigned char poison = 0xA5;

void expect(int status, int expected, const std::string& named) {
  CHECK(status == expected, "%s: status %d, expected %d", named.c_str(), status, expected);
  CHECK(std::string(gmm_last_error()).find(named) == 0, "'%s' does not begin with '%s'", gmm_last_error(),
        named.c_str());
}

struct BadStep {
  int status;
  const char* named;  // how the message begins
  std::function<void(StepCase&)> spoil;
};

const BadStep bad_steps[] = {
    {GMM_INVALID_ARGUMENT, "batch: ", [](StepCase& c) { c.arguments.batch = -1; }},
    {GMM_INVALID_ARGUMENT, "elements: ", [](StepCase& c) { c.arguments.elements = -1; }},
    {GMM_INVALID_ARGUMENT, "sample: ", [](StepCase& c) { c.arguments.sample.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "sample: ", [](StepCase& c) { c.arguments.sample.dtype = 4; }},
    {GMM_INVALID_ARGUMENT, "sample: ", [](StepCase& c) { c.arguments.sample.dtype = -1; }},
    {GMM_INVALID_ARGUMENT, "model_output: ", [](StepCase& c) { c.arguments.model_output.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "model_output: ", [](StepCase& c) { c.arguments.model_output.dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "model_output: ", [](StepCase& c) { c.arguments.model_output.dtype = 17; }},
    {GMM_INVALID_ARGUMENT,
     "model_output_uncond: ", [](StepCase& c) { c.arguments.model_output_uncond.dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "history", [](StepCase& c) { c.arguments.history[1].dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "result: ", [](StepCase& c) { c.arguments.result.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "result: ", [](StepCase& c) { c.arguments.result.dtype = GMM_BFLOAT16; }},
    {GMM_INVALID_ARGUMENT, "result: ", [](StepCase& c) { c.arguments.result.batch_stride = 0; }},
    {GMM_INVALID_ARGUMENT, "result: ", [](StepCase& c) { c.arguments.result.batch_stride = 99; }},
    {GMM_INVALID_ARGUMENT, "prediction: ", [](StepCase& c) { c.arguments.prediction.batch_stride = -99; }},
    {GMM_INVALID_ARGUMENT, "prediction: ", [](StepCase& c) { c.arguments.prediction.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "prediction: ", [](StepCase& c) { c.arguments.prediction.dtype = GMM_FLOAT64; }},
    {GMM_INVALID_ARGUMENT, "prediction_kind: ", [](StepCase& c) { c.arguments.prediction_kind = 5; }},
    {GMM_OUT_OF_RANGE, "first_element: ", [](StepCase& c) { c.arguments.first_element = {nullptr, 0, -1}; }},
    {GMM_INVALID_ARGUMENT, "first_element: ", [](StepCase& c) { c.arguments.first_element = {nullptr, 0, 4}; }},
    {GMM_INVALID_ARGUMENT, "log_prob: ", [](StepCase& c) { c.arguments.log_prob = c.result.data(); }},
    {GMM_INVALID_ARGUMENT, "workspace: ",
     [](StepCase& c) {
       c.arguments.log_prob = c.result.data();
       c.arguments.mixture.components = 0;
     }},
    {GMM_INVALID_ARGUMENT, "prediction_kind: ", [](StepCase& c) { c.arguments.prediction_kind = -1; }},
    {GMM_INVALID_ARGUMENT, "coefficients: ", [](StepCase& c) { c.arguments.coefficients = nullptr; }},
    {GMM_INVALID_ARGUMENT, "coefficients: ", [](StepCase& c) { c.arguments.coefficient_rows = 0; }},
    {GMM_INVALID_ARGUMENT, "seeds: ", [](StepCase& c) { c.arguments.seeds = nullptr; }},
    {GMM_OUT_OF_RANGE, "row: ", [](StepCase& c) { c.arguments.row = {nullptr, 0, 3}; }},
    {GMM_OUT_OF_RANGE, "row: ", [](StepCase& c) { c.arguments.row = {nullptr, 0, -1}; }},
    {GMM_INVALID_ARGUMENT, "row: ", [](StepCase& c) { c.arguments.row.stride = 2; }},
    {GMM_OUT_OF_RANGE, "row: ", [](StepCase& c) { c.row[1] = 3; }},
    {GMM_OUT_OF_RANGE, "row: ", [](StepCase& c) { c.row[0] = -1; }},
    {GMM_OUT_OF_RANGE, "row: ", [](StepCase& c) { c.row[0] = std::numeric_limits<int64_t>::min(); }},
    {GMM_OUT_OF_RANGE, "step: ", [](StepCase& c) { c.arguments.step = {nullptr, 0, int64_t{1} << 32}; }},
    {GMM_INVALID_ARGUMENT, "step: ", [](StepCase& c) { c.arguments.step.stride = -1; }},
    {GMM_OUT_OF_RANGE, "step: ", [](StepCase& c) { c.step[1] = -1; }},
    {GMM_OUT_OF_RANGE, "step: ", [](StepCase& c) { c.step[1] = int64_t{1} << 32; }},
    {GMM_INVALID_ARGUMENT, "components: ", [](StepCase& c) { c.arguments.mixture.components = -1; }},
    {GMM_INVALID_ARGUMENT, "components: ", [](StepCase& c) { c.arguments.mixture.components = 1025; }},
    {GMM_INVALID_ARGUMENT, "cdf: ", [](StepCase& c) { c.arguments.mixture.cdf = nullptr; }},
    {GMM_INVALID_ARGUMENT, "cdf_rows: ", [](StepCase& c) { c.arguments.mixture.cdf_rows = 2; }},
    {GMM_INVALID_ARGUMENT, "offsets: ", [](StepCase& c) { c.arguments.mixture.offsets = nullptr; }},
    {GMM_INVALID_ARGUMENT, "offset_rows: ", [](StepCase& c) { c.arguments.mixture.offset_rows = 0; }},
    {GMM_INVALID_ARGUMENT, "std: ", [](StepCase& c) { c.arguments.mixture.std = nullptr; }},
    {GMM_INVALID_ARGUMENT, "std_rows: ", [](StepCase& c) { c.arguments.mixture.std_rows = 4; }},
    {GMM_INVALID_ARGUMENT, "std_components: ", [](StepCase& c) { c.arguments.mixture.std_components = 3; }},
    {GMM_INVALID_ARGUMENT, "std_elements: ", [](StepCase& c) { c.arguments.mixture.std_elements = -1; }},
    {GMM_INVALID_ARGUMENT, "std_elements: ", [](StepCase& c) { c.arguments.mixture.std_elements = 101; }},
    {GMM_INVALID_ARGUMENT, "threads: ", [](StepCase& c) { c.cpu.threads = 0; }},
    {GMM_INVALID_ARGUMENT, "threads: ", [](StepCase& c) { c.cpu.threads = -2; }},
    {GMM_UNAVAILABLE, "instruction_set: ", [](StepCase& c) { c.cpu.instruction_set = 99; }},
    {GMM_UNAVAILABLE, "instruction_set: ", [](StepCase& c) { c.cpu.instruction_set = -1; }},
};

StepOptions everything() {
  StepOptions options;
  options.guidance = true;
  options.history = 4;
  options.prediction_kind = GMM_PREDICTION_X0;
  options.components = 8;
  options.std_elements = 100;
  return options;
}

void test_step() {
  for (const BadStep& bad : bad_steps) {
    StepCase c(everything(), 1, poison);
    bad.spoil(c);
    expect(gmm_cpu_step(&c.arguments, &c.cpu), bad.status, bad.named);
    CHECK(c.result.bytes_are(poison) && c.prediction.bytes_are(poison), "%s: something was written", bad.named);
    CHECK(c.components == std::vector<int64_t>(2, -1), "%s: components were written", bad.named);
  }
  StepCase good(everything(), 1);
  expect(gmm_cpu_step(nullptr, &good.cpu), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_step(&good.arguments, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());

  // Types beside a sample: only what the contract allows.
  const int32_t dtypes[] = {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64};
  for (const int32_t sample : dtypes) {
    for (const int32_t output : dtypes) {
      StepOptions options;
      options.dtype = sample;
      options.output_dtype = output;
      StepCase c(options, 1);
      const bool allowed = output == sample || output == GMM_FLOAT32 ||
                           (sample == GMM_FLOAT32 && (output == GMM_BFLOAT16 || output == GMM_FLOAT16));
      const int status = gmm_cpu_step(&c.arguments, &c.cpu);
      CHECK(status == (allowed ? GMM_SUCCESS : GMM_INVALID_ARGUMENT), "dtype %d beside %d: %d", output, sample, status);
    }
  }
}

void test_standard_normal() {
  struct Case {
    int status;
    const char* named;
    std::function<void(gmm_normal_arguments&)> spoil;
  };
  static const int64_t negative = -1;
  const Case cases[] = {
      {GMM_INVALID_ARGUMENT, "batch: ", [](gmm_normal_arguments& a) { a.batch = -1; }},
      {GMM_INVALID_ARGUMENT, "elements: ", [](gmm_normal_arguments& a) { a.elements = -5; }},
      {GMM_INVALID_ARGUMENT, "result: ", [](gmm_normal_arguments& a) { a.result.data = nullptr; }},
      {GMM_INVALID_ARGUMENT, "result: ", [](gmm_normal_arguments& a) { a.result.dtype = 9; }},
      {GMM_INVALID_ARGUMENT, "result: ", [](gmm_normal_arguments& a) { a.result.batch_stride = 4; }},
      {GMM_INVALID_ARGUMENT, "seeds: ", [](gmm_normal_arguments& a) { a.seeds = nullptr; }},
      {GMM_INVALID_ARGUMENT, "stream: ", [](gmm_normal_arguments& a) { a.stream = 6; }},
      {GMM_INVALID_ARGUMENT, "stream: ", [](gmm_normal_arguments& a) { a.stream = -1; }},
      {GMM_OUT_OF_RANGE, "step: ", [](gmm_normal_arguments& a) { a.step = {nullptr, 0, -1}; }},
      {GMM_OUT_OF_RANGE, "step: ", [](gmm_normal_arguments& a) { a.step.data = &negative; }},
      {GMM_OUT_OF_RANGE, "first_element: ", [](gmm_normal_arguments& a) { a.first_element.value = -1; }},
      {GMM_OUT_OF_RANGE, "first_element: ", [](gmm_normal_arguments& a) { a.first_element.data = &negative; }},
  };
  const int64_t seeds[] = {1, 2}, step = 2;
  gmm_cpu_options options = {1, GMM_BEST};
  for (const Case& bad : cases) {
    Tensor result(GMM_FLOAT32, 2, 5, 0, poison);
    gmm_normal_arguments a = {2, 5, {result.data(), 5, GMM_FLOAT32}, seeds, {&step, 0, 0}, GMM_STREAM_INITIAL, {}};
    bad.spoil(a);
    expect(gmm_cpu_standard_normal(&a, &options), bad.status, bad.named);
    CHECK(result.bytes_are(poison), "%s: something was written", bad.named);
  }
  const gmm_normal_arguments nothing = {};
  expect(gmm_cpu_standard_normal(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_standard_normal(&nothing, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  options.threads = 0;
  expect(gmm_cpu_standard_normal(&nothing, &options), GMM_INVALID_ARGUMENT, "threads: ");
}

void test_draw_components() {
  struct Case {
    int status;
    const char* named;
    std::function<void(gmm_component_arguments&)> spoil;
  };
  static const int64_t two[] = {2, 0};
  const Case cases[] = {
      {GMM_INVALID_ARGUMENT, "batch: ", [](gmm_component_arguments& a) { a.batch = -1; }},
      {GMM_INVALID_ARGUMENT, "result: ", [](gmm_component_arguments& a) { a.result = nullptr; }},
      {GMM_INVALID_ARGUMENT, "seeds: ", [](gmm_component_arguments& a) { a.seeds = nullptr; }},
      {GMM_INVALID_ARGUMENT, "components: ", [](gmm_component_arguments& a) { a.components = 0; }},
      {GMM_INVALID_ARGUMENT, "components: ", [](gmm_component_arguments& a) { a.components = 1025; }},
      {GMM_INVALID_ARGUMENT, "cdf: ", [](gmm_component_arguments& a) { a.cdf = nullptr; }},
      {GMM_INVALID_ARGUMENT, "cdf_rows: ", [](gmm_component_arguments& a) { a.cdf_rows = 0; }},
      {GMM_OUT_OF_RANGE, "row: ", [](gmm_component_arguments& a) { a.row = {nullptr, 0, 2}; }},
      {GMM_OUT_OF_RANGE, "row: ", [](gmm_component_arguments& a) { a.row.data = two; }},
      {GMM_OUT_OF_RANGE, "step: ", [](gmm_component_arguments& a) { a.step = {nullptr, 0, -1}; }},
  };
  const int64_t seeds[] = {1, 2}, row[] = {0, 1}, step = 0, cdf[] = {5, 6};
  for (const Case& bad : cases) {
    int64_t result[] = {-1, -1};
    gmm_component_arguments a = {2, result, seeds, {row, 1, 0}, {&step, 0, 0}, 2, cdf, 2};
    bad.spoil(a);
    expect(gmm_cpu_draw_components(&a), bad.status, bad.named);
    CHECK(result[0] == -1 && result[1] == -1, "%s: something was written", bad.named);
  }
  expect(gmm_cpu_draw_components(nullptr), GMM_INVALID_ARGUMENT, "arguments: ");
}

void test_orthonormalize() {
  double rows[6] = {1, 2, 3, 4, 5, 6};
  const double before[6] = {1, 2, 3, 4, 5, 6};
  gmm_cpu_options options = {1, GMM_BEST};
  expect(gmm_cpu_orthonormalize(nullptr, 2, 3, &options), GMM_INVALID_ARGUMENT, "rows: ");
  expect(gmm_cpu_orthonormalize(rows, 0, 3, &options), GMM_INVALID_ARGUMENT, "rows: ");
  expect(gmm_cpu_orthonormalize(rows, 3, 2, &options), GMM_INVALID_ARGUMENT, "rows: ");
  expect(gmm_cpu_orthonormalize(rows, 2, 3, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  options.threads = 0;
  expect(gmm_cpu_orthonormalize(rows, 2, 3, &options), GMM_INVALID_ARGUMENT, "threads: ");
  CHECK(std::memcmp(rows, before, sizeof rows) == 0, "rows were written");
  options.threads = 1;
  double dependent[6] = {3, 0, 0, 2, 0, 0}, infinite[3] = {1, std::numeric_limits<double>::infinity(), 0};
  expect(gmm_cpu_orthonormalize(dependent, 2, 3, &options), GMM_INVALID_ARGUMENT, "rows: ");
  expect(gmm_cpu_orthonormalize(infinite, 1, 3, &options), GMM_INVALID_ARGUMENT, "rows: ");
}

// Nothing to do is not an error, and the pointers are not needed.
void test_nothing_to_do() {
  const gmm_cpu_options options = {2, GMM_BEST};
  const gmm_normal_arguments no_normal = {};
  CHECK(gmm_cpu_standard_normal(&no_normal, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  const gmm_component_arguments no_components = {};
  CHECK(gmm_cpu_draw_components(&no_components) == GMM_SUCCESS, "%s", gmm_last_error());
  const float coefficients[GMM_ROW_COLUMNS] = {};
  gmm_step_arguments no_step = {};
  no_step.elements = 5;
  no_step.coefficients = coefficients;
  no_step.coefficient_rows = 1;
  CHECK(gmm_cpu_step(&no_step, &options) == GMM_SUCCESS, "%s", gmm_last_error());
}

}  // namespace

int main() {
  test_step();
  test_standard_normal();
  test_draw_components();
  test_orthonormalize();
  test_nothing_to_do();
  return check_report();
}
