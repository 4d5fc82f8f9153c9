// What both extensions need: C structs from Python's tensors, errors out as exceptions.
//
// Each function fills in a struct from what the functions of gmmkernel/backends/protocol.py are given: named tuples
// arrive as they are, and `Fields` reads them in the order in which they are declared there. Whether the struct may be
// used, the call says (`Call::is_plain`).
#pragma once

#include "tensors.h"

namespace arguments {

using tensors::Call;

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

// The entries of a tuple, one after the other.
class Fields {
 public:
  explicit Fields(py::handle tuple) : tuple_(tuple.ptr()) {
    if (!PyTuple_Check(tuple_)) throw py::type_error("expected a tuple");
  }

  py::handle next() {
    if (at_ == PyTuple_GET_SIZE(tuple_)) throw py::index_error("a tuple is too short");
    return PyTuple_GET_ITEM(tuple_, at_++);
  }

 private:
  PyObject* tuple_;
  Py_ssize_t at_ = 0;
};

// Up to four tensors, in a list or a tuple.
template <class Read>
void read_history(Call& call, py::handle given, Read&& read) {
  call.require(PyTuple_CheckExact(given.ptr()) || PyList_CheckExact(given.ptr()));
  if (!call.is_plain()) return;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(given.ptr());
  call.require(count <= GMM_MAX_HISTORY);
  for (Py_ssize_t j = 0; j < count && call.is_plain(); ++j) read(j, PySequence_Fast_GET_ITEM(given.ptr(), j));
}

inline py::handle needed(Call& call, py::handle object) {
  call.require(!object.is_none());
  return object;
}

// A table [1 or `rows`, ...] of the coefficients' type.
template <class... Sizes>
const void* table(Call& call, py::handle object, std::int64_t rows, std::int64_t& own_rows, Sizes&... sizes) {
  const void* found = call.contiguous(object, call.table_type(), {&own_rows, &sizes...});
  call.require(object.is_none() || own_rows == 1 || own_rows == rows);
  return found;
}

inline const void* coefficients(Call& call, py::handle object, std::int64_t columns, std::int64_t& rows) {
  std::int64_t found_columns = 0;
  const void* found = call.contiguous(needed(call, object), call.table_type(), {&rows, &found_columns});
  call.require(found_columns == columns && rows >= 1);
  return found;
}

inline void read_stored(Call& call, py::handle history, gmm_step_arguments& a) {
  read_history(call, history,
               [&](Py_ssize_t j, py::handle stored) { a.history[j] = call.input(needed(call, stored)); });
}

// Offsets and std.
inline gmm_mixture mixture(Call& call, Fields& of, std::int64_t rows) {
  gmm_mixture m = {};
  const py::handle offsets = of.next(), std = of.next();
  if (offsets.is_none()) {
    call.require(std.is_none());
    return m;
  }
  std::int64_t elements = 0;
  m.offsets = table(call, offsets, rows, m.offset_rows, m.components, elements);
  m.std = table(call, needed(call, std), rows, m.std_rows, m.std_components, m.std_elements);
  call.require(m.components >= 1 && m.components <= GMM_MAX_COMPONENTS && elements == call.elements &&
               m.std_elements <= elements && (m.std_components == 1 || m.std_components == m.components));
  return m;
}

// StepInputs; the call was begun with the first of them.
inline gmm_step_arguments inputs(Call& call, py::handle given) {
  Fields of(given);
  gmm_step_arguments a = {};
  a.batch = call.batch;
  a.elements = call.elements;
  a.sample = call.input(of.next());
  a.model_output = call.input(needed(call, of.next()));
  a.coefficients = coefficients(call, of.next(), GMM_ROW_COLUMNS, a.coefficient_rows);
  a.seeds = call.of_batch(needed(call, of.next()));
  a.row = call.index(of.next());
  a.step = call.index(of.next());
  a.first_element = call.index(of.next());
  a.model_output_uncond = call.input(of.next());
  read_stored(call, of.next(), a);
  const py::handle cdf = of.next();
  a.mixture = mixture(call, of, a.coefficient_rows);
  if (!cdf.is_none()) {
    gmm_mixture& m = a.mixture;
    std::int64_t one_less = 0;
    m.cdf = static_cast<const std::int64_t*>(call.contiguous(cdf, tensors::int64_type, {&m.cdf_rows, &one_less}));
    call.require(one_less + 1 == m.components && (m.cdf_rows == 1 || m.cdf_rows == a.coefficient_rows));
  }
  call.require(a.mixture.components <= 1 || a.mixture.cdf != nullptr);
  call.require(a.mixture.components == 0 || (a.first_element.data == nullptr && a.first_element.value == 0));
  return a;
}

// Whether the rows taken, in the CPU's memory, ask for no history and no guidance that is not given.
inline bool has_what_rows_read(const gmm_step_arguments& a) {
  const std::int64_t samples = a.row.data == nullptr ? std::min<std::int64_t>(a.batch, 1) : a.batch;
  for (std::int64_t b = 0; b < samples; ++b) {
    const std::int64_t row = a.row.data == nullptr ? a.row.value : a.row.data[b * a.row.stride];
    if (row < 0 || row >= a.coefficient_rows) return false;
    const auto column = [&](std::int64_t index) -> double {
      const std::int64_t at = row * GMM_ROW_COLUMNS + index;
      if (a.sample.dtype == GMM_FLOAT64) return static_cast<const double*>(a.coefficients)[at];
      return static_cast<const float*>(a.coefficients)[at];
    };
    for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
      if (a.history[j].data == nullptr && column(GMM_HISTORY_0 + j) != 0) return false;
    }
    const double guidance = column(GMM_GUIDANCE);
    if (a.model_output_uncond.data == nullptr && guidance != 0 && guidance != 1) return false;
  }
  return true;
}

inline gmm_step_arguments step(Call& call, py::handle of_step, py::handle result, py::handle prediction,
                               int prediction_kind, py::handle components, py::handle log_prob, py::handle workspace) {
  gmm_step_arguments a = inputs(call, of_step);
  a.result = call.output(needed(call, result));
  a.prediction = call.output(prediction);
  a.prediction_kind = prediction_kind;
  a.components = call.of_batch(components);
  a.log_prob = call.room(log_prob);
  a.workspace = call.room(workspace);
  call.require(a.log_prob == nullptr || (a.mixture.components == 0 && a.workspace != nullptr));
  return a;
}

// StepGradients, then the workspace.
inline gmm_step_backward_arguments gradients(Call& call, py::handle given, py::handle workspace) {
  Fields of(given);
  gmm_step_backward_arguments b = {};
  b.grad_sample = call.output(of.next());
  b.grad_model_output = call.output(of.next());
  b.grad_model_output_uncond = call.output(of.next());
  b.grad_coefficients = call.room(of.next());
  b.grad_offsets = call.room(of.next());
  b.grad_std = call.room(of.next());
  read_history(call, of.next(), [&](Py_ssize_t j, py::handle gradient) { b.grad_history[j] = call.output(gradient); });
  b.workspace = call.room(workspace);
  return b;
}

inline gmm_step_backward_arguments step_backward(Call& call, py::handle of_step, int prediction_kind, py::handle grad,
                                                 py::handle grad_prediction, py::handle to, py::handle workspace) {
  gmm_step_backward_arguments b = gradients(call, to, workspace);
  b.step = inputs(call, of_step);
  b.step.prediction_kind = prediction_kind;
  b.grad_result = call.input(grad);
  b.grad_prediction = call.input(grad_prediction);
  return b;
}

// LogProbInputs; the call was begun with the first of them.
inline gmm_log_prob_arguments log_prob(Call& call, py::handle given, py::handle responsibilities) {
  Fields of(given);
  gmm_log_prob_arguments p = {};
  gmm_step_arguments& a = p.step;
  a.batch = call.batch;
  a.elements = call.elements;
  a.sample = call.input(of.next());
  a.model_output = call.input(needed(call, of.next()));
  a.coefficients = coefficients(call, of.next(), GMM_ROW_COLUMNS, a.coefficient_rows);
  p.prev_sample = call.input(needed(call, of.next()));
  a.row = call.index(of.next());
  a.model_output_uncond = call.input(of.next());
  read_stored(call, of.next(), a);
  a.mixture = mixture(call, of, a.coefficient_rows);
  std::int64_t components = 0;
  p.weights = table(call, of.next(), a.coefficient_rows, p.weight_rows, components);
  p.responsibilities = call.room(responsibilities);
  return p;
}

// LogRatioInputs; the call was begun with the first of them.
inline gmm_log_ratio_arguments log_ratio(Call& call, py::handle given) {
  Fields of(given);
  gmm_log_ratio_arguments r = {};
  gmm_step_arguments& a = r.step;
  a.batch = call.batch;
  a.elements = call.elements;
  a.sample = call.input(of.next());
  a.model_output = call.input(needed(call, of.next()));
  r.old_model_output = call.input(needed(call, of.next()));
  a.coefficients = coefficients(call, of.next(), GMM_ROW_COLUMNS, a.coefficient_rows);
  r.prev_sample = call.input(needed(call, of.next()));
  a.row = call.index(of.next());
  a.model_output_uncond = call.input(of.next());
  r.old_model_output_uncond = call.input(of.next());
  read_stored(call, of.next(), a);
  return r;
}

// Coefficients, seeds, row and step.
inline gmm_training training(Call& call, Fields& of) {
  gmm_training t = {};
  t.batch = call.batch;
  t.elements = call.elements;
  t.coefficients = coefficients(call, of.next(), GMM_TRAINING_COLUMNS, t.coefficient_rows);
  t.seeds = call.of_batch(of.next());
  t.row = call.index(of.next());
  t.step = call.index(of.next());
  return t;
}

// TrainingInputs; the call was begun with the first of them.
inline gmm_skip_loss_arguments skip_loss(Call& call, py::handle given) {
  Fields of(given);
  gmm_skip_loss_arguments a = {};
  a.model_output = call.input(of.next());
  a.sample = call.input(of.next());
  a.training = training(call, of);
  return a;
}

}  // namespace arguments
