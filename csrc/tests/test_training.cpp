// Training ops of the C interface: instruction sets, threads, and bad arguments.

#include <functional>
#include <memory>
#include <string>

#include "training_case.h"

namespace {

constexpr unsigned char poison = 0xA5;

void test_sets_and_threads() {
  TestRandom random(81);
  for (int number = 0; number < 80; ++number) {
    const int64_t elements = number % 5 == 0 ? 1 : number % 5 == 1 ? 2500 : 37 * (1 + number % 7);
    const TrainingOptions options = random_training(random, 1 + number % 3, elements);
    TrainingCase expected(options, number);
    CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
    for (const int32_t set : available_instruction_sets()) {
      for (const int32_t threads : {1, 3}) {
        TrainingCase made(options, number);
        CHECK(made.run(threads, set) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
        CHECK(same_training(made, expected), "%d: set %d, %d threads", number, set, threads);
        CHECK(padding_is(made, poison), "%d: set %d", number, set);
      }
    }
  }
}

void test_in_place() {
  TrainingOptions options;
  options.elements = 1500;
  TrainingCase expected(options, 1), made(options, 1);
  made.noising.result = {made.data.data(), made.data.stride(), options.dtype};
  CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS && made.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
  CHECK(made.data.same_as(expected.result), "in place");
}

void expect(int status, int expected, const std::string& named) {
  CHECK(status == expected, "%s: status %d, expected %d", named.c_str(), status, expected);
  CHECK(std::string(gmm_last_error()).find(named) == 0, "'%s' does not begin with '%s'", gmm_last_error(),
        named.c_str());
}

const struct {
  int status;
  const char* named;
  std::function<void(gmm_training&)> spoil;
} bad_batches[] = {
    {GMM_INVALID_ARGUMENT, "batch: ", [](gmm_training& t) { t.batch = -1; }},
    {GMM_INVALID_ARGUMENT, "elements: ", [](gmm_training& t) { t.elements = -1; }},
    {GMM_INVALID_ARGUMENT, "coefficients: ", [](gmm_training& t) { t.coefficients = nullptr; }},
    {GMM_INVALID_ARGUMENT, "coefficients: ", [](gmm_training& t) { t.coefficient_rows = 0; }},
    {GMM_INVALID_ARGUMENT, "seeds: ", [](gmm_training& t) { t.seeds = nullptr; }},
    {GMM_OUT_OF_RANGE, "row: ", [](gmm_training& t) { t.row = {nullptr, 0, 3}; }},
    {GMM_OUT_OF_RANGE, "row: ", [](gmm_training& t) { t.row = {nullptr, 0, -1}; }},
    {GMM_INVALID_ARGUMENT, "row: ", [](gmm_training& t) { t.row.stride = 2; }},
    {GMM_OUT_OF_RANGE, "step: ", [](gmm_training& t) { t.step = {nullptr, 0, int64_t{1} << 32}; }},
};

const struct {
  const char* named;
  std::function<void(gmm_add_noise_arguments&)> spoil;
} bad_noisings[] = {
    {"sample: ", [](gmm_add_noise_arguments& a) { a.sample.data = nullptr; }},
    {"sample: ", [](gmm_add_noise_arguments& a) { a.sample.dtype = 9; }},
    {"result: ", [](gmm_add_noise_arguments& a) { a.result.data = nullptr; }},
    {"result: ", [](gmm_add_noise_arguments& a) { a.result.dtype = GMM_FLOAT16; }},
    {"result: ", [](gmm_add_noise_arguments& a) { a.result.batch_stride = 1; }},
    {"noise: ", [](gmm_add_noise_arguments& a) { a.noise.dtype = GMM_FLOAT64; }},
    {"noise: ", [](gmm_add_noise_arguments& a) { a.noise.batch_stride = 0; }},
};

const struct {
  const char* named;
  std::function<void(gmm_skip_loss_arguments&)> spoil;
} bad_losses[] = {
    {"model_output: ", [](gmm_skip_loss_arguments& a) { a.model_output.data = nullptr; }},
    {"model_output: ", [](gmm_skip_loss_arguments& a) { a.model_output.dtype = -1; }},
    {"sample: dtype", [](gmm_skip_loss_arguments& a) { a.sample.dtype = GMM_FLOAT64; }},
    {"sample: expected the training sample x_t, which row 1 of sample 1 reads, got none",
     [](gmm_skip_loss_arguments& a) { a.sample.data = nullptr; }},
};

const struct {
  const char* named;
  std::function<void(gmm_skip_loss_backward_arguments&)> spoil;
} bad_gradients[] = {
    {"grad_loss: ", [](gmm_skip_loss_backward_arguments& b) { b.grad_loss = nullptr; }},
    {"grad_model_output: ", [](gmm_skip_loss_backward_arguments& b) { b.grad_model_output.dtype = GMM_FLOAT64; }},
    {"grad_model_output: ", [](gmm_skip_loss_backward_arguments& b) { b.grad_model_output.batch_stride = 3; }},
    {"grad_sample: ", [](gmm_skip_loss_backward_arguments& b) { b.grad_sample.dtype = GMM_BFLOAT16; }},
};

void test_bad_arguments() {
  const gmm_cpu_options options = {2, GMM_BEST};
  const auto made = [] {
    auto c = std::make_unique<TrainingCase>(TrainingOptions(), 1);
    for (int64_t r = 0; r < 3; ++r) c->coefficients.set(r, GMM_TRAINING_EPS_SAMPLE, r == 1 ? 0.5 : 0.0);
    c->row[0] = 0;
    c->row[1] = 1;
    return c;
  };
  const auto unwritten = [](const TrainingCase& c, const char* named) {
    CHECK(c.result.bytes_are(poison) && c.noise.bytes_are(poison) && c.loss.bytes_are(poison) &&
              c.residual.bytes_are(poison) && c.grad_output.bytes_are(poison) && c.grad_sample.bytes_are(poison),
          "%s written", named);
  };
  for (const auto& bad : bad_batches) {
    const auto c = made();
    bad.spoil(c->noising.training);
    bad.spoil(c->loss_of.training);
    bad.spoil(c->backward.of.training);
    expect(gmm_cpu_add_noise(&c->noising, &options), bad.status, bad.named);
    expect(gmm_cpu_skip_loss(&c->loss_of, &options), bad.status, bad.named);
    expect(gmm_cpu_skip_loss_backward(&c->backward, &options), bad.status, bad.named);
    if (std::string(bad.named) != "seeds: ") {  // it draws nothing
      bad.spoil(c->scaling.training);
      expect(gmm_cpu_scale_residual(&c->scaling, &options), bad.status, bad.named);
    }
    unwritten(*c, bad.named);
  }
  for (const auto& bad : bad_noisings) {
    const auto c = made();
    bad.spoil(c->noising);
    expect(gmm_cpu_add_noise(&c->noising, &options), GMM_INVALID_ARGUMENT, bad.named);
    unwritten(*c, bad.named);
  }
  for (const auto& bad : bad_losses) {
    const auto c = made();
    bad.spoil(c->loss_of);
    bad.spoil(c->backward.of);
    expect(gmm_cpu_skip_loss(&c->loss_of, &options), GMM_INVALID_ARGUMENT, bad.named);
    expect(gmm_cpu_skip_loss_backward(&c->backward, &options), GMM_INVALID_ARGUMENT, bad.named);
    unwritten(*c, bad.named);
  }
  for (const auto& bad : bad_gradients) {
    const auto c = made();
    bad.spoil(c->backward);
    expect(gmm_cpu_skip_loss_backward(&c->backward, &options), GMM_INVALID_ARGUMENT, bad.named);
    unwritten(*c, bad.named);
  }
  const auto c = made();
  c->backward.of.sample = {};
  c->coefficients.set(1, GMM_TRAINING_EPS_SAMPLE, 0);
  expect(gmm_cpu_skip_loss_backward(&c->backward, &options), GMM_INVALID_ARGUMENT, "grad_sample: ");
  for (const auto& [field, named] :
       {std::pair<void**, const char*>{&c->loss_of.loss, "loss: "}, {&c->loss_of.workspace, "workspace: "}}) {
    void* const before = *field;
    *field = nullptr;
    expect(gmm_cpu_skip_loss(&c->loss_of, &options), GMM_INVALID_ARGUMENT, named);
    *field = before;
  }
  c->loss_of.residual.batch_stride = 1;
  expect(gmm_cpu_skip_loss(&c->loss_of, &options), GMM_INVALID_ARGUMENT, "residual: ");
  TrainingOptions half;
  half.dtype = half.sample_dtype = GMM_BFLOAT16;
  TrainingCase of_half(half, 1);
  expect(gmm_cpu_skip_loss(&of_half.loss_of, &options), GMM_INVALID_ARGUMENT, "residual: ");
  gmm_scale_residual_arguments scaling = c->scaling;
  scaling.grad_loss = nullptr;
  expect(gmm_cpu_scale_residual(&scaling, &options), GMM_INVALID_ARGUMENT, "grad_loss: ");
  scaling = c->scaling;
  scaling.residual.dtype = GMM_FLOAT16;
  expect(gmm_cpu_scale_residual(&scaling, &options), GMM_INVALID_ARGUMENT, "residual: ");
  scaling.residual = {};
  expect(gmm_cpu_scale_residual(&scaling, &options), GMM_INVALID_ARGUMENT, "residual: ");
  expect(gmm_cpu_scale_residual(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_add_noise(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_skip_loss(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_skip_loss_backward(nullptr, &options), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cpu_add_noise(&c->noising, nullptr), GMM_INVALID_ARGUMENT, "options: ");
}

}  // namespace

int main() {
  test_sets_and_threads();
  test_in_place();
  test_bad_arguments();
  return check_report();
}
