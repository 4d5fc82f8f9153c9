// The extension of the CPU core.

#include "functions.h"

namespace {

using arguments::run;

struct Cpu {
  using Options = gmm_cpu_options;

  static Options options(std::int64_t threads, std::uintptr_t instruction_set) {
    return {static_cast<std::int32_t>(threads), static_cast<std::int32_t>(instruction_set)};
  }
  static tensors::Device device(std::int64_t) { return {tensors::cpu_device, 0}; }

  static constexpr auto step = gmm_cpu_step;
  static constexpr auto step_backward = gmm_cpu_step_backward;
  static constexpr auto log_prob = gmm_cpu_log_prob;
  static constexpr auto log_prob_backward = gmm_cpu_log_prob_backward;
  static constexpr auto log_ratio = gmm_cpu_log_ratio;
  static constexpr auto log_ratio_backward = gmm_cpu_log_ratio_backward;
  static constexpr auto add_noise = gmm_cpu_add_noise;
  static constexpr auto skip_loss = gmm_cpu_skip_loss;
  static constexpr auto scale_residual = gmm_cpu_scale_residual;
  static constexpr auto skip_loss_backward = gmm_cpu_skip_loss_backward;
  static constexpr auto standard_normal = gmm_cpu_standard_normal;
  static constexpr auto project = gmm_cpu_project;

  static int draw_components(const gmm_component_arguments* a, const Options*) { return gmm_cpu_draw_components(a); }
};

void orthonormalize(std::uintptr_t rows, std::int64_t row_count, std::int64_t elements, int threads,
                    int instruction_set) {
  const gmm_cpu_options options = {threads, instruction_set};
  run([&] { return gmm_cpu_orthonormalize(reinterpret_cast<double*>(rows), row_count, elements, &options); });
}

bool has_instruction_set(int instruction_set) {
  const gmm_normal_arguments nothing = {};
  const gmm_cpu_options options = {1, instruction_set};
  return gmm_cpu_standard_normal(&nothing, &options) == GMM_SUCCESS;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of gmmkernel; gmmkernel.backends.cpu is its only caller.";
  functions::Functions<Cpu>::define(m);
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
                        {"MODEL_OUTPUT", GMM_PREDICTION_MODEL_OUTPUT},
                        {"MEAN", GMM_PREDICTION_MEAN}});
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
