// What both extensions need: C structs from Python's numbers and tuples, errors out as exceptions.
#pragma once

#include <pybind11/pybind11.h>

#include "gmmkernel/gmmkernel.h"

namespace py = pybind11;

namespace arguments {

inline void raise_on_error(int status) {
  switch (status) {
    case GMM_SUCCESS:
      return;
    case GMM_OUT_OF_RANGE:
      throw py::index_error(gmm_last_error());
    case GMM_INVALID_ARGUMENT:
      throw py::value_error(gmm_last_error());
    default:
      throw std::runtime_error(gmm_last_error());
  }
}

template <class Function>
void run(Function&& function) {
  int status;
  {
    const py::gil_scoped_release release;
    status = function();
  }
  raise_on_error(status);
}

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A tensor arrives as (address, batch stride in elements, dtype); address 0 stands for an absent one.

inline gmm_input input(const py::tuple& t) {
  return {pointer<const void>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(), t[2].cast<int>()};
}

inline gmm_output output(const py::tuple& t) {
  return {pointer<void>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(), t[2].cast<int>()};
}

// An index arrives as (address, stride, value).
inline gmm_index index(const py::tuple& t) {
  return {pointer<const std::int64_t>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(),
          t[2].cast<std::int64_t>()};
}

// What every function of the transition reads arrives as one tuple, in the order of gmmkernel/backends/compiled.py.
inline gmm_step_arguments inputs(const py::tuple& t) {
  gmm_step_arguments a = {};
  a.batch = t[0].cast<std::int64_t>();
  a.elements = t[1].cast<std::int64_t>();
  a.sample = input(t[2]);
  a.model_output = input(t[3]);
  a.model_output_uncond = input(t[4]);
  const py::list history = t[5];
  if (history.size() > GMM_MAX_HISTORY) throw py::value_error("history: more than 4 tensors");
  for (std::size_t j = 0; j < history.size(); ++j) a.history[j] = input(history[j]);
  a.coefficients = pointer<const void>(t[6].cast<std::uintptr_t>());
  a.coefficient_rows = t[7].cast<std::int64_t>();
  a.row = index(t[8]);
  a.step = index(t[9]);
  a.seeds = pointer<const std::int64_t>(t[10].cast<std::uintptr_t>());
  const py::tuple mixture = t[11];
  if (!mixture.empty()) {
    a.mixture.components = mixture[0].cast<std::int64_t>();
    a.mixture.thresholds = pointer<const std::int64_t>(mixture[1].cast<std::uintptr_t>());
    a.mixture.threshold_rows = mixture[2].cast<std::int64_t>();
    a.mixture.offsets = pointer<const void>(mixture[3].cast<std::uintptr_t>());
    a.mixture.offset_rows = mixture[4].cast<std::int64_t>();
    a.mixture.std = pointer<const void>(mixture[5].cast<std::uintptr_t>());
    a.mixture.std_rows = mixture[6].cast<std::int64_t>();
    a.mixture.std_components = mixture[7].cast<std::int64_t>();
    a.mixture.std_elements = mixture[8].cast<std::int64_t>();
    a.mixture.directions = mixture[9].cast<std::int64_t>();
    a.mixture.basis = pointer<const void>(mixture[10].cast<std::uintptr_t>());
    a.mixture.basis_rows = mixture[11].cast<std::int64_t>();
    a.mixture.shrinkage = pointer<const void>(mixture[12].cast<std::uintptr_t>());
    a.mixture.shrinkage_rows = mixture[13].cast<std::int64_t>();
    a.mixture.shrinkage_components = mixture[14].cast<std::int64_t>();
  }
  return a;
}

inline gmm_step_arguments step(const py::tuple& of_step, const py::tuple& result, const py::tuple& prediction,
                               int prediction_kind, std::uintptr_t components, std::uintptr_t workspace) {
  gmm_step_arguments a = inputs(of_step);
  a.workspace = pointer<void>(workspace);
  a.result = output(result);
  a.prediction = output(prediction);
  a.prediction_kind = prediction_kind;
  a.components = pointer<std::int64_t>(components);
  return a;
}

// The outputs of gmm_step_backward_arguments, in the order of StepGradients, then the workspace.
inline gmm_step_backward_arguments gradients(const py::tuple& t) {
  gmm_step_backward_arguments b = {};
  b.grad_sample = output(t[0]);
  b.grad_model_output = output(t[1]);
  b.grad_model_output_uncond = output(t[2]);
  b.grad_coefficients = pointer<void>(t[3].cast<std::uintptr_t>());
  b.grad_offsets = pointer<void>(t[4].cast<std::uintptr_t>());
  b.grad_std = pointer<void>(t[5].cast<std::uintptr_t>());
  const py::list history = t[6];
  if (history.size() > GMM_MAX_HISTORY) throw py::value_error("grad_history: more than 4 tensors");
  for (std::size_t j = 0; j < history.size(); ++j) b.grad_history[j] = output(history[j]);
  b.workspace = pointer<void>(t[7].cast<std::uintptr_t>());
  return b;
}

// `grads`: of the result and of the prediction.
inline gmm_step_backward_arguments step_backward(const py::tuple& of_step, int prediction_kind, const py::tuple& grads,
                                                 const py::tuple& to) {
  gmm_step_backward_arguments b = gradients(to);
  b.step = inputs(of_step);
  b.step.prediction_kind = prediction_kind;
  b.grad_result = input(grads[0]);
  b.grad_prediction = input(grads[1]);
  return b;
}

// Empty, or addresses, each followed by the sizes that the struct has.
inline gmm_penalties penalties(const py::tuple& t) {
  if (t.empty()) return {};
  const auto table = [&](int at) { return pointer<const void>(t[at].cast<std::uintptr_t>()); };
  const auto size = [&](int at) { return t[at].cast<std::int64_t>(); };
  return {table(0), size(1), size(2), table(3), size(4), table(5), size(6), size(7)};
}

// `mixture_weights`: address and rows.
inline gmm_log_prob_arguments log_prob(const py::tuple& of_step, const py::tuple& prev_sample,
                                       const py::tuple& mixture_weights, const py::tuple& penalized,
                                       std::uintptr_t result, std::uintptr_t responsibilities, std::uintptr_t energies,
                                       std::uintptr_t workspace) {
  gmm_log_prob_arguments p = {};
  p.step = inputs(of_step);
  p.prev_sample = input(prev_sample);
  p.weights = pointer<const void>(mixture_weights[0].cast<std::uintptr_t>());
  p.weight_rows = mixture_weights[1].cast<std::int64_t>();
  p.log_prob = pointer<void>(result);
  p.responsibilities = pointer<void>(responsibilities);
  p.energies = pointer<void>(energies);
  p.penalties = penalties(penalized);
  p.workspace = pointer<void>(workspace);
  return p;
}

inline gmm_log_prob_backward_arguments log_prob_backward(const gmm_log_prob_arguments& of, std::uintptr_t grad,
                                                         const py::tuple& grad_prev_sample, std::uintptr_t grad_weights,
                                                         const py::tuple& to) {
  gmm_log_prob_backward_arguments b = {};
  b.of = of;
  b.grad_log_prob = pointer<const void>(grad);
  b.grad_prev_sample = output(grad_prev_sample);
  b.grad_weights = pointer<void>(grad_weights);
  b.gradients = gradients(to);
  return b;
}

// What training reads of a batch arrives as one tuple.
inline gmm_training training(const py::tuple& t) {
  return {t[0].cast<std::int64_t>(),
          t[1].cast<std::int64_t>(),
          pointer<const void>(t[2].cast<std::uintptr_t>()),
          t[3].cast<std::int64_t>(),
          index(t[4]),
          index(t[5]),
          pointer<const std::int64_t>(t[6].cast<std::uintptr_t>())};
}

inline gmm_add_noise_arguments add_noise(const py::tuple& batch, const py::tuple& sample, const py::tuple& result,
                                         const py::tuple& noise) {
  return {training(batch), input(sample), output(result), output(noise)};
}

inline gmm_skip_loss_arguments skip_loss(const py::tuple& batch, const py::tuple& model_output, const py::tuple& sample,
                                         const py::tuple& pull, std::uintptr_t loss, std::uintptr_t workspace) {
  return {training(batch), input(model_output), input(sample),
          output(pull),    pointer<void>(loss), pointer<void>(workspace)};
}

inline gmm_scale_pull_arguments scale_pull(const py::tuple& batch, const py::tuple& pull, std::uintptr_t grad) {
  return {training(batch), output(pull), pointer<const void>(grad)};
}

inline gmm_skip_loss_backward_arguments skip_loss_backward(const py::tuple& batch, const py::tuple& model_output,
                                                           const py::tuple& sample, std::uintptr_t grad,
                                                           const py::tuple& grad_model_output,
                                                           const py::tuple& grad_sample) {
  return {{training(batch), input(model_output), input(sample), {}, nullptr, nullptr},
          pointer<const void>(grad),
          output(grad_model_output),
          output(grad_sample)};
}

inline gmm_normal_arguments standard_normal(std::int64_t batch, std::int64_t elements, const py::tuple& result,
                                            std::uintptr_t seeds, const py::tuple& step, int stream) {
  return {batch, elements, output(result), pointer<const std::int64_t>(seeds), index(step), stream};
}

inline gmm_component_arguments draw_components(std::int64_t batch, std::uintptr_t result, std::uintptr_t seeds,
                                               const py::tuple& row, const py::tuple& step, std::int64_t components,
                                               std::uintptr_t thresholds, std::int64_t threshold_rows) {
  return {batch,
          pointer<std::int64_t>(result),
          pointer<const std::int64_t>(seeds),
          index(row),
          index(step),
          components,
          pointer<const std::int64_t>(thresholds),
          threshold_rows};
}

}  // namespace arguments
