// The CUDA functions without a device: arguments are checked first, then the runtime's own words say what is missing.

#include <cstring>

#include "density_case.h"
#include "project_case.h"
#include "training_case.h"

namespace {

bool has_device() {
  int32_t count = -1;
  const int status = gmm_cuda_device_count(&count);
  CHECK(status == GMM_SUCCESS || status == GMM_CUDA_ERROR, "status %d", status);
  CHECK(status == GMM_SUCCESS || std::strstr(gmm_last_error(), "CUDA: ") == gmm_last_error(), "%s", gmm_last_error());
  return status == GMM_SUCCESS && count > 0;
}

void expect(int status, int expected, const char* named) {
  CHECK(status == expected && std::strstr(gmm_last_error(), named) == gmm_last_error(), "status %d: %s, expected %s",
        status, gmm_last_error(), named);
}

void test_bad_arguments() {
  const gmm_cuda_options good = {0, nullptr}, bad_device = {-1, nullptr};
  StepOptions options;
  options.components = 8;
  StepCase c(options, 1, 0x5A);
  expect(gmm_cuda_step(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_step(&c.arguments, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  expect(gmm_cuda_step(&c.arguments, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  const auto spoilt = [&](auto&& spoil, const char* named, int expected = GMM_INVALID_ARGUMENT) {
    gmm_step_arguments a = c.arguments;
    spoil(a);
    expect(gmm_cuda_step(&a, &good), expected, named);
  };
  spoilt([](gmm_step_arguments& a) { a.sample.data = nullptr; }, "sample: ");
  spoilt([](gmm_step_arguments& a) { a.model_output.dtype = GMM_FLOAT64; }, "model_output: ");
  spoilt([](gmm_step_arguments& a) { a.mixture.components = 1025; }, "components: ");
  spoilt([](gmm_step_arguments& a) { a.row = {nullptr, 0, 3}; }, "row: ", GMM_OUT_OF_RANGE);
  spoilt([](gmm_step_arguments& a) { a.step = {nullptr, 0, -1}; }, "step: ", GMM_OUT_OF_RANGE);
  expect(gmm_cuda_standard_normal(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_draw_components(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_device_count(nullptr), GMM_INVALID_ARGUMENT, "count: ");
  CHECK(c.result.bytes_are(0x5A), "something was written");
}

void test_bad_gradients() {
  const gmm_cuda_options good = {0, nullptr}, bad_device = {-1, nullptr};
  BackwardOptions options;
  options.step.components = 8;
  options.coefficients = options.offsets = true;
  BackwardCase c(options, 1, 0x5A);
  expect(gmm_cuda_step_backward(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_step_backward(&c.arguments, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  expect(gmm_cuda_step_backward(&c.arguments, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  const auto spoilt = [&](auto&& spoil, const char* named, int expected = GMM_INVALID_ARGUMENT) {
    gmm_step_backward_arguments b = c.arguments;
    spoil(b);
    expect(gmm_cuda_step_backward(&b, &good), expected, named);
  };
  spoilt([](gmm_step_backward_arguments& b) { b.grad_result.data = nullptr; }, "grad_result: ");
  spoilt([](gmm_step_backward_arguments& b) { b.grad_sample.dtype = GMM_FLOAT16; }, "grad_sample: ");
  spoilt([](gmm_step_backward_arguments& b) { b.workspace = nullptr; }, "workspace: ");
  spoilt([](gmm_step_backward_arguments& b) { b.step.mixture.components = 0; }, "grad_offsets: ");
  spoilt([](gmm_step_backward_arguments& b) { b.step.row = {nullptr, 0, 3}; }, "row: ", GMM_OUT_OF_RANGE);
  CHECK(c.sample.bytes_are(0x5A) && c.coefficients.bytes_are(0x5A), "something was written");
}

void test_bad_densities() {
  const gmm_cuda_options good = {0, nullptr}, bad_device = {-1, nullptr};
  DensityOptions options;
  options.backward.step.components = 8;
  options.backward.coefficients = options.weights = true;
  DensityCase c(options, 1, 0x5A);
  expect(gmm_cuda_log_prob(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_log_prob(&c.arguments, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  expect(gmm_cuda_log_prob_backward(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_log_prob_backward(&c.gradients, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  gmm_log_prob_arguments p = c.arguments;
  p.weights = nullptr;
  expect(gmm_cuda_log_prob(&p, &good), GMM_INVALID_ARGUMENT, "weights: ");
  p = c.arguments;
  p.workspace = nullptr;
  expect(gmm_cuda_log_prob(&p, &good), GMM_INVALID_ARGUMENT, "workspace: ");
  gmm_log_prob_backward_arguments b = c.gradients;
  b.of.responsibilities = nullptr;
  expect(gmm_cuda_log_prob_backward(&b, &good), GMM_INVALID_ARGUMENT, "responsibilities: ");
  b = c.gradients;
  b.of.step.row = {nullptr, 0, 3};
  expect(gmm_cuda_log_prob_backward(&b, &good), GMM_OUT_OF_RANGE, "row: ");
  CHECK(c.log_prob.bytes_are(0x5A) && c.grad_weights.bytes_are(0x5A), "something was written");
}

// Nothing to do is done without a device.
void test_bad_training() {
  const gmm_cuda_options good = {0, nullptr}, bad_device = {-1, nullptr};
  TrainingCase c(TrainingOptions(), 1, 0x5A);
  expect(gmm_cuda_add_noise(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_add_noise(&c.noising, nullptr), GMM_INVALID_ARGUMENT, "options: ");
  expect(gmm_cuda_skip_loss(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_skip_loss(&c.loss_of, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  expect(gmm_cuda_scale_residual(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_scale_residual(&c.scaling, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  expect(gmm_cuda_skip_loss_backward(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_skip_loss_backward(&c.backward, &bad_device), GMM_INVALID_ARGUMENT, "device: ");
  gmm_add_noise_arguments noising = c.noising;
  noising.noise.dtype = GMM_FLOAT16;
  expect(gmm_cuda_add_noise(&noising, &good), GMM_INVALID_ARGUMENT, "noise: ");
  gmm_skip_loss_arguments loss = c.loss_of;
  loss.workspace = nullptr;
  expect(gmm_cuda_skip_loss(&loss, &good), GMM_INVALID_ARGUMENT, "workspace: ");
  loss = c.loss_of;
  loss.training.row = {nullptr, 0, 3};
  expect(gmm_cuda_skip_loss(&loss, &good), GMM_OUT_OF_RANGE, "row: ");
  gmm_skip_loss_backward_arguments backward = c.backward;
  backward.grad_sample.dtype = GMM_FLOAT64;
  expect(gmm_cuda_skip_loss_backward(&backward, &good), GMM_INVALID_ARGUMENT, "grad_sample: ");
  CHECK(c.result.bytes_are(0x5A) && c.loss.bytes_are(0x5A) && c.grad_output.bytes_are(0x5A), "something was written");
}

void test_empty_batches() {
  const gmm_cuda_options options = {0, nullptr};
  StepOptions empty;
  empty.batch = 0;
  StepCase c(empty, 1);
  CHECK(gmm_cuda_step(&c.arguments, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  BackwardOptions gradients;
  gradients.step = empty;
  BackwardCase d(gradients, 1);
  CHECK(gmm_cuda_step_backward(&d.arguments, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  DensityOptions density;
  density.backward.step = empty;
  DensityCase e(density, 1);
  CHECK(gmm_cuda_log_prob(&e.arguments, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  CHECK(gmm_cuda_log_prob_backward(&e.gradients, &options) == GMM_SUCCESS, "%s", gmm_last_error());
}

void test_bad_projections() {
  const gmm_cuda_options good = {0, nullptr}, bad = {-1, nullptr};
  ProjectCase c({}, 1);
  expect(gmm_cuda_project(nullptr, &good), GMM_INVALID_ARGUMENT, "arguments: ");
  expect(gmm_cuda_project(&c.arguments, &bad), GMM_INVALID_ARGUMENT, "device: ");
  c.arguments.columns = 0;
  expect(gmm_cuda_project(&c.arguments, &good), GMM_INVALID_ARGUMENT, "columns: ");
  CHECK(c.result.bytes_are(0x5A), "something was written");
}

void test_a_missing_device() {
  if (has_device()) return;
  const gmm_cuda_options options = {0, nullptr};
  StepCase c(StepOptions{}, 1, 0x5A);
  expect(gmm_cuda_step(&c.arguments, &options), GMM_CUDA_ERROR, "CUDA: ");
  CHECK(c.result.bytes_are(0x5A), "something was written");
  BackwardCase d(BackwardOptions{}, 1, 0x5A);
  expect(gmm_cuda_step_backward(&d.arguments, &options), GMM_CUDA_ERROR, "CUDA: ");
  DensityCase e(DensityOptions{}, 1, 0x5A);
  expect(gmm_cuda_log_prob(&e.arguments, &options), GMM_CUDA_ERROR, "CUDA: ");
  expect(gmm_cuda_log_prob_backward(&e.gradients, &options), GMM_CUDA_ERROR, "CUDA: ");
  ProjectCase f({}, 1);
  expect(gmm_cuda_project(&f.arguments, &options), GMM_CUDA_ERROR, "CUDA: ");
  CHECK(e.log_prob.bytes_are(0x5A) && f.result.bytes_are(0x5A), "something was written");
}

}  // namespace

int main() {
  test_bad_arguments();
  test_bad_gradients();
  test_bad_densities();
  test_bad_projections();
  test_bad_training();
  test_empty_batches();
  test_a_missing_device();
  return check_report();
}
