#include "step_plainly.h"

#include <cmath>

#include "gmmkernel/lanes_scalar.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/philox.h"

namespace {

using gmmkernel::ScalarLanes;

// float32 fuses where the specification says so; float64 rounds the product and the sum.
float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
double multiply_add(double a, double b, double c) { return a * b + c; }

template <class T>
void step_in(StepCase& c) {
  const gmm_step_arguments& a = c.arguments;
  const gmm_mixture& m = a.mixture;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t row = a.row.data == nullptr ? a.row.value : a.row.data[a.row.stride * b];
    const int64_t step = a.step.data == nullptr ? a.step.value : a.step.data[a.step.stride * b];
    const int64_t shard =
        a.first_element.data == nullptr ? a.first_element.value : a.first_element.data[a.first_element.stride * b];
    const auto column = [&](int name) { return static_cast<T>(c.coefficients.get(row, name)); };

    int64_t k = 0;
    if (m.components > 0) {
      k = component_plainly(a.seeds[b], step, m.cdf + (m.cdf_rows == 1 ? 0 : row) * (m.components - 1), m.components);
    }
    if (a.components != nullptr) a.components[b] = k;

    for (int64_t i = 0; i < a.elements; ++i) {
      const T x = static_cast<T>(c.sample.get(b, i));
      T o = static_cast<T>(c.model_output.get(b, i));
      if (a.model_output_uncond.data != nullptr) {
        const T uncond = static_cast<T>(c.uncond.get(b, i));
        o = multiply_add(column(GMM_GUIDANCE), o - uncond, uncond);
      }
      T x0 = multiply_add(column(GMM_X0_OUTPUT), o, column(GMM_X0_SAMPLE) * x);
      if (x0 < column(GMM_CLIP_MIN)) x0 = column(GMM_CLIP_MIN);
      if (x0 > column(GMM_CLIP_MAX)) x0 = column(GMM_CLIP_MAX);

      T y = column(GMM_X0) * x0;
      y = multiply_add(column(GMM_OUTPUT), o, y);
      y = multiply_add(column(GMM_SAMPLE), x, y);
      for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
        const T h = column(GMM_HISTORY_0 + j);
        if (a.history[j].data != nullptr && h != 0) y = multiply_add(h, static_cast<T>(c.history[j].get(b, i)), y);
      }
      const T mean = y;
      if (m.components > 0 && column(GMM_OFFSET) != 0) {
        const T offset = static_cast<T>(c.offsets.get(m.offset_rows == 1 ? 0 : row, k * a.elements + i));
        y = multiply_add(column(GMM_OFFSET), offset, y);
      }
      if (m.std_elements > 0 || column(GMM_SIGMA) != 0) {
        T deviation = column(GMM_SIGMA);
        if (i < m.std_elements) {
          const int64_t std_k = m.std_components == 1 ? 0 : k;
          deviation = static_cast<T>(c.std.get(m.std_rows == 1 ? 0 : row, std_k * m.std_elements + i));
        }
        const uint64_t element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(i);
        y = multiply_add(deviation, static_cast<T>(noise_plainly(a.seeds[b], element, step, GMM_STREAM_TRANSITION)), y);
      }
      c.result.set(b, i, y);
      if (a.prediction_kind == GMM_PREDICTION_X0) c.prediction.set(b, i, x0);
      if (a.prediction_kind == GMM_PREDICTION_EPSILON) {
        c.prediction.set(b, i, multiply_add(column(GMM_EPS_OUTPUT), o, column(GMM_EPS_SAMPLE) * x));
      }
      if (a.prediction_kind == GMM_PREDICTION_MODEL_OUTPUT) c.prediction.set(b, i, o);
      if (a.prediction_kind == GMM_PREDICTION_MEAN) c.prediction.set(b, i, mean);
    }
  }
}

}  // namespace

void words_plainly(int64_t seed, uint64_t block, int64_t step, int32_t stream, uint32_t (&words)[4]) {
  gmmkernel::random_words<ScalarLanes>(gmmkernel::philox_keys(static_cast<uint64_t>(seed)), block,
                                       static_cast<uint32_t>(step), static_cast<gmmkernel::Stream>(stream), words);
}

float noise_plainly(int64_t seed, uint64_t element, int64_t step, int32_t stream) {
  uint32_t words[4];
  float normals[4];
  words_plainly(seed, element / 4, step, stream, words);
  gmmkernel::normals_from_words<ScalarLanes>(words, normals);
  return normals[element % 4];
}

int64_t component_plainly(int64_t seed, int64_t step, const int64_t* cdf, int64_t components) {
  uint32_t words[4];
  words_plainly(seed, 0, step, GMM_STREAM_COMPONENT, words);
  int64_t reached = 0;
  for (int64_t k = 0; k + 1 < components; ++k) reached += int64_t{words[0]} >= cdf[k] ? 1 : 0;
  return reached;
}

void step_plainly(StepCase& c) {
  if (c.options.dtype == GMM_FLOAT64) {
    step_in<double>(c);
  } else {
    step_in<float>(c);
  }
  if (!c.options.scored) return;
  // The density of what was drawn, as it was rounded, by a call of its own.
  gmm_log_prob_arguments p = {};
  p.step = c.arguments;
  p.step.prediction_kind = GMM_PREDICTION_NONE;
  p.prev_sample = {c.result.data(), c.result.stride(), c.result.dtype()};
  p.log_prob = c.arguments.log_prob;
  p.workspace = c.arguments.workspace;
  const gmm_cpu_options cpu = {1, GMM_PORTABLE};
  gmm_cpu_log_prob(&p, &cpu);
}
