// The functions of an extension, the same for the CPU core and the CUDA kernels.
//
// Each takes what the function of its name in gmmkernel/backends/protocol.py is given, room for sums, and two numbers
// that say where it runs: threads and instruction set, or device and stream. It returns whether the call was plain:
// otherwise nothing has been done. The GIL is released while kernels run.
#pragma once

#include "arguments.h"

namespace functions {

using arguments::run;
using tensors::Call;

// `Api` has the type of the options, `options(first, second)`, `device(first)` and the C functions.
template <class Api>
struct Functions {
  template <class Arguments>
  static bool finish(const Call& call, const Arguments& a,
                     int (*function)(const Arguments*, const typename Api::Options*), std::int64_t first,
                     std::uintptr_t second) {
    if (!call.is_plain()) return false;
    const typename Api::Options options = Api::options(first, second);
    run([&] { return function(&a, &options); });
    return true;
  }

  // Rows on a device are not read.
  static bool is_read_here(const gmm_step_arguments& a, std::int64_t first) {
    return Api::device(first).type != tensors::cpu_device || arguments::has_what_rows_read(a);
  }

  // Whether a step of tensors that may require gradients is plain.
  static bool is_plain_step(py::handle inputs, std::int64_t first, std::uintptr_t) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), false);
    const gmm_step_arguments a = arguments::inputs(call, inputs);
    return call.is_plain() && is_read_here(a, first);
  }

  // `checked`, `tracks`: see Call.
  static bool gmm_step(py::handle inputs, py::handle result, py::handle prediction, int prediction_kind,
                       py::handle components, py::handle log_prob, py::handle workspace, bool checked, bool tracks,
                       std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), checked, tracks);
    const gmm_step_arguments a =
        arguments::step(call, inputs, result, prediction, prediction_kind, components, log_prob, workspace);
    if (!checked) call.require(call.is_plain() && is_read_here(a, first));
    return finish(call, a, Api::step, first, second);
  }

  static bool gmm_step_backward(py::handle inputs, py::handle grad, py::handle grad_prediction, int prediction_kind,
                                py::handle gradients, py::handle workspace, std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    const gmm_step_backward_arguments b =
        arguments::step_backward(call, inputs, prediction_kind, grad, grad_prediction, gradients, workspace);
    return finish(call, b, Api::step_backward, first, second);
  }

  static bool log_prob(py::handle inputs, py::handle result, py::handle responsibilities, py::handle energies,
                       py::handle penalties, py::handle workspace, std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    gmm_log_prob_arguments p = arguments::log_prob(call, inputs, responsibilities);
    p.log_prob = call.room(result);
    p.energies = call.room(energies);
    p.penalties = call.room(penalties);
    p.workspace = call.room(workspace);
    return finish(call, p, Api::log_prob, first, second);
  }

  // `gradients`: LogProbGradients.
  static bool log_prob_backward(py::handle inputs, py::handle responsibilities, py::handle grad, bool of_tiles,
                                py::handle gradients, py::handle workspace, std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    arguments::Fields of(gradients);
    gmm_log_prob_backward_arguments b = {};
    b.of = arguments::log_prob(call, inputs, responsibilities);
    b.grad_log_prob = call.room(grad);
    b.of_tiles = of_tiles;
    b.grad_prev_sample = call.output(of.next());
    b.grad_weights = call.room(of.next());
    b.gradients = arguments::gradients(call, of.next(), workspace);
    return finish(call, b, Api::log_prob_backward, first, second);
  }

  static bool log_ratio(py::handle inputs, py::handle result, py::handle workspace, std::int64_t first,
                        std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    gmm_log_ratio_arguments r = arguments::log_ratio(call, inputs);
    r.result = call.room(result);
    r.workspace = call.room(workspace);
    return finish(call, r, Api::log_ratio, first, second);
  }

  // `gradients`: LogRatioGradients.
  static bool log_ratio_backward(py::handle inputs, py::handle grad, bool of_tiles, py::handle gradients,
                                 std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    arguments::Fields of(gradients);
    gmm_log_ratio_backward_arguments b = {};
    b.of = arguments::log_ratio(call, inputs);
    b.grad = call.room(grad);
    b.of_tiles = of_tiles;
    b.grad_sample = call.output(of.next());
    b.grad_model_output = call.output(of.next());
    b.grad_old_model_output = call.output(of.next());
    b.grad_prev_sample = call.output(of.next());
    b.grad_model_output_uncond = call.output(of.next());
    b.grad_old_model_output_uncond = call.output(of.next());
    arguments::read_history(call, of.next(),
                            [&](Py_ssize_t j, py::handle gradient) { b.grad_history[j] = call.output(gradient); });
    return finish(call, b, Api::log_ratio_backward, first, second);
  }

  static bool add_noise(py::handle inputs, py::handle result, py::handle noise, std::int64_t first,
                        std::uintptr_t second) {
    arguments::Fields of(inputs);
    const py::handle sample = of.next();
    Call call(Api::device(first), sample, true);
    gmm_add_noise_arguments a = {};
    a.sample = call.input(sample);
    a.training = arguments::training(call, of);
    a.result = call.output(result);
    a.noise = call.output(noise);
    a.first_element = call.index(of.next());
    return finish(call, a, Api::add_noise, first, second);
  }

  static bool skip_step_loss(py::handle inputs, py::handle result, py::handle residual, py::handle workspace,
                             std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    gmm_skip_loss_arguments a = arguments::skip_loss(call, inputs);
    a.residual = call.output(residual);
    a.loss = call.room(result);
    a.workspace = call.room(workspace);
    return finish(call, a, Api::skip_loss, first, second);
  }

  static bool scale_residual(py::handle residual, py::handle coefficients, py::handle row, py::handle step,
                             py::handle grad, std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), residual, true);
    gmm_scale_residual_arguments a = {};
    const py::tuple given = py::make_tuple(coefficients, py::none(), row, step);
    arguments::Fields of(given);
    a.training = arguments::training(call, of);
    a.residual = call.output(residual);
    a.grad_loss = call.room(grad);
    return finish(call, a, Api::scale_residual, first, second);
  }

  // `gradients`: TrainingGradients.
  static bool skip_step_loss_backward(py::handle inputs, py::handle grad, py::handle gradients, std::int64_t first,
                                      std::uintptr_t second) {
    Call call(Api::device(first), arguments::Fields(inputs).next(), true);
    arguments::Fields of(gradients);
    gmm_skip_loss_backward_arguments b = {};
    b.of = arguments::skip_loss(call, inputs);
    b.grad_loss = call.room(grad);
    b.grad_model_output = call.output(of.next());
    b.grad_sample = call.output(of.next());
    return finish(call, b, Api::skip_loss_backward, first, second);
  }

  static bool standard_normal(py::handle result, py::handle seeds, py::handle step, int stream,
                              py::handle first_element, std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), result, true);
    gmm_normal_arguments a = {};
    a.batch = call.batch;
    a.elements = call.elements;
    a.result = call.output(result);
    a.seeds = call.of_batch(seeds);
    a.step = call.index(step);
    a.first_element = call.index(first_element);
    a.stream = stream;
    return finish(call, a, Api::standard_normal, first, second);
  }

  static bool draw_components(py::handle result, py::handle seeds, py::handle cdf, py::handle row, py::handle step,
                              std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), result, true);
    gmm_component_arguments a = {};
    a.batch = call.batch;
    a.result = call.of_batch(result);
    a.seeds = call.of_batch(seeds);
    a.row = call.index(row);
    a.step = call.index(step);
    a.cdf = static_cast<const std::int64_t*>(call.contiguous(cdf, tensors::int64_type, {&a.cdf_rows, &a.components}));
    ++a.components;
    return finish(call, a, Api::draw_components, first, second);
  }

  static bool project(py::handle sample, py::handle table, py::handle row, py::handle result, py::handle workspace,
                      std::int64_t first, std::uintptr_t second) {
    Call call(Api::device(first), sample, true);
    gmm_project_arguments a = {};
    std::int64_t elements = 0;
    a.batch = call.batch;
    a.elements = call.elements;
    a.sample = call.input(sample);
    a.table = call.contiguous(table, call.table_type(), {&a.table_rows, &a.columns, &elements});
    call.require(elements == call.elements);
    a.row = call.index(row);
    a.result = call.room(result);
    a.workspace = call.room(workspace);
    return finish(call, a, Api::project, first, second);
  }

  static void define(py::module_& m) {
    m.attr("version") = gmm_version();
    tensors::learn_torch();
    m.def("is_plain_step", &is_plain_step);
    m.def("gmm_step", &gmm_step);
    m.def("gmm_step_backward", &gmm_step_backward);
    m.def("log_prob", &log_prob);
    m.def("log_prob_backward", &log_prob_backward);
    m.def("log_ratio", &log_ratio);
    m.def("log_ratio_backward", &log_ratio_backward);
    m.def("add_noise", &add_noise);
    m.def("skip_step_loss", &skip_step_loss);
    m.def("scale_residual", &scale_residual);
    m.def("skip_step_loss_backward", &skip_step_loss_backward);
    m.def("standard_normal", &standard_normal);
    m.def("draw_components", &draw_components);
    m.def("project", &project);
  }
};

}  // namespace functions
