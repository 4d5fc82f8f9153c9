// Ten steps on a CUDA device's memory through the C interface, then the same on the CPU: the bits are equal.
//
// The data are Gaussian, x0 ~ N(0, 0.2^2), for which the exact noise prediction is a multiple of x: the sample itself
// serves as the model's output, and the multiple goes into the coefficients. Exit status 77: there is no device.

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gmmkernel/gmmkernel.h"

namespace {

constexpr int64_t batch = 16, elements = 3 * 64 * 64, steps = 10;
constexpr double data_variance = 0.2 * 0.2;

void check(int status) {
  if (status == GMM_SUCCESS) return;
  std::fprintf(stderr, "gmmkernel: %s\n", gmm_last_error());
  std::exit(1);
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Copy numbers to the device; they stay there until the program ends.
template <class T>
T* to_device(const std::vector<T>& numbers) {
  void* data = nullptr;
  check(cudaMalloc(&data, numbers.size() * sizeof(T)));
  check(cudaMemcpy(data, numbers.data(), numbers.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(data);
}

// DDPM steps (DDIM with eta = 1) on the linear schedule from t = 900 to the data.
std::vector<float> coefficient_rows() {
  std::vector<double> alpha_bar, all(1000);
  double product = 1;
  for (int t = 0; t < 1000; ++t) all[t] = product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999);
  for (int t = 900; t >= 0; t -= 100) alpha_bar.push_back(all[t]);
  alpha_bar.push_back(1);
  std::vector<float> rows(steps * GMM_ROW_COLUMNS);
  for (int64_t s = 0; s < steps; ++s) {
    const double a = alpha_bar[s], next = alpha_bar[s + 1];
    const double sigma = std::sqrt((1 - next) / (1 - a) * (1 - a / next));
    const double eps_per_x = std::sqrt(1 - a) / (a * data_variance + 1 - a);
    float* row = &rows[s * GMM_ROW_COLUMNS];
    row[GMM_X0_SAMPLE] = static_cast<float>(1 / std::sqrt(a));
    row[GMM_X0_OUTPUT] = static_cast<float>(-std::sqrt(1 - a) / std::sqrt(a) * eps_per_x);
    row[GMM_CLIP_MIN] = -1;
    row[GMM_CLIP_MAX] = 1;
    row[GMM_X0] = static_cast<float>(std::sqrt(next));
    row[GMM_OUTPUT] = static_cast<float>(std::sqrt(std::fmax(1 - next - sigma * sigma, 0)) * eps_per_x);
    row[GMM_SIGMA] = static_cast<float>(sigma);
  }
  return rows;
}

gmm_step_arguments step_of(float* x, const float* coefficients, const int64_t* seeds, int64_t s) {
  gmm_step_arguments step = {};
  step.batch = batch;
  step.elements = elements;
  step.sample = step.model_output = {x, elements, GMM_FLOAT32};
  step.result = {x, elements, GMM_FLOAT32};  // in place
  step.coefficients = coefficients;
  step.coefficient_rows = steps;
  step.row = {nullptr, 0, s};
  step.step = {nullptr, 0, s};
  step.seeds = seeds;
  return step;
}

}  // namespace

int main() {
  int32_t devices = 0;
  if (gmm_cuda_device_count(&devices) != GMM_SUCCESS || devices == 0) {
    std::printf("no device: %s\n", gmm_last_error());
    return 77;
  }
  const std::vector<float> coefficients = coefficient_rows();
  std::vector<int64_t> seeds(batch);
  for (int64_t b = 0; b < batch; ++b) seeds[b] = b;
  std::vector<float> x(batch * elements), from_device(x.size());

  // Everything is enqueued on one stream; nothing waits until the copy back.
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  const gmm_cuda_options on_device = {0, stream};
  float* const device_x = to_device(x);
  const float* const device_coefficients = to_device(coefficients);
  const int64_t* const device_seeds = to_device(seeds);
  gmm_normal_arguments initial = {
      batch, elements, {device_x, elements, GMM_FLOAT32}, device_seeds, {nullptr, 0, 0}, GMM_STREAM_INITIAL, {}};
  check(gmm_cuda_standard_normal(&initial, &on_device));
  for (int64_t s = 0; s < steps; ++s) {
    const gmm_step_arguments step = step_of(device_x, device_coefficients, device_seeds, s);
    check(gmm_cuda_step(&step, &on_device));
  }
  check(cudaMemcpyAsync(from_device.data(), device_x, x.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));

  const gmm_cpu_options on_cpu = {2, GMM_BEST};
  initial.result.data = x.data();
  initial.seeds = seeds.data();
  check(gmm_cpu_standard_normal(&initial, &on_cpu));
  for (int64_t s = 0; s < steps; ++s) {
    const gmm_step_arguments step = step_of(x.data(), coefficients.data(), seeds.data(), s);
    check(gmm_cpu_step(&step, &on_cpu));
  }

  const bool same = std::memcmp(x.data(), from_device.data(), x.size() * sizeof(float)) == 0;
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  std::printf("variance %.5f, of the data %.5f; device and CPU %s\n", squares / static_cast<double>(x.size()),
              data_variance, same ? "agree in every bit" : "DIFFER");
  return same ? 0 : 1;
}
