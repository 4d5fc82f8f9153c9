#include "common/checks.h"

#include <cstdarg>
#include <cstdio>

#include "common/layout.h"

#define GMM_TEXT(x) #x
#define GMM_VERSION_TEXT(major, minor, patch) GMM_TEXT(major) "." GMM_TEXT(minor) "." GMM_TEXT(patch)

namespace gmmkernel {
namespace {

thread_local char message[256] = "";

bool is_dtype(int32_t dtype) { return dtype >= GMM_FLOAT32 && dtype <= GMM_FLOAT64; }

bool is_half(int32_t dtype) { return dtype == GMM_BFLOAT16 || dtype == GMM_FLOAT16; }

int check_input(const gmm_input& input, int32_t sample_dtype, const char* name, bool required,
                const char* other = "sample") {
  if (input.data == nullptr) {
    return required ? fail(GMM_INVALID_ARGUMENT, "%s: no data", name) : GMM_SUCCESS;
  }
  const bool allowed = input.dtype == sample_dtype || input.dtype == GMM_FLOAT32 ||
                       (sample_dtype == GMM_FLOAT32 && is_half(input.dtype));
  if (!allowed) {
    return fail(GMM_INVALID_ARGUMENT,
                "%s: dtype %d beside a %s of dtype %d; allowed: the same, float32, "
                "and bfloat16 or float16 beside float32",
                name, input.dtype, other, sample_dtype);
  }
  return GMM_SUCCESS;
}

// Threads write samples at the same time, so no two of them may share an element.
int check_output(const gmm_output& output, int64_t batch, int64_t elements, const char* name) {
  if (output.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "%s: no data", name);
  if (batch > 1 && output.batch_stride < elements && output.batch_stride > -elements) {
    return fail(GMM_INVALID_ARGUMENT, "%s: batch_stride %lld, expected at least the %lld elements of a sample", name,
                (long long)output.batch_stride, (long long)elements);
  }
  return GMM_SUCCESS;
}

int check_output_dtype(const gmm_output& output, int32_t sample_dtype, const char* name, const char* other = "sample") {
  if (output.dtype == sample_dtype) return GMM_SUCCESS;
  return fail(GMM_INVALID_ARGUMENT, "%s: dtype %d, expected the %s's, %d", name, output.dtype, other, sample_dtype);
}

int check_sizes(int64_t batch, int64_t elements) {
  if (batch < 0) return fail(GMM_INVALID_ARGUMENT, "batch: expected at least 0, got %lld", (long long)batch);
  if (elements < 0) return fail(GMM_INVALID_ARGUMENT, "elements: expected at least 0, got %lld", (long long)elements);
  return GMM_SUCCESS;
}

// An index entry for every sample within 0 .. last.
int check_index(const gmm_index& index, int64_t batch, int64_t last, const char* name, Memory memory) {
  if (batch == 0) return GMM_SUCCESS;
  if (index.data == nullptr) {
    if (index.value >= 0 && index.value <= last) return GMM_SUCCESS;
    return fail(GMM_OUT_OF_RANGE, "%s: expected 0 to %lld, got %lld", name, (long long)last, (long long)index.value);
  }
  if (index.stride != 0 && index.stride != 1) {
    return fail(GMM_INVALID_ARGUMENT, "%s: stride 0 or 1, got %lld", name, (long long)index.stride);
  }
  if (memory == Memory::device) return GMM_SUCCESS;
  for (int64_t b = 0; b < (index.stride == 0 ? 1 : batch); ++b) {
    if (index.data[b] < 0 || index.data[b] > last) {
      return fail(GMM_OUT_OF_RANGE, "%s: expected 0 to %lld, got %lld for sample %lld", name, (long long)last,
                  (long long)index.data[b], (long long)b);
    }
  }
  return GMM_SUCCESS;
}

int check_rows(int64_t rows, int64_t coefficient_rows, const char* name) {
  if (rows == 1 || rows == coefficient_rows) return GMM_SUCCESS;
  return fail(GMM_INVALID_ARGUMENT, "%s: expected 1 or %lld rows, got %lld", name, (long long)coefficient_rows,
              (long long)rows);
}

int check_count(int64_t components) {
  if (components >= 1 && components <= GMM_MAX_COMPONENTS) return GMM_SUCCESS;
  return fail(GMM_INVALID_ARGUMENT, "components: expected 1 to %d, got %lld", GMM_MAX_COMPONENTS,
              (long long)components);
}

int check_components(int64_t components, const int64_t* cdf) {
  if (const int status = check_count(components)) return status;
  if (components > 1 && cdf == nullptr) return fail(GMM_INVALID_ARGUMENT, "cdf: no data");
  return GMM_SUCCESS;
}

// What a component is drawn with is looked at where one is drawn.
enum class Draws { component, nothing };

int check_mixture(const gmm_mixture& m, int64_t elements, int64_t coefficient_rows, Draws draws) {
  if (m.components == 0) return GMM_SUCCESS;
  if (const int status = check_count(m.components)) return status;
  if (draws == Draws::component) {
    if (const int status = check_components(m.components, m.cdf)) return status;
    if (const int status = check_rows(m.cdf_rows, coefficient_rows, "cdf_rows")) return status;
  }
  if (elements > 0 && m.offsets == nullptr) return fail(GMM_INVALID_ARGUMENT, "offsets: no data");
  if (m.std_elements < 0 || m.std_elements > elements) {
    return fail(GMM_INVALID_ARGUMENT, "std_elements: expected 0 to %lld, got %lld", (long long)elements,
                (long long)m.std_elements);
  }
  if (m.std_elements > 0 && m.std == nullptr) return fail(GMM_INVALID_ARGUMENT, "std: no data");
  if (m.std_components != 1 && m.std_components != m.components) {
    return fail(GMM_INVALID_ARGUMENT, "std_components: expected 1 or %lld, got %lld", (long long)m.components,
                (long long)m.std_components);
  }
  if (const int status = check_rows(m.offset_rows, coefficient_rows, "offset_rows")) return status;
  return check_rows(m.std_rows, coefficient_rows, "std_rows");
}

constexpr int64_t max_step = 0xFFFFFFFF;

}  // namespace

int fail(gmm_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

namespace {

bool is_empty(const gmm_step_arguments& a) { return a.batch == 0 || a.elements == 0; }

int check_inputs(const gmm_step_arguments& a, Memory memory, Draws draws) {
  if (const int status = check_sizes(a.batch, a.elements)) return status;
  if (!is_dtype(a.sample.dtype)) return fail(GMM_INVALID_ARGUMENT, "sample: unknown dtype %d", a.sample.dtype);
  const int32_t dtype = a.sample.dtype;
  if (!is_empty(a)) {
    if (const int status = check_input(a.sample, dtype, "sample", true)) return status;
    if (const int status = check_input(a.model_output, dtype, "model_output", true)) return status;
    if (const int status = check_input(a.model_output_uncond, dtype, "model_output_uncond", false)) return status;
    for (const gmm_input& stored : a.history) {
      if (const int status = check_input(stored, dtype, "history", false)) return status;
    }
  }
  if (a.prediction_kind < GMM_PREDICTION_NONE || a.prediction_kind > GMM_PREDICTION_MEAN) {
    return fail(GMM_INVALID_ARGUMENT, "prediction_kind: expected 0 to 4, got %d", a.prediction_kind);
  }
  if (a.coefficients == nullptr || a.coefficient_rows < 1) {
    return fail(GMM_INVALID_ARGUMENT, "coefficients: expected at least one row");
  }
  if (const int status = check_index(a.row, a.batch, a.coefficient_rows - 1, "row", memory)) return status;
  if (draws == Draws::component) {
    if (a.batch > 0 && a.seeds == nullptr) return fail(GMM_INVALID_ARGUMENT, "seeds: no data");
    if (const int status = check_index(a.step, a.batch, max_step, "step", memory)) return status;
    if (const int status = check_index(a.first_element, a.batch, INT64_MAX, "first_element", memory)) return status;
    if (a.mixture.components > 0 && (a.first_element.data != nullptr || a.first_element.value != 0)) {
      return fail(GMM_INVALID_ARGUMENT,
                  "first_element: expected 0 beside a mixture, whose tables are of whole samples");
    }
  }
  return check_mixture(a.mixture, a.elements, a.coefficient_rows, draws);
}

// An output of another tensor's type, where it is wanted.
int check_gradient(const gmm_output& gradient, const gmm_input& of, const gmm_step_arguments& a, const char* name) {
  if (gradient.data == nullptr) return GMM_SUCCESS;
  if (of.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "%s: the step has no such input", name);
  if (gradient.dtype != of.dtype) {
    return fail(GMM_INVALID_ARGUMENT, "%s: dtype %d, expected the input's, %d", name, gradient.dtype, of.dtype);
  }
  return check_output(gradient, a.batch, a.elements, name);
}

}  // namespace

int check(const gmm_step_arguments& a, Memory memory) {
  if (const int status = check_inputs(a, memory, Draws::component)) return status;
  if (a.log_prob != nullptr && a.mixture.components > 0) {
    return fail(GMM_INVALID_ARGUMENT, "log_prob: expected none beside a mixture");
  }
  if (a.log_prob != nullptr && a.batch > 0 && a.workspace == nullptr) {
    return fail(GMM_INVALID_ARGUMENT, "workspace: no data, needed with log_prob");
  }
  if (is_empty(a)) return GMM_SUCCESS;
  const int32_t dtype = a.sample.dtype;
  if (const int status = check_output(a.result, a.batch, a.elements, "result")) return status;
  if (const int status = check_output_dtype(a.result, dtype, "result")) return status;
  if (a.prediction_kind == GMM_PREDICTION_NONE) return GMM_SUCCESS;
  if (const int status = check_output(a.prediction, a.batch, a.elements, "prediction")) return status;
  return check_output_dtype(a.prediction, dtype, "prediction");
}

namespace {

// The outputs of gradients of `a`'s inputs.
int check_gradients(const gmm_step_backward_arguments& b, const gmm_step_arguments& a) {
  if (a.mixture.components == 0 && (b.grad_offsets != nullptr || b.grad_std != nullptr)) {
    return fail(GMM_INVALID_ARGUMENT, "%s: the step has no mixture", b.grad_offsets ? "grad_offsets" : "grad_std");
  }
  if (a.batch > 0 && b.grad_coefficients != nullptr && b.workspace == nullptr) {
    return fail(GMM_INVALID_ARGUMENT, "workspace: no data, needed with grad_coefficients");
  }
  if (is_empty(a)) return GMM_SUCCESS;
  if (const int status = check_gradient(b.grad_sample, a.sample, a, "grad_sample")) return status;
  if (const int status = check_gradient(b.grad_model_output, a.model_output, a, "grad_model_output")) return status;
  if (const int status =
          check_gradient(b.grad_model_output_uncond, a.model_output_uncond, a, "grad_model_output_uncond")) {
    return status;
  }
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (const int status = check_gradient(b.grad_history[j], a.history[j], a, "grad_history")) return status;
  }
  return GMM_SUCCESS;
}

// An input of the sample's very type.
int check_same_dtype(const gmm_input& input, const gmm_step_arguments& a, const char* name) {
  if (input.dtype == a.sample.dtype) return GMM_SUCCESS;
  return fail(GMM_INVALID_ARGUMENT, "%s: dtype %d, expected the sample's, %d", name, input.dtype, a.sample.dtype);
}

int check_density(const gmm_log_prob_arguments& p, Memory memory) {
  const gmm_step_arguments& a = p.step;
  if (const int status = check_inputs(a, memory, Draws::nothing)) return status;
  if (a.mixture.components > 0) {
    if (p.weights == nullptr) return fail(GMM_INVALID_ARGUMENT, "weights: no data");
    if (const int status = check_rows(p.weight_rows, a.coefficient_rows, "weight_rows")) return status;
  }
  if (is_empty(a)) return GMM_SUCCESS;
  if (p.prev_sample.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "prev_sample: no data");
  return check_same_dtype(p.prev_sample, a, "prev_sample");
}

}  // namespace

int check(const gmm_step_backward_arguments& b, Memory memory) {
  const gmm_step_arguments& a = b.step;
  if (const int status = check_inputs(a, memory, Draws::component)) return status;
  if (const int status = check_gradients(b, a)) return status;
  if (is_empty(a)) return GMM_SUCCESS;
  if (b.grad_result.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "grad_result: no data");
  if (const int status = check_same_dtype(b.grad_result, a, "grad_result")) return status;
  if (b.grad_prediction.data == nullptr) return GMM_SUCCESS;
  if (a.prediction_kind == GMM_PREDICTION_NONE) {
    return fail(GMM_INVALID_ARGUMENT, "grad_prediction: the step has no prediction");
  }
  return check_same_dtype(b.grad_prediction, a, "grad_prediction");
}

int check(const gmm_log_prob_arguments& p, Memory memory) {
  if (const int status = check_density(p, memory)) return status;
  if (p.step.batch == 0) return GMM_SUCCESS;
  if (p.log_prob == nullptr && p.step.mixture.components > 0) {
    return fail(GMM_INVALID_ARGUMENT, "log_prob: no data");
  }
  if (p.workspace == nullptr) return fail(GMM_INVALID_ARGUMENT, "workspace: no data");
  return GMM_SUCCESS;
}

int check(const gmm_log_prob_backward_arguments& b, Memory memory) {
  const gmm_step_arguments& a = b.of.step;
  if (const int status = check_density(b.of, memory)) return status;
  if (const int status = check_gradients(b.gradients, a)) return status;
  if (a.mixture.components == 0 && b.grad_weights != nullptr) {
    return fail(GMM_INVALID_ARGUMENT, "grad_weights: the step has no mixture");
  }
  if (a.mixture.components > 0 && b.of_tiles != 0) {
    return fail(GMM_INVALID_ARGUMENT, "of_tiles: expected 0 with a mixture");
  }
  if (a.batch == 0) return GMM_SUCCESS;
  if (b.grad_log_prob == nullptr) return fail(GMM_INVALID_ARGUMENT, "grad_log_prob: no data");
  if (a.mixture.components > 0 && b.of.responsibilities == nullptr) {
    return fail(GMM_INVALID_ARGUMENT, "responsibilities: no data");
  }
  return check_gradient(b.grad_prev_sample, b.of.prev_sample, a, "grad_prev_sample");
}

namespace {

// A log-ratio's inputs; `old` ones are there where the new ones are.
int check_ratio(const gmm_log_ratio_arguments& r, Memory memory) {
  const gmm_step_arguments& a = r.step;
  if (const int status = check_inputs(a, memory, Draws::nothing)) return status;
  if (a.mixture.components > 0) return fail(GMM_INVALID_ARGUMENT, "mixture: expected none");
  if (is_empty(a)) return GMM_SUCCESS;
  const bool guided = a.model_output_uncond.data != nullptr;
  if (const int status = check_input(r.old_model_output, a.sample.dtype, "old_model_output", true)) return status;
  if (const int status = check_input(r.old_model_output_uncond, a.sample.dtype, "old_model_output_uncond", guided)) {
    return status;
  }
  if (!guided && r.old_model_output_uncond.data != nullptr) {
    return fail(GMM_INVALID_ARGUMENT, "old_model_output_uncond: expected none without model_output_uncond");
  }
  if (r.prev_sample.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "prev_sample: no data");
  return check_same_dtype(r.prev_sample, a, "prev_sample");
}

}  // namespace

int check(const gmm_log_ratio_arguments& r, Memory memory) {
  if (const int status = check_ratio(r, memory)) return status;
  if (r.step.batch > 0 && r.workspace == nullptr) return fail(GMM_INVALID_ARGUMENT, "workspace: no data");
  return GMM_SUCCESS;
}

int check(const gmm_log_ratio_backward_arguments& b, Memory memory) {
  const gmm_step_arguments& a = b.of.step;
  if (const int status = check_ratio(b.of, memory)) return status;
  if (is_empty(a)) return GMM_SUCCESS;
  if (b.grad == nullptr) return fail(GMM_INVALID_ARGUMENT, "grad: no data");
  const struct {
    const gmm_output& gradient;
    const gmm_input& of;
    const char* name;
  } elementwise[] = {
      {b.grad_sample, a.sample, "grad_sample"},
      {b.grad_model_output, a.model_output, "grad_model_output"},
      {b.grad_old_model_output, b.of.old_model_output, "grad_old_model_output"},
      {b.grad_prev_sample, b.of.prev_sample, "grad_prev_sample"},
      {b.grad_model_output_uncond, a.model_output_uncond, "grad_model_output_uncond"},
      {b.grad_old_model_output_uncond, b.of.old_model_output_uncond, "grad_old_model_output_uncond"},
  };
  for (const auto& each : elementwise) {
    if (const int status = check_gradient(each.gradient, each.of, a, each.name)) return status;
  }
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (const int status = check_gradient(b.grad_history[j], a.history[j], a, "grad_history")) return status;
  }
  return GMM_SUCCESS;
}

namespace {

bool is_empty(const gmm_training& t) { return t.batch == 0 || t.elements == 0; }

int check_training(const gmm_training& t, int32_t dtype, const char* name, Memory memory, bool draws = true) {
  if (const int status = check_sizes(t.batch, t.elements)) return status;
  if (!is_dtype(dtype)) return fail(GMM_INVALID_ARGUMENT, "%s: unknown dtype %d", name, dtype);
  if (t.coefficients == nullptr || t.coefficient_rows < 1) {
    return fail(GMM_INVALID_ARGUMENT, "coefficients: expected at least one row");
  }
  if (const int status = check_index(t.row, t.batch, t.coefficient_rows - 1, "row", memory)) return status;
  if (draws && t.batch > 0 && t.seeds == nullptr) return fail(GMM_INVALID_ARGUMENT, "seeds: no data");
  return check_index(t.step, t.batch, max_step, "step", memory);
}

// Where a sample that is not there would be read.
int check_sample_is_read(const gmm_skip_loss_arguments& a, Memory memory) {
  const gmm_training& t = a.training;
  if (a.sample.data != nullptr || memory == Memory::device) return GMM_SUCCESS;
  for (int64_t b = 0; b < t.batch; ++b) {
    const int64_t row = index_at(t.row, b), at = row * GMM_TRAINING_COLUMNS + GMM_TRAINING_EPS_SAMPLE;
    const bool reads = a.model_output.dtype == GMM_FLOAT64 ? static_cast<const double*>(t.coefficients)[at] != 0
                                                           : static_cast<const float*>(t.coefficients)[at] != 0;
    if (reads) {
      return fail(GMM_INVALID_ARGUMENT,
                  "sample: expected the training sample x_t, which row %lld of sample %lld reads, got none",
                  (long long)row, (long long)b);
    }
  }
  return GMM_SUCCESS;
}

int check_loss(const gmm_skip_loss_arguments& a, Memory memory) {
  const int32_t dtype = a.model_output.dtype;
  if (const int status = check_training(a.training, dtype, "model_output", memory)) return status;
  if (is_empty(a.training)) return GMM_SUCCESS;
  if (const int status = check_input(a.model_output, dtype, "model_output", true)) return status;
  if (const int status = check_input(a.sample, dtype, "sample", false, "model_output")) return status;
  return check_sample_is_read(a, memory);
}

int check_loss_gradient(const gmm_output& gradient, const gmm_input& of, const gmm_training& t, const char* name,
                        const char* other) {
  if (gradient.data == nullptr) return GMM_SUCCESS;
  if (of.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "%s: there is no such input", name);
  if (const int status = check_output_dtype(gradient, of.dtype, name, other)) return status;
  return check_output(gradient, t.batch, t.elements, name);
}

}  // namespace

int check(const gmm_add_noise_arguments& a, Memory memory) {
  const gmm_training& t = a.training;
  const int32_t dtype = a.sample.dtype;
  if (const int status = check_training(t, dtype, "sample", memory)) return status;
  if (const int status = check_index(a.first_element, t.batch, INT64_MAX, "first_element", memory)) return status;
  if (is_empty(t)) return GMM_SUCCESS;
  if (const int status = check_input(a.sample, dtype, "sample", true)) return status;
  if (const int status = check_output(a.result, t.batch, t.elements, "result")) return status;
  if (const int status = check_output_dtype(a.result, dtype, "result")) return status;
  if (a.noise.data == nullptr) return GMM_SUCCESS;
  if (const int status = check_output(a.noise, t.batch, t.elements, "noise")) return status;
  return check_output_dtype(a.noise, dtype, "noise");
}

int check(const gmm_skip_loss_arguments& a, Memory memory) {
  if (const int status = check_loss(a, memory)) return status;
  if (a.training.batch == 0) return GMM_SUCCESS;
  if (a.loss == nullptr) return fail(GMM_INVALID_ARGUMENT, "loss: no data");
  if (a.workspace == nullptr) return fail(GMM_INVALID_ARGUMENT, "workspace: no data");
  if (a.residual.data == nullptr || is_empty(a.training)) return GMM_SUCCESS;
  if (is_half(a.model_output.dtype)) {
    return fail(GMM_INVALID_ARGUMENT, "residual: not for a model_output of dtype %d", a.model_output.dtype);
  }
  if (const int status = check_output_dtype(a.residual, a.model_output.dtype, "residual", "model_output"))
    return status;
  return check_output(a.residual, a.training.batch, a.training.elements, "residual");
}

int check(const gmm_scale_residual_arguments& a, Memory memory) {
  if (const int status = check_training(a.training, a.residual.dtype, "residual", memory, false)) return status;
  if (is_half(a.residual.dtype))
    return fail(GMM_INVALID_ARGUMENT, "residual: dtype %d, which none has", a.residual.dtype);
  if (is_empty(a.training)) return GMM_SUCCESS;
  if (a.grad_loss == nullptr) return fail(GMM_INVALID_ARGUMENT, "grad_loss: no data");
  return check_output(a.residual, a.training.batch, a.training.elements, "residual");
}

int check(const gmm_skip_loss_backward_arguments& b, Memory memory) {
  const gmm_training& t = b.of.training;
  if (const int status = check_loss(b.of, memory)) return status;
  if (is_empty(t)) return GMM_SUCCESS;
  if (b.grad_loss == nullptr) return fail(GMM_INVALID_ARGUMENT, "grad_loss: no data");
  if (const int status =
          check_loss_gradient(b.grad_model_output, b.of.model_output, t, "grad_model_output", "model_output")) {
    return status;
  }
  return check_loss_gradient(b.grad_sample, b.of.sample, t, "grad_sample", "sample");
}

int check(const gmm_normal_arguments& a, Memory memory) {
  if (const int status = check_sizes(a.batch, a.elements)) return status;
  if (a.batch == 0 || a.elements == 0) return GMM_SUCCESS;
  if (!is_dtype(a.result.dtype)) return fail(GMM_INVALID_ARGUMENT, "result: unknown dtype %d", a.result.dtype);
  if (const int status = check_output(a.result, a.batch, a.elements, "result")) return status;
  if (a.seeds == nullptr) return fail(GMM_INVALID_ARGUMENT, "seeds: no data");
  if (a.stream < GMM_STREAM_TRANSITION || a.stream > GMM_STREAM_OFFSETS) {
    return fail(GMM_INVALID_ARGUMENT, "stream: expected 0 to %d, got %d", GMM_STREAM_OFFSETS, a.stream);
  }
  if (const int status = check_index(a.first_element, a.batch, INT64_MAX, "first_element", memory)) return status;
  return check_index(a.step, a.batch, max_step, "step", memory);
}

int check(const gmm_component_arguments& a, Memory memory) {
  if (const int status = check_sizes(a.batch, 0)) return status;
  if (a.batch == 0) return GMM_SUCCESS;
  if (a.result == nullptr) return fail(GMM_INVALID_ARGUMENT, "result: no data");
  if (a.seeds == nullptr) return fail(GMM_INVALID_ARGUMENT, "seeds: no data");
  if (const int status = check_components(a.components, a.cdf)) return status;
  if (a.cdf_rows < 1) return fail(GMM_INVALID_ARGUMENT, "cdf_rows: expected at least 1");
  if (a.cdf_rows > 1) {
    if (const int status = check_index(a.row, a.batch, a.cdf_rows - 1, "row", memory)) return status;
  }
  return check_index(a.step, a.batch, max_step, "step", memory);
}

int check(const gmm_project_arguments& a, Memory memory) {
  if (const int status = check_sizes(a.batch, a.elements)) return status;
  if (a.sample.dtype != GMM_FLOAT32 && a.sample.dtype != GMM_FLOAT64) {
    return fail(GMM_INVALID_ARGUMENT, "sample: dtype %d, expected that of float32 or float64", a.sample.dtype);
  }
  if (a.columns < 1) {
    return fail(GMM_INVALID_ARGUMENT, "columns: expected at least 1, got %lld", (long long)a.columns);
  }
  if (a.table_rows < 1) return fail(GMM_INVALID_ARGUMENT, "table_rows: expected at least 1");
  if (a.batch == 0) return GMM_SUCCESS;
  if (a.elements > 0 && a.sample.data == nullptr) return fail(GMM_INVALID_ARGUMENT, "sample: no data");
  if (a.elements > 0 && a.table == nullptr) return fail(GMM_INVALID_ARGUMENT, "table: no data");
  if (a.result == nullptr) return fail(GMM_INVALID_ARGUMENT, "result: no data");
  if (a.workspace == nullptr) return fail(GMM_INVALID_ARGUMENT, "workspace: no data");
  return a.table_rows == 1 ? GMM_SUCCESS : check_index(a.row, a.batch, a.table_rows - 1, "row", memory);
}

}  // namespace gmmkernel

const char* gmm_version(void) { return GMM_VERSION_TEXT(GMM_VERSION_MAJOR, GMM_VERSION_MINOR, GMM_VERSION_PATCH); }

const char* gmm_last_error(void) { return gmmkernel::message; }
