// Log-ratios of the C interface: instruction sets, threads and the CUDA kernels' bodies give the same bits; bad
// arguments.

#include <functional>
#include <string>

#include "cuda/ratio_body.h"
#include "emulated_grid.h"
#include "ratio_case.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

template <class T>
void emulate(RatioCase& c) {
  using namespace gmmkernel;
  const gmm_log_ratio_arguments& r = c.arguments;
  const Tiling tiling = {r.step.elements, sum_tile};
  const SumRows rows = sum_rows(r.workspace, r.step, ratio_columns);
  if (r.step.elements > 0) {
    for_blocks(r.step.batch, tiling, [&](const Place& place) {
      RatioTile<T> tile;
      Columns<T> columns = {};
      gather_ratio(r, place, tile);
      for (uint32_t t = 0; t < block_threads; ++t) sum_ratio_quarters(r, tile, t, columns);
      for (uint32_t t = 0; t < block_threads; ++t) sum_to_sixteenths(t, columns);
      for (uint32_t t = 0; t < block_threads; ++t) write_ratio_sums(rows, tile, t, columns);
      gather_ratio(c.gradients.of, place, tile);
      for (uint32_t t = 0; t < block_threads; ++t) ratio_backward(c.gradients, tile, t);
    });
  }
  if (r.result == nullptr) return;
  for (int64_t sample = 0; sample < r.step.batch; ++sample) {
    T* sums = static_cast<T*>(r.workspace) + sample * rows.entries * ratio_columns;
    for (int64_t i = 0; i < ratio_columns; ++i) sums[i] = tree_plainly(sums + i, rows.tiles, ratio_columns);
  }
  for (int64_t number = 0; number < r.step.batch * ratio_columns; ++number) write_ratio<T>(r, rows, number);
}

void test_bits() {
  TestRandom random(7);
  for (int number = 0; number < 120; ++number) {
    const int64_t sizes[] = {0, 1, 5, 64, 1000, 1024, 1025, 2500};
    const RatioOptions options = random_ratio(random, random_options(random, 1 + number % 3, sizes[number % 8]));
    RatioCase expected(options, number, poison);
    CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%d: %s", number, gmm_last_error());
    for (const int32_t set : available_instruction_sets()) {
      RatioCase made(options, number, another);
      made.run(3, set);
      CHECK(same_ratios(made, expected) && made.padding_is(another), "%d: set %d", number, set);
    }
    RatioCase emulated(options, number, another);
    if (options.step.dtype == GMM_FLOAT64) {
      emulate<double>(emulated);
    } else {
      emulate<float>(emulated);
    }
    CHECK(same_ratios(emulated, expected) && emulated.padding_is(another), "%d: CUDA", number);
  }
}

// Where the outputs are equal both are 0, whatever the sample is.
void test_equal_outputs() {
  RatioOptions options;
  options.step.elements = 3000;
  RatioCase made(options, 1);
  for (int64_t b = 0; b < options.step.batch; ++b) {
    for (int64_t i = 0; i < options.step.elements; ++i) made.old_output.set(b, i, made.step.model_output.get(b, i));
  }
  made.run(2, GMM_BEST);
  for (int64_t b = 0; b < options.step.batch; ++b) {
    CHECK(made.result.get(b, 0) == 0 && made.result.get(b, 1) == 0, "sample %lld", (long long)b);
  }
}

using Gradients = gmm_log_ratio_backward_arguments;

const struct {
  int status;
  const char* named;
  bool forward;  // the ratio itself fails too
  std::function<void(Gradients&)> spoil;
} bad[] = {
    {GMM_INVALID_ARGUMENT, "batch: ", true, [](Gradients& b) { b.of.step.batch = -1; }},
    {GMM_INVALID_ARGUMENT, "mixture: ", true,
     [](Gradients& b) { b.of.step.mixture = {1, nullptr, 1, b.of.prev_sample.data, 1, nullptr, 1, 1, 0}; }},
    {GMM_INVALID_ARGUMENT, "prev_sample: ", true, [](Gradients& b) { b.of.prev_sample.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "prev_sample: ", true, [](Gradients& b) { b.of.prev_sample.dtype = GMM_FLOAT16; }},
    {GMM_INVALID_ARGUMENT, "old_model_output: ", true, [](Gradients& b) { b.of.old_model_output.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "old_model_output_uncond: ", true,
     [](Gradients& b) { b.of.old_model_output_uncond.data = nullptr; }},
    {GMM_INVALID_ARGUMENT, "old_model_output_uncond: ", true,
     [](Gradients& b) { b.of.step.model_output_uncond.data = nullptr; }},
    {GMM_OUT_OF_RANGE, "row: ", true, [](Gradients& b) { b.of.step.row = {nullptr, 0, 9}; }},
    {GMM_INVALID_ARGUMENT, "grad: ", false, [](Gradients& b) { b.grad = nullptr; }},
    {GMM_INVALID_ARGUMENT, "grad_sample: ", false, [](Gradients& b) { b.grad_sample.dtype = GMM_FLOAT16; }},
    {GMM_INVALID_ARGUMENT, "grad_old_model_output: ", false,
     [](Gradients& b) { b.grad_old_model_output.batch_stride = 1; }},
    {GMM_INVALID_ARGUMENT, "grad_history: ", false, [](Gradients& b) { b.grad_history[3] = b.grad_history[0]; }},
};

void test_bad_arguments() {
  const gmm_cpu_options cpu = {1, GMM_BEST};
  const auto expect = [](int status, int expected, const std::string& named) {
    CHECK(status == expected, "%s: status %d, expected %d", named.c_str(), status, expected);
    CHECK(std::string(gmm_last_error()).find(named) == 0, "'%s' does not begin with '%s'", gmm_last_error(),
          named.c_str());
  };
  RatioOptions options;
  options.step.guidance = true;
  options.step.history = 2;
  for (const auto& each : bad) {
    RatioCase made(options, 5);
    each.spoil(made.gradients);
    expect(gmm_cpu_log_ratio_backward(&made.gradients, &cpu), each.status, each.named);
    for (const Tensor& tensor : made.elementwise) CHECK(tensor.bytes_are(poison), "%s written", each.named);
    if (!each.forward) continue;
    made.gradients.of.result = made.result.data();
    made.gradients.of.workspace = made.workspace.data();
    expect(gmm_cpu_log_ratio(&made.gradients.of, &cpu), each.status, each.named);
    CHECK(made.result.bytes_are(poison) && made.workspace.bytes_are(poison), "%s written", each.named);
  }
  RatioCase made(options, 5);
  made.arguments.workspace = nullptr;
  expect(gmm_cpu_log_ratio(&made.arguments, &cpu), GMM_INVALID_ARGUMENT, "workspace: ");
  expect(gmm_cpu_log_ratio(nullptr, &cpu), GMM_INVALID_ARGUMENT, "arguments: ");
}

}  // namespace

int main() {
  test_bits();
  test_equal_outputs();
  test_bad_arguments();
  return check_report();
}
