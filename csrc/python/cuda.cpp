// The extension of the CUDA kernels: device pointers in as integers, launches on a stream. Loading it touches no
// driver.

#include "arguments.h"

namespace {

using arguments::pointer;
using arguments::run;

gmm_cuda_options on(int device, std::uintptr_t stream) { return {device, pointer<void>(stream)}; }

void step(const py::tuple& inputs, const py::tuple& result, const py::tuple& prediction, int prediction_kind,
          std::uintptr_t components, std::uintptr_t workspace, int device, std::uintptr_t stream) {
  const gmm_step_arguments a = arguments::step(inputs, result, prediction, prediction_kind, components, workspace);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_step(&a, &options); });
}

void step_backward(const py::tuple& inputs, int prediction_kind, const py::tuple& grads, const py::tuple& gradients,
                   int device, std::uintptr_t stream) {
  const gmm_step_backward_arguments b = arguments::step_backward(inputs, prediction_kind, grads, gradients);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_step_backward(&b, &options); });
}

void log_prob(const py::tuple& inputs, const py::tuple& prev_sample, const py::tuple& weights,
              const py::tuple& penalties, std::uintptr_t result, std::uintptr_t responsibilities,
              std::uintptr_t energies, std::uintptr_t workspace, int device, std::uintptr_t stream) {
  const gmm_log_prob_arguments a =
      arguments::log_prob(inputs, prev_sample, weights, penalties, result, responsibilities, energies, workspace);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_log_prob(&a, &options); });
}

void log_prob_backward(const py::tuple& inputs, const py::tuple& prev_sample, const py::tuple& weights,
                       std::uintptr_t responsibilities, std::uintptr_t grad, const py::tuple& grad_prev_sample,
                       std::uintptr_t grad_weights, const py::tuple& gradients, int device, std::uintptr_t stream) {
  const gmm_log_prob_arguments of =
      arguments::log_prob(inputs, prev_sample, weights, py::tuple(), 0, responsibilities, 0, 0);
  const gmm_log_prob_backward_arguments b =
      arguments::log_prob_backward(of, grad, grad_prev_sample, grad_weights, gradients);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_log_prob_backward(&b, &options); });
}

void add_noise(const py::tuple& batch, const py::tuple& sample, const py::tuple& result, const py::tuple& noise,
               int device, std::uintptr_t stream) {
  const gmm_add_noise_arguments a = arguments::add_noise(batch, sample, result, noise);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_add_noise(&a, &options); });
}

void skip_step_loss(const py::tuple& batch, const py::tuple& model_output, const py::tuple& sample,
                    const py::tuple& pull, std::uintptr_t loss, std::uintptr_t workspace, int device,
                    std::uintptr_t stream) {
  const gmm_skip_loss_arguments a = arguments::skip_loss(batch, model_output, sample, pull, loss, workspace);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_skip_loss(&a, &options); });
}

void scale_pull(const py::tuple& batch, const py::tuple& pull, std::uintptr_t grad, int device, std::uintptr_t stream) {
  const gmm_scale_pull_arguments a = arguments::scale_pull(batch, pull, grad);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_scale_pull(&a, &options); });
}

void skip_step_loss_backward(const py::tuple& batch, const py::tuple& model_output, const py::tuple& sample,
                             std::uintptr_t grad, const py::tuple& grad_model_output, const py::tuple& grad_sample,
                             int device, std::uintptr_t stream) {
  const gmm_skip_loss_backward_arguments b =
      arguments::skip_loss_backward(batch, model_output, sample, grad, grad_model_output, grad_sample);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_skip_loss_backward(&b, &options); });
}

void standard_normal(std::int64_t batch, std::int64_t elements, const py::tuple& result, std::uintptr_t seeds,
                     const py::tuple& step, int purpose, int device, std::uintptr_t stream) {
  const gmm_normal_arguments a = arguments::standard_normal(batch, elements, result, seeds, step, purpose);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_standard_normal(&a, &options); });
}

void draw_components(std::int64_t batch, std::uintptr_t result, std::uintptr_t seeds, const py::tuple& row,
                     const py::tuple& step, std::int64_t components, std::uintptr_t thresholds,
                     std::int64_t threshold_rows, int device, std::uintptr_t stream) {
  const gmm_component_arguments a =
      arguments::draw_components(batch, result, seeds, row, step, components, thresholds, threshold_rows);
  const gmm_cuda_options options = on(device, stream);
  run([&] { return gmm_cuda_draw_components(&a, &options); });
}

int device_count() {
  std::int32_t count = 0;
  run([&] { return gmm_cuda_device_count(&count); });
  return count;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of gmmkernel; gmmkernel.backends.cuda is their only caller.";
  m.attr("version") = gmm_version();
  m.attr("architectures") = GMM_CUDA_ARCHITECTURES;
  m.def("step", &step);
  m.def("step_backward", &step_backward);
  m.def("log_prob", &log_prob);
  m.def("log_prob_backward", &log_prob_backward);
  m.def("add_noise", &add_noise);
  m.def("skip_step_loss", &skip_step_loss);
  m.def("scale_pull", &scale_pull);
  m.def("skip_step_loss_backward", &skip_step_loss_backward);
  m.def("standard_normal", &standard_normal);
  m.def("draw_components", &draw_components);
  m.def("device_count", &device_count);
}
