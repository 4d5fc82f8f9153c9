// The Python extension: pointers in as integers, errors out as exceptions. The GIL is released while kernels run.

#include <pybind11/pybind11.h>

#include "gmmkernel/gmmkernel.h"

namespace py = pybind11;

namespace {

void raise_on_error(int status) {
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

gmm_input input(const py::tuple& t) {
  return {pointer<const void>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(), t[2].cast<int>()};
}

gmm_output output(const py::tuple& t) {
  return {pointer<void>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(), t[2].cast<int>()};
}

// An index arrives as (address, stride, value).
gmm_index index(const py::tuple& t) {
  return {pointer<const std::int64_t>(t[0].cast<std::uintptr_t>()), t[1].cast<std::int64_t>(),
          t[2].cast<std::int64_t>()};
}

void step(std::int64_t batch, std::int64_t elements, const py::tuple& sample, const py::tuple& model_output,
          const py::tuple& model_output_uncond, const py::list& history, const py::tuple& result,
          const py::tuple& prediction, int prediction_kind, std::uintptr_t components, std::uintptr_t coefficients,
          std::int64_t coefficient_rows, const py::tuple& row, const py::tuple& step, std::uintptr_t seeds,
          const py::tuple& mixture, int threads, int instruction_set) {
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
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_step(&a, &options); });
}

void standard_normal(std::int64_t batch, std::int64_t elements, const py::tuple& result, std::uintptr_t seeds,
                     const py::tuple& step, int stream, int threads, int instruction_set) {
  const gmm_normal_arguments a = {batch,       elements, output(result), pointer<const std::int64_t>(seeds),
                                  index(step), stream};
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_standard_normal(&a, &options); });
}

void draw_components(std::int64_t batch, std::uintptr_t result, std::uintptr_t seeds, const py::tuple& row,
                     const py::tuple& step, std::int64_t components, std::uintptr_t thresholds,
                     std::int64_t threshold_rows) {
  const gmm_component_arguments a = {batch,
                                     pointer<std::int64_t>(result),
                                     pointer<const std::int64_t>(seeds),
                                     index(row),
                                     index(step),
                                     components,
                                     pointer<const std::int64_t>(thresholds),
                                     threshold_rows};
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
}
