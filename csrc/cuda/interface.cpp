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

}  // namespace
}  // namespace gmmkernel

using namespace gmmkernel;

int gmm_cuda_step(const gmm_step_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_step_arguments& a = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(a, Memory::device)) return status;
  if (a.batch == 0 || (a.elements == 0 && a.components == nullptr)) return GMM_SUCCESS;
  return on_device(*options,
                   [&](int multiprocessors, cudaStream_t stream) { return launch_step(a, multiprocessors, stream); });
}

int gmm_cuda_step_backward(const gmm_step_backward_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_step_backward_arguments& b = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(b, Memory::device)) return status;
  const bool tables = b.grad_coefficients != nullptr || b.grad_offsets != nullptr || b.grad_std != nullptr;
  if (!tables && (b.step.batch == 0 || b.step.elements == 0)) return GMM_SUCCESS;
  return on_device(*options, [&](int multiprocessors, cudaStream_t stream) {
    return launch_step_backward(b, multiprocessors, stream);
  });
}

int gmm_cuda_log_prob(const gmm_log_prob_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_log_prob_arguments& p = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(p, Memory::device)) return status;
  if (p.step.batch == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int, cudaStream_t stream) { return launch_log_prob(p, stream); });
}

int gmm_cuda_log_prob_backward(const gmm_log_prob_backward_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_log_prob_backward_arguments& b = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(b, Memory::device)) return status;
  const gmm_step_backward_arguments& to = b.gradients;
  const bool tables = to.grad_coefficients != nullptr || to.grad_offsets != nullptr || to.grad_std != nullptr ||
                      b.grad_weights != nullptr;
  if (!tables && (b.of.step.batch == 0 || b.of.step.elements == 0)) return GMM_SUCCESS;
  return on_device(*options, [&](int, cudaStream_t stream) { return launch_log_prob_backward(b, stream); });
}

int gmm_cuda_add_noise(const gmm_add_noise_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_add_noise_arguments& a = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(a, Memory::device)) return status;
  if (a.training.batch == 0 || a.training.elements == 0) return GMM_SUCCESS;
  return on_device(
      *options, [&](int multiprocessors, cudaStream_t stream) { return launch_add_noise(a, multiprocessors, stream); });
}

int gmm_cuda_skip_loss(const gmm_skip_loss_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_skip_loss_arguments& a = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(a, Memory::device)) return status;
  if (a.training.batch == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int, cudaStream_t stream) { return launch_skip_loss(a, stream); });
}

int gmm_cuda_scale_residual(const gmm_scale_residual_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_scale_residual_arguments& a = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(a, Memory::device)) return status;
  if (a.training.batch == 0 || a.training.elements == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int multiprocessors, cudaStream_t stream) {
    return launch_scale_residual(a, multiprocessors, stream);
  });
}

int gmm_cuda_skip_loss_backward(const gmm_skip_loss_backward_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_skip_loss_backward_arguments& b = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(b, Memory::device)) return status;
  if (b.of.training.batch == 0 || b.of.training.elements == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int multiprocessors, cudaStream_t stream) {
    return launch_skip_loss_backward(b, multiprocessors, stream);
  });
}

int gmm_cuda_standard_normal(const gmm_normal_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const gmm_normal_arguments& a = *arguments;
  if (const int status = check_options(options)) return status;
  if (const int status = check(a, Memory::device)) return status;
  if (a.batch == 0 || a.elements == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int multiprocessors, cudaStream_t stream) {
    return launch_standard_normal(a, multiprocessors, stream);
  });
}

int gmm_cuda_draw_components(const gmm_component_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  if (const int status = check_options(options)) return status;
  if (const int status = check(*arguments, Memory::device)) return status;
  if (arguments->batch == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int, cudaStream_t stream) { return launch_draw_components(*arguments, stream); });
}

int gmm_cuda_project(const gmm_project_arguments* arguments, const gmm_cuda_options* options) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  if (const int status = check_options(options)) return status;
  if (const int status = check(*arguments, Memory::device)) return status;
  if (arguments->batch == 0) return GMM_SUCCESS;
  return on_device(*options, [&](int, cudaStream_t stream) { return launch_project(*arguments, stream); });
}

int gmm_cuda_device_count(int32_t* count) {
  if (count == nullptr) return fail(GMM_INVALID_ARGUMENT, "count: missing");
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  if (error != cudaSuccess) return fail_with(error);
  *count = found;
  return GMM_SUCCESS;
}
