// gmm_cpu_standard_normal and gmm_cpu_draw_components against the plain versions.

#include <algorithm>
#include <cmath>

#include "step_plainly.h"

namespace {

constexpr unsigned char poison = 0xA5;

void test_standard_normal() {
  TestRandom random(30);
  for (const int64_t elements : {1, 2, 3, 4, 5, 16, 17, 31, 63, 64, 65, 127, 1000, 4097, 40003}) {
    for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT16, GMM_FLOAT64}) {
      const int64_t batch = elements > 4000 ? 2 : 3;
      const int32_t stream = static_cast<int32_t>(random.word() % (GMM_STREAM_OFFSETS + 1));
      const int64_t padding = static_cast<int64_t>(random.word() % 3);
      std::vector<int64_t> seeds, steps;
      for (int64_t b = 0; b < batch; ++b) {
        seeds.push_back(static_cast<int64_t>(random.next()));
        steps.push_back(b == 0 ? 0xffffffff : random.word());
      }
      Tensor expected(dtype, batch, elements, padding, poison);
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t i = 0; i < elements; ++i) expected.set(b, i, noise_plainly(seeds[b], i, steps[b], stream));
      }
      for (const int32_t set : available_instruction_sets()) {
        for (const int32_t threads : {1, 3}) {
          Tensor got(dtype, batch, elements, padding, 0x5A);
          const gmm_normal_arguments arguments = {
              batch, elements, {got.data(), got.stride(), dtype}, seeds.data(), {steps.data(), 1, 0}, stream, {}};
          const gmm_cpu_options options = {threads, set};
          CHECK(gmm_cpu_standard_normal(&arguments, &options) == GMM_SUCCESS, "%s", gmm_last_error());
          CHECK(got.same_as(expected) && got.padding_is(0x5A), "set %d, %d threads, %lld elements, dtype %d, stream %d",
                set, threads, static_cast<long long>(elements), dtype, stream);
        }
      }
    }
  }
}

// Mean, variance and the fourth moment of 2^20 numbers, within five standard errors.
void test_moments() {
  constexpr int64_t count = 1 << 20;
  Tensor normal(GMM_FLOAT32, 1, count, 0, poison);
  const int64_t seed = 1, step = 0;
  const gmm_normal_arguments arguments = {
      1, count, {normal.data(), count, GMM_FLOAT32}, &seed, {&step, 0, 0}, GMM_STREAM_INITIAL, {}};
  const gmm_cpu_options options = {1, GMM_BEST};
  CHECK(gmm_cpu_standard_normal(&arguments, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  double mean = 0, second = 0, fourth = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double z = normal.get(0, i);
    mean += z;
    second += z * z;
    fourth += z * z * z * z;
  }
  const double root = std::sqrt(static_cast<double>(count));
  CHECK(std::fabs(mean / count) < 5 / root, "mean %g", mean / count);
  CHECK(std::fabs(second / count - 1) < 5 * std::sqrt(2.0) / root, "second moment %g", second / count);
  CHECK(std::fabs(fourth / count - 3) < 5 * std::sqrt(96.0) / root, "fourth moment %g", fourth / count);
}

std::vector<int64_t> draw(const std::vector<int64_t>& seeds, gmm_index row, gmm_index step, int64_t components,
                          const std::vector<int64_t>& cdf, int64_t cdf_rows) {
  std::vector<int64_t> drawn(seeds.size(), -1);
  const gmm_component_arguments arguments = {
      static_cast<int64_t>(seeds.size()), drawn.data(), seeds.data(), row, step, components, cdf.data(), cdf_rows};
  CHECK(gmm_cpu_draw_components(&arguments) == GMM_SUCCESS, "%s", gmm_last_error());
  return drawn;
}

void test_draw_components() {
  TestRandom random(31);
  for (const int64_t components : {1, 2, 3, 8, 31, 1024}) {
    constexpr int64_t batch = 200, rows = 3;
    std::vector<int64_t> seeds, row, step, cdf;
    for (int64_t b = 0; b < batch; ++b) {
      seeds.push_back(static_cast<int64_t>(random.next()));
      row.push_back(static_cast<int64_t>(random.word() % rows));
      step.push_back(random.word());
    }
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<int64_t> ascending;
      for (int64_t k = 0; k + 1 < components; ++k) ascending.push_back(random.word());
      std::sort(ascending.begin(), ascending.end());
      cdf.insert(cdf.end(), ascending.begin(), ascending.end());
    }
    const std::vector<int64_t> drawn = draw(seeds, {row.data(), 1, 0}, {step.data(), 1, 0}, components, cdf, rows);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t expected = component_plainly(seeds[b], step[b], cdf.data() + row[b] * (components - 1), components);
      CHECK(drawn[b] == expected, "K %lld, sample %lld: %lld", static_cast<long long>(components),
            static_cast<long long>(b), static_cast<long long>(drawn[b]));
    }
    // One table for all: the row is not read.
    CHECK(draw(seeds, {nullptr, 0, 0}, {step.data(), 0, 0}, components, cdf, 1).front() >= 0, "one table");
  }
}

// A word equal to a threshold has reached it; 0 and 2^32 are the cdf of components that are never drawn.
void test_threshold_edges() {
  const std::vector<int64_t> seeds = {5};
  const int64_t step = 9;
  uint32_t words[4];
  words_plainly(seeds[0], 0, step, GMM_STREAM_COMPONENT, words);
  const int64_t word = words[0];
  const gmm_index steps = {&step, 0, 0};
  const auto with = [&](std::vector<int64_t> cdf) {
    const int64_t components = static_cast<int64_t>(cdf.size()) + 1;
    return draw(seeds, {nullptr, 0, 0}, steps, components, cdf, 1)[0];
  };
  CHECK(with({word}) == 1, "reached");
  CHECK(with({word + 1}) == 0, "not reached");
  CHECK(with({0, int64_t{1} << 32}) == 1, "the whole range");
  CHECK(with({word, word, word}) == 3, "equal cdf");
  CHECK(with({word - 1, word, word + 1}) == 2, "neighbours");
}

}  // namespace

int main() {
  test_standard_normal();
  test_moments();
  test_draw_components();
  test_threshold_edges();
  return check_report();
}
