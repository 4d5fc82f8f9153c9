// The CUDA lanes' square root is the correctly rounded one for every argument a radius can have and every estimate that
// rsqrt.approx.ftz may return: its documented error is at most 2^-22.9, relatively. Two pairs of argument and estimate
// are the exception. A GPU cannot return those estimates: the compiler's own sqrt.rn is the same four operations on the
// same estimate for every argument from 2^-101 on, and is correctly rounded.
//
// A factor of 4 in the argument is a factor of 2 in the root and changes no bit of any significand, so the arguments of
// two neighbouring binades stand for all; the ends of the radius' range are tried besides, unscaled.

#include <cmath>

#include "check.h"
#include "cuda/lanes_cuda.h"

namespace {

const double largest_error = std::exp2(-22.9);

int64_t tried = 0, wrong = 0;

void check_all_estimates(float a) {
  const double exact = 1 / std::sqrt(static_cast<double>(a));
  const float expected = std::sqrt(a);
  float estimate = static_cast<float>(exact * (1 - largest_error));
  if (estimate < exact * (1 - largest_error)) estimate = std::nextafter(estimate, INFINITY);
  for (; estimate <= exact * (1 + largest_error); estimate = float_of(bits_of(estimate) + 1)) {
    const float got = gmmkernel::square_root_from_estimate<gmmkernel::CudaLanes>(a, estimate);
    const bool known =
        (a == 0x1.f82294p+0f && estimate == 0x1.6cda12p-1f) || (a == 0x1.dd26e4p+1f && estimate == 0x1.092fp-1f);
    const bool right = bits_of(got) == bits_of(expected);
    CHECK(right || known, "root of %a from %a: %a, expected %a", a, estimate, got, expected);
    ++tried;
    wrong += right ? 0 : 1;
  }
}

}  // namespace

int main() {
  for (uint32_t bits = bits_of(1.0f); bits < bits_of(4.0f); ++bits) check_all_estimates(float_of(bits));
  CHECK(wrong == 2, "%lld wrong roots", (long long)wrong);
  for (uint32_t n = 0; n < 100000; ++n) {
    check_all_estimates(float_of(bits_of(0x1p-31f) + n));
    check_all_estimates(float_of(bits_of(45.0f) - n));
  }
  CHECK(tried > int64_t{2} << 24, "only %lld estimates", (long long)tried);
  return check_report();
}
