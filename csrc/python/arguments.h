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

inline gmm_step_arguments step(std::int64_t batch, std::int64_t elements, const py::tuple& sample,
                               const py::tuple& model_output, const py::tuple& model_output_uncond,
                               const py::list& history, const py::tuple& result, const py::tuple& prediction,
                               int prediction_kind, std::uintptr_t components, std::uintptr_t coefficients,
                               std::int64_t coefficient_rows, const py::tuple& row, const py::tuple& step,
                               std::uintptr_t seeds, const py::tuple& mixture) {
  gmm_step_arguments a = {};
  a.batch = batch;
  a.elements = elements;
  a.sample = input(sample);
  a.model_output = input(model_output);
  a.model_output_uncond = input(model_output_uncond);
  if (history.size() > GMM_MAX_HISTORY) throw py::value_error("history: more than 4 tensors");
  for (std::size_t j = 0; j < history.size(); ++j) a.history[j] = input(history[j].cast<py::tuple>());
  a.result = output(result);
  a.prediction = output(prediction);
  a.prediction_kind = prediction_kind;
  a.components = pointer<std::int64_t>(components);
  a.coefficients = pointer<const void>(coefficients);
  a.coefficient_rows = coefficient_rows;
  a.row = index(row);
  a.step = index(step);
  a.seeds = pointer<const std::int64_t>(seeds);
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
  }
  return a;
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
