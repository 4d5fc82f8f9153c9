// The extension of the CPU core: pointers in as integers. The GIL is released while kernels run.

#include "arguments.h"

namespace {

using arguments::pointer;
using arguments::run;

void step(const py::tuple& inputs, const py::tuple& result, const py::tuple& prediction, int prediction_kind,
          std::uintptr_t components, std::uintptr_t workspace, int threads, int instruction_set) {
  const gmm_step_arguments a = arguments::step(inputs, result, prediction, prediction_kind, components, workspace);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_step(&a, &options); });
}

void step_backward(const py::tuple& inputs, int prediction_kind, const py::tuple& grads, const py::tuple& gradients,
                   int threads, int instruction_set) {
  const gmm_step_backward_arguments b = arguments::step_backward(inputs, prediction_kind, grads, gradients);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_step_backward(&b, &options); });
}

void log_prob(const py::tuple& inputs, const py::tuple& prev_sample, const py::tuple& weights,
              const py::tuple& penalties, std::uintptr_t result, std::uintptr_t responsibilities,
              std::uintptr_t energies, std::uintptr_t workspace, int threads, int instruction_set) {
  const gmm_log_prob_arguments a =
      arguments::log_prob(inputs, prev_sample, weights, penalties, result, responsibilities, energies, workspace);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_log_prob(&a, &options); });
}

void log_prob_backward(const py::tuple& inputs, const py::tuple& prev_sample, const py::tuple& weights,
                       std::uintptr_t responsibilities, std::uintptr_t grad, const py::tuple& grad_prev_sample,
                       std::uintptr_t grad_weights, const py::tuple& gradients, int threads, int instruction_set) {
  const gmm_log_prob_arguments of =
      arguments::log_prob(inputs, prev_sample, weights, py::tuple(), 0, responsibilities, 0, 0);
  const gmm_log_prob_backward_arguments b =
      arguments::log_prob_backward(of, grad, grad_prev_sample, grad_weights, gradients);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_log_prob_backward(&b, &options); });
}

void add_noise(const py::tuple& batch, const py::tuple& sample, const py::tuple& result, const py::tuple& noise,
               int threads, int instruction_set) {
  const gmm_add_noise_arguments a = arguments::add_noise(batch, sample, result, noise);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_add_noise(&a, &options); });
}

void skip_step_loss(const py::tuple& batch, const py::tuple& model_output, const py::tuple& sample,
                    const py::tuple& pull, std::uintptr_t loss, std::uintptr_t workspace, int threads,
                    int instruction_set) {
  const gmm_skip_loss_arguments a = arguments::skip_loss(batch, model_output, sample, pull, loss, workspace);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_skip_loss(&a, &options); });
}

void scale_pull(const py::tuple& batch, const py::tuple& pull, std::uintptr_t grad, int threads, int instruction_set) {
  const gmm_scale_pull_arguments a = arguments::scale_pull(batch, pull, grad);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_scale_pull(&a, &options); });
}

void skip_step_loss_backward(const py::tuple& batch, const py::tuple& model_output, const py::tuple& sample,
                             std::uintptr_t grad, const py::tuple& grad_model_output, const py::tuple& grad_sample,
                             int threads, int instruction_set) {
  const gmm_skip_loss_backward_arguments b =
      arguments::skip_loss_backward(batch, model_output, sample, grad, grad_model_output, grad_sample);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_skip_loss_backward(&b, &options); });
}

void standard_normal(std::int64_t batch, std::int64_t elements, const py::tuple& result, std::uintptr_t seeds,
                     const py::tuple& step, int stream, int threads, int instruction_set) {
  const gmm_normal_arguments a = arguments::standard_normal(batch, elements, result, seeds, step, stream);
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_standard_normal(&a, &options); });
}

void draw_components(std::int64_t batch, std::uintptr_t result, std::uintptr_t seeds, const py::tuple& row,
                     const py::tuple& step, std::int64_t components, std::uintptr_t thresholds,
                     std::int64_t threshold_rows) {
  const gmm_component_arguments a =
      arguments::draw_components(batch, result, seeds, row, step, components, thresholds, threshold_rows);
  run([&] { return gmm_cpu_draw_components(&a); });
}

void orthonormalize(std::uintptr_t rows, std::int64_t row_count, std::int64_t elements, int threads,
                    int instruction_set) {
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_orthonormalize(pointer<double>(rows), row_count, elements, &options); });
}

bool has_instruction_set(int instruction_set) {
  const gmm_normal_arguments nothing = {};
  const gmm_cpu_options options = {1, instruction_set};
  return gmm_cpu_standard_normal(&nothing, &options) == GMM_SUCCESS;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of gmmkernel; gmmkernel.backends.cpu is its only caller.";
  m.attr("version") = gmm_version();
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
  m.def("orthonormalize", &orthonormalize);
  m.def("has_instruction_set", &has_instruction_set);
  m.def("best_instruction_set", &gmm_cpu_best_instruction_set);

  const auto names = [&m](const char* name, std::initializer_list<std::pair<const char*, int>> values) {
    py::dict dict;
    for (const auto& value : values) dict[value.first] = value.second;
    m.attr(name) = dict;
  };
  names("INSTRUCTION_SETS", {{"portable", GMM_PORTABLE}, {"avx2", GMM_AVX2}, {"avx512", GMM_AVX512}});
  names("DTYPES",
        {{"float32", GMM_FLOAT32}, {"bfloat16", GMM_BFLOAT16}, {"float16", GMM_FLOAT16}, {"float64", GMM_FLOAT64}});
  names("STREAMS", {{"TRANSITION", GMM_STREAM_TRANSITION},
                    {"COMPONENT", GMM_STREAM_COMPONENT},
                    {"INITIAL", GMM_STREAM_INITIAL},
                    {"TRAINING", GMM_STREAM_TRAINING},
                    {"TRAINING_SKIP", GMM_STREAM_TRAINING_SKIP},
                    {"OFFSETS", GMM_STREAM_OFFSETS}});
  names("PREDICTIONS", {{"NONE", GMM_PREDICTION_NONE},
                        {"X0", GMM_PREDICTION_X0},
                        {"EPSILON", GMM_PREDICTION_EPSILON},
                        {"MODEL_OUTPUT", GMM_PREDICTION_MODEL_OUTPUT}});
  names("COLUMNS", {{"X0_SAMPLE", GMM_X0_SAMPLE},
                    {"X0_OUTPUT", GMM_X0_OUTPUT},
                    {"CLIP_MIN", GMM_CLIP_MIN},
                    {"CLIP_MAX", GMM_CLIP_MAX},
                    {"SAMPLE", GMM_SAMPLE},
                    {"OUTPUT", GMM_OUTPUT},
                    {"X0", GMM_X0},
                    {"HISTORY_0", GMM_HISTORY_0},
                    {"GUIDANCE", GMM_GUIDANCE},
                    {"SIGMA", GMM_SIGMA},
                    {"OFFSET", GMM_OFFSET},
                    {"EPS_SAMPLE", GMM_EPS_SAMPLE},
                    {"EPS_OUTPUT", GMM_EPS_OUTPUT}});
  names("TRAINING_COLUMNS", {{"SIGNAL", GMM_TRAINING_SIGNAL},
                             {"NOISE", GMM_TRAINING_NOISE},
                             {"EPS_SAMPLE", GMM_TRAINING_EPS_SAMPLE},
                             {"EPS_OUTPUT", GMM_TRAINING_EPS_OUTPUT},
                             {"WEIGHT", GMM_TRAINING_WEIGHT},
                             {"SKIP_WEIGHT", GMM_TRAINING_SKIP_WEIGHT},
                             {"SKIP_SCALE", GMM_TRAINING_SKIP_SCALE},
                             {"SKIP_NOISE", GMM_TRAINING_SKIP_NOISE},
                             {"SKIP_FRESH", GMM_TRAINING_SKIP_FRESH}});
}
