// The bodies of the CUDA kernels of training over an emulated grid give the bits of the CPU core.

#include <cmath>
#include <initializer_list>

#include "emulated_training.h"
#include "training_case.h"

namespace {

constexpr unsigned char poison = 0xA5, another = 0x5A;

int common = 0, losses = 0;  // calls that take a kernel without branches; losses that are numbers

void emulate(TrainingCase& c, int multiprocessors) {
  gmmkernel::emulate_add_noise(c.noising, multiprocessors);
  gmmkernel::emulate_skip_loss(c.loss_of);
  if (c.options.residual) gmmkernel::emulate_scale_residual(c.scaling, multiprocessors);
  gmmkernel::emulate_skip_loss_backward(c.backward, multiprocessors);
}

void compare(const TrainingOptions& o, uint64_t seed, int multiprocessors) {
  TrainingCase expected(o, seed, poison), got(o, seed, another);
  CHECK(expected.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
  emulate(got, multiprocessors);
  char text[256];
  std::snprintf(text, sizeof text, "seed %llu: %lld x %lld + %lld, dtypes %d %d, sample %d, residual %d, special %d",
                (unsigned long long)seed, (long long)o.batch, (long long)o.elements, (long long)o.padding, o.dtype,
                o.sample_dtype, o.sample, o.residual, o.special);
  CHECK(same_training(got, expected), "%s", text);
  CHECK(padding_is(got, another), "wrote between samples: %s", text);
  common += gmmkernel::is_common(got.loss_of) && gmmkernel::is_common(got.noising);
  for (int64_t b = 0; b < o.batch; ++b) losses += !std::isnan(expected.loss.get(b, 0));
}

void test_random_batches() {
  TestRandom random(80);
  uint64_t seed = 31000;
  for (const int64_t elements : {0, 1, 2, 3, 4, 5, 63, 64, 255, 256, 1000, 1023, 1024, 1025, 4096, 4104, 9000}) {
    for (int n = 0; n < 40; ++n) {
      const int64_t batch = n % 10 == 9 ? 0 : 1 + n % 4;
      compare(random_training(random, batch, elements), ++seed, n % 3 == 0 ? 1 : 132);
    }
  }
}

// Sums of more than one tile of tiles' sums.
void test_two_levels() {
  TrainingOptions o;
  o.batch = 1;
  o.elements = 1024 * 1025 - 5;
  o.noise = o.sample = o.grad_sample = false;
  compare(o, 7, 132);
}

// Where a device's row or step is out of range, or a training sample is missing, everything of that sample is NaN.
void test_samples_that_cannot_be() {
  for (const int32_t dtype : {GMM_FLOAT32, GMM_BFLOAT16, GMM_FLOAT64}) {
    for (const int64_t elements : {1032, 1031}) {
      for (const int fault : {0, 1, 2, 3}) {
        TrainingOptions o;
        o.batch = 2;
        o.elements = elements;
        o.dtype = o.sample_dtype = dtype;
        o.residual = dtype != GMM_BFLOAT16;
        o.sample = o.grad_sample = fault != 3;
        TrainingCase bad(o, 3, another), good(o, 3, poison);
        CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        if (fault == 0) bad.row[1] = -1;
        if (fault == 1) bad.row[1] = o.coefficient_rows;
        if (fault == 2) bad.step[1] = int64_t{1} << 32;
        if (fault == 3) {
          bad.row[0] = good.row[0] = 0;
          bad.row[1] = 1;
          bad.coefficients.set(0, GMM_TRAINING_EPS_SAMPLE, 0);
          bad.coefficients.set(1, GMM_TRAINING_EPS_SAMPLE, 0.5);
          CHECK(good.run(1, GMM_BEST) == GMM_SUCCESS, "%s", gmm_last_error());
        }
        emulate(bad, 132);
        CHECK(bad.loss.get(0, 0) == good.loss.get(0, 0) && std::isnan(bad.loss.get(1, 0)), "dtype %d, fault %d", dtype,
              fault);
        for (int64_t i = 0; i < elements; ++i) {
          CHECK(bad.grad_output.get(0, i) == good.grad_output.get(0, i) && std::isnan(bad.grad_output.get(1, i)),
                "dtype %d, fault %d", dtype, fault);
          CHECK(!o.residual || std::isnan(bad.residual.get(1, i)), "dtype %d, fault %d", dtype, fault);
          CHECK(!o.sample || std::isnan(bad.grad_sample.get(1, i)), "dtype %d, fault %d", dtype, fault);
          CHECK(fault == 3 || !o.residual || std::isnan(bad.scaled.get(1, i)), "dtype %d, fault %d", dtype, fault);
          if (fault == 3) continue;  // which adding noise knows nothing of
          CHECK(bad.result.get(0, i) == good.result.get(0, i) && std::isnan(bad.result.get(1, i)) &&
                    std::isnan(bad.noise.get(1, i)),
                "dtype %d, fault %d", dtype, fault);
        }
      }
    }
  }
}

}  // namespace

int main() {
  test_random_batches();
  test_two_levels();
  test_samples_that_cannot_be();
  CHECK(common > 50, "%d calls had a kernel without branches", common);
  CHECK(losses > 200, "%d losses are numbers", losses);
  return check_report();
}
