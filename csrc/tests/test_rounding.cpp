// bfloat16 and float16 of every instruction set: all 2^16 patterns widened, and rounding to nearest even.

#include <cmath>

#include "check.h"
#include "lane_functions.h"

using Floats = std::vector<float>;
using Halves = std::vector<uint16_t>;

namespace {

struct Format {
  const char* name;
  int fraction_bits;
  int smallest_exponent;  // of a normal number
  int largest_exponent;
  void (*LaneFunctions::*load)(const uint16_t*, float*, int64_t);
  void (*LaneFunctions::*store)(const float*, uint16_t*, int64_t);

  int bias() const { return 1 - smallest_exponent; }
};

constexpr Format formats[] = {
    {"bfloat16", 7, -126, 127, &LaneFunctions::load_bfloat16, &LaneFunctions::store_bfloat16},
    {"float16", 10, -14, 15, &LaneFunctions::load_float16, &LaneFunctions::store_float16},
};

// The number that a pattern stands for, by the definition of a binary format.
double value_of(const Format& format, uint16_t pattern) {
  const int fraction = pattern & ((1 << format.fraction_bits) - 1);
  const int exponent = (pattern & 0x7fff) >> format.fraction_bits;
  const double sign = (pattern & 0x8000) != 0 ? -1 : 1;
  if (exponent == format.largest_exponent + format.bias() + 1) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, format.smallest_exponent - format.fraction_bits);
  return sign * std::ldexp(1 + std::ldexp(fraction, -format.fraction_bits), exponent - format.bias());
}

// The nearest number of the format, ties to even, by rounding to a multiple of the last place.
double rounded(const Format& format, float value) {
  if (std::isnan(value) || std::isinf(value) || value == 0) return value;
  int exponent;
  std::frexp(value, &exponent);  // in [1/2, 1) 2^exponent
  exponent = std::max(exponent - 1, format.smallest_exponent);
  const double last_place = std::ldexp(1.0, exponent - format.fraction_bits);
  const double nearest = std::nearbyint(value / last_place) * last_place;
  return std::fabs(nearest) >= std::ldexp(1.0, format.largest_exponent + 1) ? std::copysign(INFINITY, value) : nearest;
}

void test_widening(const LaneFunctions& lanes, const Format& format) {
  Halves patterns(1 << 16);
  for (size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<uint16_t>(i);
  Floats values(patterns.size());
  (lanes.*format.load)(patterns.data(), values.data(), static_cast<int64_t>(values.size()));
  for (const uint16_t pattern : patterns) {
    const float expected = static_cast<float>(value_of(format, pattern));
    CHECK(same(values[pattern], expected), "%s, %s, pattern %04x: %a", lanes.name, format.name, pattern,
          values[pattern]);
  }
}

// Every number of the format, every tie between neighbours, the floats next to both; subnormals; random patterns.
Floats numbers_to_round(const Format& format) {
  Floats numbers = {INFINITY, -INFINITY, NAN, -NAN, float_of(0x7f800001), float_of(0x7fffffff), float_of(0xff800001)};
  const auto add_with_neighbours = [&](double value) {
    const float number = static_cast<float>(value);
    for (const float next : {std::nextafter(number, -INFINITY), number, std::nextafter(number, INFINITY)}) {
      numbers.push_back(next);
      numbers.push_back(-next);
    }
  };
  const uint16_t infinity =
      static_cast<uint16_t>((format.largest_exponent + format.bias() + 1) << format.fraction_bits);
  for (uint16_t pattern = 0; pattern < infinity; ++pattern) {
    const double here = value_of(format, pattern);
    const double above =
        pattern + 1 == infinity ? std::ldexp(1.0, format.largest_exponent + 1) : value_of(format, pattern + 1);
    add_with_neighbours(here);
    add_with_neighbours((here + above) / 2);
  }
  TestRandom random(5);
  for (int i = 0; i < 1 << 19; ++i) numbers.push_back(float_of(random.word()));
  for (int i = 0; i < 1 << 18; ++i) numbers.push_back(float_of(random.word() & 0x807fffff));  // subnormal
  // Within the range of float16, where random patterns rarely fall.
  for (int i = 0; i < 1 << 19; ++i) {
    numbers.push_back(static_cast<float>(std::ldexp(random.uniform(), static_cast<int>(random.word() % 44) - 27)));
  }
  numbers.resize((numbers.size() + 63) / 64 * 64);
  return numbers;
}

void test_rounding(const LaneFunctions& lanes, const Format& format, const Floats& numbers) {
  Halves halves(numbers.size());
  (lanes.*format.store)(numbers.data(), halves.data(), static_cast<int64_t>(numbers.size()));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const double expected = rounded(format, numbers[i]);
    const double got = value_of(format, halves[i]);
    const bool right =
        std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == std::signbit(expected);
    CHECK(right, "%s, %s: %a -> %04x", lanes.name, format.name, numbers[i], halves[i]);
  }
}

}  // namespace

int main() {
  for (const Format& format : formats) {
    const Floats numbers = numbers_to_round(format);
    for (const LaneFunctions* lanes : available_lane_functions()) {
      test_widening(*lanes, format);
      test_rounding(*lanes, format, numbers);
    }
  }
  return check_report();
}
