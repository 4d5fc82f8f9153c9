// Logarithm and exponential: the reference's bits on every instruction set. `test_elementary --every-word` also
// compares the instruction sets over all 2^32 floats.

#include <cmath>

#include "check.h"
#include "lane_functions.h"

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

namespace {

// What gmmkernel/backends/reference gives; tests/reference/test_reference_elementary.py reads these.
constexpr uint64_t LOG_FLOAT32 = 0x512976e5f306063c;
constexpr uint64_t EXP_FLOAT32 = 0x4ffd4c066921cabc;
constexpr uint64_t LOG_FLOAT64 = 0x8e81d5f50d9e94b7;
constexpr uint64_t EXP_FLOAT64 = 0x557bd868f7d001e5;

// The arguments and the digest of tests/elementary_inputs.py, where they are described.
Floats float_arguments() {
  Floats x;
  for (uint64_t i = 0; i < 1 << 20; ++i) x.push_back(float_of(static_cast<uint32_t>(i * 4099)));
  for (uint32_t binade = 0; binade < 512; ++binade) {
    for (const uint32_t fraction : {0u, 1u, 0x3504F2u, 0x3504F3u, 0x3504F4u, 0x400000u, 0x7FFFFEu, 0x7FFFFFu}) {
      x.push_back(float_of(binade << 23 | fraction));
    }
  }
  for (int i = 0; i < 1 << 18; ++i) x.push_back(static_cast<float>(-105 + 195 * (i * 0x1p-18)));
  for (int i = 0; i < 1 << 18; ++i) x.push_back(float_of(0x3F800000 + static_cast<uint32_t>((i - (1 << 17)) * 61)));
  return x;
}

Doubles double_arguments() {
  constexpr uint64_t middle = 0x6A09E667F3BCD, one = 1;
  Doubles x;
  for (uint64_t i = 0; i < 1 << 19; ++i) x.push_back(double_of(i * 0x9E3779B97F4A7C15));
  for (uint64_t binade = 0; binade < 4096; ++binade) {
    for (const uint64_t fraction :
         {uint64_t{0}, one, middle - 1, middle, middle + 1, one << 51, (one << 52) - 2, (one << 52) - 1}) {
      x.push_back(double_of(binade << 52 | fraction));
    }
  }
  for (int i = 0; i < 1 << 18; ++i) x.push_back(-750 + 1465 * (i * 0x1p-18));
  for (int64_t i = 0; i < 1 << 18; ++i) {
    x.push_back(double_of(0x3FF0000000000000 + static_cast<uint64_t>((i - (1 << 17)) * 0x1234567891)));
  }
  return x;
}

template <class Number>
uint64_t digest(const std::vector<Number>& values) {
  uint64_t sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] == values[i] ? bits_of(values[i]) * (2 * i + 1) : 0;
  return sum;
}

void test_reference_bits(const LaneFunctions& lanes) {
  const Floats x = float_arguments();
  Floats y(x.size());
  lanes.logarithm(x.data(), y.data(), static_cast<int64_t>(x.size()));
  CHECK(digest(y) == LOG_FLOAT32, "%s: %llx", lanes.name, static_cast<unsigned long long>(digest(y)));
  lanes.exponential(x.data(), y.data(), static_cast<int64_t>(x.size()));
  CHECK(digest(y) == EXP_FLOAT32, "%s: %llx", lanes.name, static_cast<unsigned long long>(digest(y)));

  const Doubles x64 = double_arguments();
  Doubles y64(x64.size());
  lanes.logarithm64(x64.data(), y64.data(), static_cast<int64_t>(x64.size()));
  CHECK(digest(y64) == LOG_FLOAT64, "%s: %llx", lanes.name, static_cast<unsigned long long>(digest(y64)));
  lanes.exponential64(x64.data(), y64.data(), static_cast<int64_t>(x64.size()));
  CHECK(digest(y64) == EXP_FLOAT64, "%s: %llx", lanes.name, static_cast<unsigned long long>(digest(y64)));
}

// Every instruction set against the portable lanes, the meaning of the others.
void test_same_bits(const Floats& x) {
  const int64_t count = static_cast<int64_t>(x.size());
  Floats y(x.size()), expected(x.size());
  for (const auto function : {&LaneFunctions::logarithm, &LaneFunctions::exponential}) {
    (portable_lane_functions().*function)(x.data(), expected.data(), count);
    for (const LaneFunctions* lanes : available_lane_functions()) {
      if (lanes == &portable_lane_functions()) continue;
      (lanes->*function)(x.data(), y.data(), count);
      for (size_t i = 0; i < x.size(); ++i) CHECK(same(y[i], expected[i]), "%s: %a: %a", lanes->name, x[i], y[i]);
    }
  }
}

void test_every_word() {
  Floats x(1 << 20);
  for (uint64_t first = 0; first >> 32 == 0; first += x.size()) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = float_of(static_cast<uint32_t>(first + i));
    test_same_bits(x);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const LaneFunctions* lanes : available_lane_functions()) test_reference_bits(*lanes);
  test_same_bits(float_arguments());
  if (argc > 1 && std::strcmp(argv[1], "--every-word") == 0) test_every_word();
  return check_report();
}
