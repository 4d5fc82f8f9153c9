#include "training_case.h"

TrainingOptions random_training(TestRandom& random, int64_t batch, int64_t elements) {
  const auto coin = [&random] { return (random.word() & 1) != 0; };
  constexpr int32_t dtypes[] = {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64};
  TrainingOptions o;
  o.batch = batch;
  o.elements = elements;
  o.padding = static_cast<int64_t>(random.word() % 3) * 4;
  o.dtype = dtypes[random.word() % 4];
  o.sample_dtype = coin() ? o.dtype : GMM_FLOAT32;
  if (o.dtype == GMM_FLOAT32 && coin()) o.sample_dtype = dtypes[random.word() % 3];
  o.coefficient_rows = 1 + random.word() % 5;
  o.one_row = coin();
  o.one_step = coin();
  o.noise = coin();
  o.sample = random.word() % 3 != 0;
  o.residual = o.dtype != GMM_BFLOAT16 && o.dtype != GMM_FLOAT16 && coin();
  o.grad_output = random.word() % 4 != 0;
  o.grad_sample = coin();
  o.special = random.word() % 4 == 0;
  return o;
}

TrainingCase::TrainingCase(const TrainingOptions& chosen, uint64_t seed, unsigned char poison) : options(chosen) {
  const TrainingOptions& o = options;
  const int32_t table_dtype = o.dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32;
  TestRandom random(seed);
  coefficients = Tensor(table_dtype, o.coefficient_rows, GMM_TRAINING_COLUMNS, 0, poison);
  coefficients.fill(random, o.special);
  for (int64_t r = 0; r < o.coefficient_rows; ++r) {
    if (!o.sample || random.word() % 3 == 0) coefficients.set(r, GMM_TRAINING_EPS_SAMPLE, 0);
    if (random.word() % 3 == 0) coefficients.set(r, GMM_TRAINING_SKIP_WEIGHT, 0);
    if (random.word() % 3 == 0) coefficients.set(r, GMM_TRAINING_SKIP_FRESH, 0);
  }
  for (int64_t b = 0; b < o.batch; ++b) {
    row.push_back(static_cast<int64_t>(random.word() % static_cast<uint32_t>(o.coefficient_rows)));
    step.push_back(random.word());
    seeds.push_back(static_cast<int64_t>(random.next()));
  }
  const auto filled = [&](Tensor& tensor, int32_t dtype, bool wanted = true) {
    if (!wanted) return gmm_input{};
    tensor = Tensor(dtype, o.batch, o.elements, o.padding, poison);
    tensor.fill(random, o.special);
    return gmm_input{tensor.data(), tensor.stride(), dtype};
  };
  const auto to_write = [&](Tensor& tensor, int32_t dtype, bool wanted = true) {
    if (!wanted) return gmm_output{};
    tensor = Tensor(dtype, o.batch, o.elements, o.padding, poison);
    return gmm_output{tensor.data(), tensor.stride(), dtype};
  };
  gmm_training training = {o.batch, o.elements, coefficients.data(), o.coefficient_rows, {}, {}, seeds.data()};
  training.row = o.one_row ? gmm_index{nullptr, 0, o.coefficient_rows - 1} : gmm_index{row.data(), 1, 0};
  training.step = o.one_step ? gmm_index{step.data(), 0, 0} : gmm_index{step.data(), 1, 0};

  noising.training = training;
  noising.sample = filled(data, o.dtype);
  noising.result = to_write(result, o.dtype);
  noising.noise = to_write(noise, o.dtype, o.noise);

  loss_of.training = training;
  loss_of.model_output = filled(model_output, o.dtype);
  loss_of.sample = filled(sample, o.sample_dtype, o.sample);
  loss_of.residual = to_write(residual, o.dtype, o.residual);
  loss = Tensor(table_dtype, o.batch, 1, 0, poison);
  loss_of.loss = loss.data();
  workspace = Tensor(table_dtype, o.batch, GMM_SUM_ENTRIES(o.elements), 0, poison);
  loss_of.workspace = workspace.data();

  if (o.residual) {
    filled(scaled, o.dtype);
    scaling = {training, {scaled.data(), scaled.stride(), o.dtype}, nullptr};
    scaling.training.seeds = nullptr;
  }

  backward.of = loss_of;
  backward.of.residual = {};
  backward.of.loss = backward.of.workspace = nullptr;
  grad = Tensor(table_dtype, o.batch, 1, 0, poison);
  grad.fill(random, o.special);
  backward.grad_loss = scaling.grad_loss = grad.data();
  backward.grad_model_output = to_write(grad_output, o.dtype, o.grad_output);
  backward.grad_sample = to_write(grad_sample, o.sample_dtype, o.sample && o.grad_sample);
}

int TrainingCase::run(int32_t threads, int32_t instruction_set) {
  const gmm_cpu_options cpu = {threads, instruction_set};
  if (const int status = gmm_cpu_add_noise(&noising, &cpu)) return status;
  if (const int status = gmm_cpu_skip_loss(&loss_of, &cpu)) return status;
  if (options.residual) {
    if (const int status = gmm_cpu_scale_residual(&scaling, &cpu)) return status;
  }
  return gmm_cpu_skip_loss_backward(&backward, &cpu);
}

bool same_training(const TrainingCase& a, const TrainingCase& b) {
  return a.result.same_as(b.result) && a.noise.same_as(b.noise) && a.loss.same_as(b.loss) &&
         a.residual.same_as(b.residual) && a.scaled.same_as(b.scaled) && a.grad_output.same_as(b.grad_output) &&
         a.grad_sample.same_as(b.grad_sample);
}

bool padding_is(const TrainingCase& c, unsigned char poison) {
  for (const Tensor* tensor : {&c.result, &c.noise, &c.residual, &c.scaled, &c.grad_output, &c.grad_sample}) {
    if (!tensor->padding_is(poison)) return false;
  }
  return true;
}
