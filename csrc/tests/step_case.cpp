#include "step_case.h"

#include <algorithm>
#include <cmath>

#include "gmmkernel/arithmetic.h"

namespace {

int64_t bytes_of(int32_t dtype) { return dtype == GMM_FLOAT64 ? 8 : dtype == GMM_FLOAT32 ? 4 : 2; }

template <class T>
T& element_at(std::vector<unsigned char>& bytes, int64_t index) {
  return reinterpret_cast<T*>(bytes.data())[index];
}

gmm_input input(const Tensor& t) { return {t.data(), t.stride(), t.dtype()}; }

gmm_output output(Tensor& t) { return {t.data(), t.stride(), t.dtype()}; }

}  // namespace

Tensor::Tensor(int32_t dtype, int64_t batch, int64_t elements, int64_t padding, unsigned char poison)
    : dtype_(dtype),
      batch_(batch),
      elements_(elements),
      stride_(elements + padding),
      bytes_(static_cast<size_t>(batch * (elements + padding) * bytes_of(dtype)), poison) {}

double Tensor::get(int64_t sample, int64_t element) const {
  const int64_t index = sample * stride_ + element;
  const void* data = bytes_.data();
  switch (dtype_) {
    case GMM_FLOAT64:
      return static_cast<const double*>(data)[index];
    case GMM_BFLOAT16:
      return gmmkernel::bfloat16_to_float(static_cast<const uint16_t*>(data)[index]);
    case GMM_FLOAT16:
      return gmmkernel::float16_to_float(static_cast<const uint16_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

void Tensor::set(int64_t sample, int64_t element, double value) {
  const int64_t index = sample * stride_ + element;
  switch (dtype_) {
    case GMM_FLOAT64:
      element_at<double>(bytes_, index) = value;
      break;
    case GMM_BFLOAT16:
      element_at<uint16_t>(bytes_, index) = gmmkernel::float_to_bfloat16(static_cast<float>(value));
      break;
    case GMM_FLOAT16:
      element_at<uint16_t>(bytes_, index) = gmmkernel::float_to_float16(static_cast<float>(value));
      break;
    default:
      element_at<float>(bytes_, index) = static_cast<float>(value);
  }
}

void Tensor::fill(TestRandom& random, bool special) {
  constexpr double specials[] = {0.0, -0.0, INFINITY, -INFINITY, NAN, 0x1p-149, -0x1p-140, 0x1p-24, 1e38, -65000.0};
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t i = 0; i < elements_; ++i) {
      const bool odd_one = special && random.word() % 16 == 0;
      set(b, i, odd_one ? specials[random.word() % 10] : 3 * random.uniform());
    }
  }
}

bool Tensor::same_as(const Tensor& other) const {
  if (batch_ != other.batch_ || elements_ != other.elements_) return false;
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t i = 0; i < elements_; ++i) {
      const double mine = get(b, i), theirs = other.get(b, i);
      const bool equal = mine == theirs && std::signbit(mine) == std::signbit(theirs);
      if (!equal && !(std::isnan(mine) && std::isnan(theirs))) return false;
    }
  }
  return true;
}

bool Tensor::padding_is(unsigned char poison) const {
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t i = (b * stride_ + elements_) * bytes_of(dtype_); i < (b + 1) * stride_ * bytes_of(dtype_); ++i) {
      if (bytes_[static_cast<size_t>(i)] != poison) return false;
    }
  }
  return true;
}

bool Tensor::bytes_are(unsigned char poison) const {
  return std::all_of(bytes_.begin(), bytes_.end(), [poison](unsigned char byte) { return byte == poison; });
}

StepOptions random_options(TestRandom& random, int64_t batch, int64_t elements) {
  const auto one_of = [&random](std::initializer_list<int64_t> values) {
    return values.begin()[random.word() % values.size()];
  };
  const auto coin = [&random] { return (random.word() & 1) != 0; };
  const auto dtype_beside = [&](int32_t sample) {
    return static_cast<int32_t>(sample == GMM_FLOAT32 ? one_of({GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16})
                                                      : one_of({GMM_FLOAT32, sample}));
  };
  StepOptions o;
  o.batch = batch;
  o.elements = elements;
  o.padding = one_of({0, 1, 7});
  o.dtype = static_cast<int32_t>(one_of({GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}));
  o.output_dtype = dtype_beside(o.dtype);
  o.history_dtype = dtype_beside(o.dtype);
  o.guidance = coin();
  o.history = static_cast<int>(random.word() % (GMM_MAX_HISTORY + 1));
  o.prediction_kind = static_cast<int32_t>(random.word() % 5);
  o.components_wanted = coin();
  o.coefficient_rows = one_of({1, 2, 5});
  o.one_row = coin();
  o.one_step = coin();
  o.components = one_of({0, 1, 2, 8, 31});
  o.threshold_per_row = coin();
  o.offset_per_row = coin();
  o.std_per_row = coin();
  o.std_per_component = coin();
  const int64_t part = static_cast<int64_t>(random.word() % static_cast<uint32_t>(elements + 1));
  o.std_elements = o.components == 0 ? 0 : one_of({0, std::min<int64_t>(1, elements), part, elements});
  o.offset_off = random.word() % 4 == 0;
  o.sigma_off = random.word() % 4 == 0;
  o.history_off = random.word() % 8 == 0;
  o.special = random.word() % 4 == 0;
  o.shard = o.components == 0 && coin();
  o.scored = o.components == 0 && coin();
  return o;
}

StepCase::StepCase(const StepOptions& chosen, uint64_t seed, unsigned char poison) : options(chosen) {
  const StepOptions& o = options;
  TestRandom random(seed);
  gmm_step_arguments& a = arguments;
  a.batch = o.batch;
  a.elements = o.elements;

  const auto fill = [&](Tensor& tensor, int32_t dtype) {
    tensor = Tensor(dtype, o.batch, o.elements, o.padding, poison);
    tensor.fill(random, o.special);
    return input(tensor);
  };
  a.sample = fill(sample, o.dtype);
  a.model_output = fill(model_output, o.output_dtype);
  if (o.guidance) a.model_output_uncond = fill(uncond, o.output_dtype);
  for (int j = 0; j < o.history; ++j) a.history[j] = fill(history[j], o.history_dtype);

  result = Tensor(o.dtype, o.batch, o.elements, o.padding, poison);
  a.result = output(result);
  a.prediction_kind = o.prediction_kind;
  if (o.prediction_kind != GMM_PREDICTION_NONE) {
    prediction = Tensor(o.dtype, o.batch, o.elements, o.padding, poison);
    a.prediction = output(prediction);
  }
  if (o.components_wanted) {
    components.assign(static_cast<size_t>(o.batch), -1);
    a.components = components.data();
  }

  const int32_t table_dtype = o.dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32;
  coefficients = Tensor(table_dtype, o.coefficient_rows, GMM_ROW_COLUMNS, 0, poison);
  coefficients.fill(random, false);
  for (int64_t r = 0; r < o.coefficient_rows; ++r) {
    coefficients.set(r, GMM_CLIP_MIN, -2);
    coefficients.set(r, GMM_CLIP_MAX, 2.5);
    const bool off = r % 2 == 0;
    coefficients.set(r, GMM_SIGMA, off && o.sigma_off ? 0 : 0.25 + 0.1 * static_cast<double>(r));
    if (off && o.offset_off) coefficients.set(r, GMM_OFFSET, 0);
    for (int j = 0; off && o.history_off && j < GMM_MAX_HISTORY; ++j) coefficients.set(r, GMM_HISTORY_0 + j, 0);
  }
  a.coefficients = coefficients.data();
  a.coefficient_rows = o.coefficient_rows;

  for (int64_t b = 0; b < o.batch; ++b) {
    row.push_back(static_cast<int64_t>(random.word() % static_cast<uint32_t>(o.coefficient_rows)));
    step.push_back(random.word());
    seeds.push_back(static_cast<int64_t>(random.next()));
    const int64_t firsts[] = {0, 4, 3, 321, (int64_t{1} << 34) - 8, (int64_t{1} << 34) - 3, INT64_MAX};
    first_element.push_back(o.shard ? firsts[random.word() % 7] : 0);
  }
  // One for all comes from memory or, here and there, as a value.
  const auto index_of = [&](const std::vector<int64_t>& values, bool one) -> gmm_index {
    if (one && o.batch > 0 && values[0] % 2 == 0) return {nullptr, 0, values[0]};
    return {values.data(), one ? 0 : 1, 0};
  };
  a.row = index_of(row, o.one_row);
  a.step = index_of(step, o.one_step);
  a.seeds = seeds.data();
  if (o.shard) a.first_element = index_of(first_element, o.one_step);
  if (o.scored) {
    log_prob = Tensor(table_dtype, o.batch, 1, 0, poison);
    workspace = Tensor(table_dtype, o.batch, GMM_SUM_ENTRIES(o.elements), 0, poison);
    a.log_prob = log_prob.data();
    a.workspace = workspace.data();
  }

  if (o.components == 0) return;
  gmm_mixture& m = a.mixture;
  m.components = o.components;
  m.cdf_rows = o.threshold_per_row ? o.coefficient_rows : 1;
  for (int64_t r = 0; r < m.cdf_rows; ++r) {
    std::vector<int64_t> ascending;
    for (int64_t k = 0; k + 1 < o.components; ++k) ascending.push_back(random.word());
    std::sort(ascending.begin(), ascending.end());
    cdf.insert(cdf.end(), ascending.begin(), ascending.end());
  }
  m.cdf = cdf.data();
  m.offset_rows = o.offset_per_row ? o.coefficient_rows : 1;
  offsets = Tensor(table_dtype, m.offset_rows, o.components * o.elements, 0, poison);
  offsets.fill(random, o.special);
  m.offsets = offsets.data();
  m.std_rows = o.std_per_row ? o.coefficient_rows : 1;
  m.std_components = o.std_per_component ? o.components : 1;
  m.std_elements = o.std_elements;
  std = Tensor(table_dtype, m.std_rows, m.std_components * o.std_elements, 0, poison);
  std.fill(random, o.special);
  m.std = o.std_elements == 0 ? nullptr : std.data();
}

int StepCase::run(int32_t threads, int32_t instruction_set) {
  cpu = {threads, instruction_set};
  return gmm_cpu_step(&arguments, &cpu);
}

bool same_outcome(const StepCase& a, const StepCase& b) {
  return a.log_prob.same_as(b.log_prob) && a.result.same_as(b.result) && a.prediction.same_as(b.prediction) &&
         a.components == b.components;
}

std::vector<int32_t> available_instruction_sets() {
  std::vector<int32_t> available;
  for (const int32_t set : {GMM_PORTABLE, GMM_AVX2, GMM_AVX512}) {
    const gmm_normal_arguments nothing = {};
    const gmm_cpu_options options = {1, set};
    if (gmm_cpu_standard_normal(&nothing, &options) == GMM_SUCCESS) available.push_back(set);
  }
  return available;
}
