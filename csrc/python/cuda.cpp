// The extension of the CUDA kernels: launches on a stream. Loading it touches no driver.

#include "functions.h"

namespace {

struct Cuda {
  using Options = gmm_cuda_options;

  static Options options(std::int64_t device, std::uintptr_t stream) {
    return {static_cast<std::int32_t>(device), reinterpret_cast<void*>(stream)};
  }
#ifdef GMM_TENSORS_ON_CPU  // the test that executes PTX there
  static tensors::Device device(std::int64_t) { return {tensors::cpu_device, 0}; }
#else
  static tensors::Device device(std::int64_t device) {
    return {tensors::cuda_device, static_cast<std::int32_t>(device)};
  }
#endif

  static constexpr auto step = gmm_cuda_step;
  static constexpr auto step_backward = gmm_cuda_step_backward;
  static constexpr auto log_prob = gmm_cuda_log_prob;
  static constexpr auto log_prob_backward = gmm_cuda_log_prob_backward;
  static constexpr auto log_ratio = gmm_cuda_log_ratio;
  static constexpr auto log_ratio_backward = gmm_cuda_log_ratio_backward;
  static constexpr auto add_noise = gmm_cuda_add_noise;
  static constexpr auto skip_loss = gmm_cuda_skip_loss;
  static constexpr auto scale_residual = gmm_cuda_scale_residual;
  static constexpr auto skip_loss_backward = gmm_cuda_skip_loss_backward;
  static constexpr auto standard_normal = gmm_cuda_standard_normal;
  static constexpr auto draw_components = gmm_cuda_draw_components;
  static constexpr auto project = gmm_cuda_project;
};

int device_count() {
  std::int32_t count = 0;
  arguments::run([&] { return gmm_cuda_device_count(&count); });
  return count;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of gmmkernel; gmmkernel.backends.cuda is their only caller.";
  functions::Functions<Cuda>::define(m);
  m.attr("architectures") = GMM_CUDA_ARCHITECTURES;
  m.def("device_count", &device_count);
}
