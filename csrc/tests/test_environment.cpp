// The caller's floating-point environment changes no bit and is as before after a call.

#include <vector>

#include "step_case.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__x86_64__)
using State = unsigned int;
State get() { return _mm_getcsr(); }
void set(State state) { _mm_setcsr(state); }
// Flush to zero; denormals are zero; both; rounding down, up, to zero; all at once; then traps on invalid and overflow.
const std::vector<State> states = {0x1F80 | 0x8000, 0x1F80 | 0x0040, 0x1F80 | 0x8040, 0x1F80 | 0x2000,
                                   0x1F80 | 0x4000, 0x1F80 | 0x6000, 0x1F80 | 0xE040, 0x1F80 & ~0x0480};
#elif defined(__aarch64__)
using State = uint64_t;
State get() {
  State state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set(State state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
// Flush to zero; default NaN; rounding up, down, to zero; all at once.
const std::vector<State> states = {1 << 24, 1 << 25, 1 << 22, 2 << 22, 3 << 22, 0xF << 22};
#else
using State = int;
State get() { return 0; }
void set(State) {}
const std::vector<State> states = {};
#endif

// Most numbers of the step are subnormal: flushing or rounding otherwise would show.
void make_subnormal(StepCase& c) {
  for (int64_t b = 0; b < c.options.batch; ++b) {
    for (int64_t i = 0; i < c.options.elements; ++i) {
      c.sample.set(b, i, c.sample.get(b, i) * 0x1p-130);
      c.model_output.set(b, i, c.model_output.get(b, i) * 0x1p-130);
    }
  }
  for (int64_t r = 0; r < c.options.coefficient_rows; ++r) c.coefficients.set(r, GMM_SIGMA, 0x1p-131);
}

void test_step(const StepOptions& options, int32_t instruction_set, int32_t threads) {
  StepCase expected(options, 1);
  make_subnormal(expected);
  CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%s", gmm_last_error());
  int64_t subnormal = 0;
  for (int64_t i = 0; i < options.elements; ++i) {
    const double y = expected.result.get(0, i);
    if (y != 0 && y < 0x1p-126 && y > -0x1p-126) ++subnormal;
  }
  CHECK(subnormal > options.elements / 4, "only %lld subnormal results", static_cast<long long>(subnormal));

  for (const State state : states) {
    StepCase got(options, 1);
    make_subnormal(got);
    const State before = get();
    set(state);
    const int status = got.run(threads, instruction_set);
    const State after = get();
    set(before);
    CHECK(status == GMM_SUCCESS, "%s", gmm_last_error());
    CHECK(after == state, "state %llx became %llx", (unsigned long long)state, (unsigned long long)after);
    CHECK(same_outcome(got, expected), "state %llx, set %d, %d threads, dtype %d", (unsigned long long)state,
          instruction_set, threads, options.dtype);
  }
}

void test_normal_and_orthonormalize(int32_t instruction_set) {
  constexpr int64_t count = 1000;
  const int64_t seed = 3, step = 4;
  const gmm_cpu_options options = {2, instruction_set};
  const auto run = [&](Tensor& normal, Tensor& rows) {
    const gmm_normal_arguments a = {1, count, {normal.data(), count, GMM_FLOAT32}, &seed, {&step, 0, 0}, 0, {}};
    CHECK(gmm_cpu_standard_normal(&a, &options) == GMM_SUCCESS, "%s", gmm_last_error());
    CHECK(gmm_cpu_orthonormalize(static_cast<double*>(rows.data()), 5, 200, &options) == GMM_SUCCESS, "%s",
          gmm_last_error());
  };
  TestRandom random(1);
  Tensor start(GMM_FLOAT64, 5, 200, 0, 0);
  start.fill(random, false);
  Tensor expected_normal(GMM_FLOAT32, 1, count, 0, 0), expected_rows = start;
  run(expected_normal, expected_rows);
  for (const State state : states) {
    Tensor normal(GMM_FLOAT32, 1, count, 0, 0), rows = start;
    const State before = get();
    set(state);
    run(normal, rows);
    const State after = get();
    set(before);
    CHECK(after == state, "state %llx became %llx", (unsigned long long)state, (unsigned long long)after);
    CHECK(normal.same_as(expected_normal) && rows.same_as(expected_rows), "state %llx, set %d",
          (unsigned long long)state, instruction_set);
  }
}

}  // namespace

int main() {
  for (const int32_t instruction_set : available_instruction_sets()) {
    for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16}) {
      StepOptions options;
      options.dtype = options.output_dtype = dtype;
      options.elements = 40000;
      for (const int32_t threads : {1, 3}) test_step(options, instruction_set, threads);
    }
    test_normal_and_orthonormalize(instruction_set);
  }
  return check_report();
}
