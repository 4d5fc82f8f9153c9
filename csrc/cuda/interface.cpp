// The C interface on CUDA devices: check, choose the device, launch. Nothing is allocated, read back or waited for.

#include <cuda_runtime_api.h>

#include <atomic>

#include "common/checks.h"
#include "cuda/kernels.h"
#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {
namespace {

int fail_with(cudaError_t error) {
  cudaGetLastError();  // the error has been reported: do not leave it for the next caller
  return fail(GMM_CUDA_ERROR, "CUDA: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
}

// Makes a device current for a call, and puts back the one that was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && before_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

constexpr int known_devices = 64;

// Asked of the driver once for each device.
cudaError_t multiprocessors_of(int device, int& count) {
  static std::atomic<int> known[known_devices] = {};
  count = device < known_devices ? known[device].load(std::memory_order_relaxed) : 0;
  if (count > 0) return cudaSuccess;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && device < known_devices) known[device].store(count, std::memory_order_relaxed);
  return error;
}

// Call launch(multiprocessors, stream) with the device current.
template <class Launch>
int on_device(const gmm_cuda_options& options, Launch&& launch) {
  const DeviceGuard guard(options.device);
  int multiprocessors = 0;
  cudaError_t error = guard.status();
  if (error == cudaSuccess) error = multiprocessors_of(options.device, multiprocessors);
  if (error == cudaSuccess) error = launch(multiprocessors, static_cast<cudaStream_t>(options.stream));
  return error == cudaSuccess ? GMM_SUCCESS : fail_with(error);
}

int check_options(const gmm_cuda_options* options) {
  if (options == nullptr) return fail(GMM_INVALID_ARGUMENT, "options: missing");
  if (options->device < 0) return fail(GMM_INVALID_ARGUMENT, "device: expected at least 0, got %d", options->device);
  return GMM_SUCCESS;
}

// An entry of the interface: launch(arguments, multiprocessors, stream) if there is nothing to complain of, and, as
// is_needed(arguments) says, something to do.
template <class Arguments, class IsNeeded, class Launch>
int enter(const Arguments* arguments, const gmm_cuda_options* options, IsNeeded&& is_needed, Launch&& launch) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  if (const int status = check_options(options)) return status;
  if (const int status = check(*arguments, Memory::device)) return status;
  if (!is_needed(*arguments)) return GMM_SUCCESS;
  return on_device(
      *options, [&](int multiprocessors, cudaStream_t stream) { return launch(*arguments, multiprocessors, stream); });
}

// Launches that do not ask how large the device is.
template <class Arguments>
auto on_any(cudaError_t (&launch)(const Arguments&, cudaStream_t)) {
  return [&launch](const Arguments& arguments, int, cudaStream_t stream) { return launch(arguments, stream); };
}

bool has_elements(const gmm_step_arguments& a) { return a.batch > 0 && a.elements > 0; }

bool has_elements(const gmm_training& t) { return t.batch > 0 && t.elements > 0; }

bool wants_tables(const gmm_step_backward_arguments& b) {
  return b.grad_coefficients != nullptr || b.grad_offsets != nullptr || b.grad_std != nullptr;
}

}  // namespace
}  // namespace gmmkernel

using namespace gmmkernel;

int gmm_cuda_step(const gmm_step_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_step_arguments& a) {
    return has_elements(a) || (a.batch > 0 && (a.components != nullptr || a.log_prob != nullptr));
  };
  return enter(arguments, options, is_needed, launch_step);
}

int gmm_cuda_step_backward(const gmm_step_backward_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_step_backward_arguments& b) { return wants_tables(b) || has_elements(b.step); };
  return enter(arguments, options, is_needed, launch_step_backward);
}

int gmm_cuda_log_prob(const gmm_log_prob_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_log_prob_arguments& p) { return p.step.batch > 0; };
  return enter(arguments, options, is_needed, on_any(launch_log_prob));
}

int gmm_cuda_log_prob_backward(const gmm_log_prob_backward_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_log_prob_backward_arguments& b) {
    return wants_tables(b.gradients) || b.grad_weights != nullptr || has_elements(b.of.step);
  };
  return enter(arguments, options, is_needed, on_any(launch_log_prob_backward));
}

int gmm_cuda_log_ratio(const gmm_log_ratio_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_log_ratio_arguments& r) { return r.step.batch > 0; };
  return enter(arguments, options, is_needed, on_any(launch_log_ratio));
}

int gmm_cuda_log_ratio_backward(const gmm_log_ratio_backward_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_log_ratio_backward_arguments& b) { return has_elements(b.of.step); };
  return enter(arguments, options, is_needed, on_any(launch_log_ratio_backward));
}

int gmm_cuda_add_noise(const gmm_add_noise_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_add_noise_arguments& a) { return has_elements(a.training); };
  return enter(arguments, options, is_needed, launch_add_noise);
}

int gmm_cuda_skip_loss(const gmm_skip_loss_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_skip_loss_arguments& a) { return a.training.batch > 0; };
  return enter(arguments, options, is_needed, on_any(launch_skip_loss));
}

int gmm_cuda_scale_residual(const gmm_scale_residual_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_scale_residual_arguments& a) { return has_elements(a.training); };
  return enter(arguments, options, is_needed, launch_scale_residual);
}

int gmm_cuda_skip_loss_backward(const gmm_skip_loss_backward_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_skip_loss_backward_arguments& b) { return has_elements(b.of.training); };
  return enter(arguments, options, is_needed, launch_skip_loss_backward);
}

int gmm_cuda_standard_normal(const gmm_normal_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_normal_arguments& a) { return a.batch > 0 && a.elements > 0; };
  return enter(arguments, options, is_needed, launch_standard_normal);
}

int gmm_cuda_draw_components(const gmm_component_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_component_arguments& a) { return a.batch > 0; };
  return enter(arguments, options, is_needed, on_any(launch_draw_components));
}

int gmm_cuda_project(const gmm_project_arguments* arguments, const gmm_cuda_options* options) {
  const auto is_needed = [](const gmm_project_arguments& a) { return a.batch > 0; };
  return enter(arguments, options, is_needed, on_any(launch_project));
}

int gmm_cuda_device_count(int32_t* count) {
  if (count == nullptr) return fail(GMM_INVALID_ARGUMENT, "count: missing");
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  if (error != cudaSuccess) return fail_with(error);
  *count = found;
  return GMM_SUCCESS;
}
