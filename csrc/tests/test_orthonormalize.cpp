// gmm_cpu_orthonormalize: orthonormal rows spanning the same space, with the same bits however they are computed.

#include <cmath>

#include "check.h"
#include "step_case.h"

namespace {

using Rows = std::vector<double>;

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void test(int64_t count, int64_t elements) {
  TestRandom random(static_cast<uint64_t>(100 * count + elements));
  Rows start(static_cast<size_t>(count * elements));
  for (double& value : start) value = random.uniform();

  Rows expected = start;
  gmm_cpu_options options = {1, GMM_PORTABLE};
  CHECK(gmm_cpu_orthonormalize(expected.data(), count, elements, &options) == GMM_SUCCESS, "%s", gmm_last_error());
  for (const int32_t set : available_instruction_sets()) {
    for (const int32_t threads : {1, 2, 5}) {
      Rows got = start;
      options = {threads, set};
      CHECK(gmm_cpu_orthonormalize(got.data(), count, elements, &options) == GMM_SUCCESS, "%s", gmm_last_error());
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(double)) == 0,
            "%lld x %lld, set %d, %d threads", (long long)count, (long long)elements, set, threads);
    }
  }

  double worst = 0;
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t j = 0; j <= k; ++j) {
      const double product = dot(&expected[k * elements], &expected[j * elements], elements);
      worst = std::fmax(worst, std::fabs(product - (j == k ? 1 : 0)));
    }
    // Row k of the start lies in the span of the rows up to k, on the positive side of row k.
    Rows rest(&start[k * elements], &start[k * elements] + elements);
    for (int64_t j = 0; j <= k; ++j) {
      const double* row = &expected[j * elements];
      const double projection = dot(&start[k * elements], row, elements);
      for (int64_t i = 0; i < elements; ++i) rest[i] -= projection * row[i];
      if (j == k)
        CHECK(projection > 0, "%lld x %lld: row %lld is turned", (long long)count, (long long)elements, (long long)k);
    }
    CHECK(std::sqrt(dot(rest.data(), rest.data(), elements)) < 1e-12 * static_cast<double>(elements),
          "%lld x %lld: row %lld is outside", (long long)count, (long long)elements, (long long)k);
  }
  CHECK(worst < 1e-12, "%lld x %lld: %g from orthonormal", (long long)count, (long long)elements, worst);
}

}  // namespace

int main() {
  test(1, 1);
  test(1, 5);
  test(3, 7);
  test(8, 64);
  test(9, 1000);
  test(25, 1024);
  test(17, 1025);
  test(40, 4097);
  test(3, 1024 * 1024 + 3);  // sums of three levels
  return check_report();
}
