// The fused multiply-add of every instruction set, the portable one in software included, against the C library's.

#include <cmath>

#include "check.h"
#include "lane_functions.h"

using Floats = std::vector<float>;

namespace {

struct Triples {
  Floats a, b, c;
  void add(float x, float y, float z) {
    a.push_back(x);
    b.push_back(y);
    c.push_back(z);
  }
};

// Where double is not enough: (1 + i e)(1 - i e) = 1 - i^2 e^2 with e = 2^-23 is half a last place of an integer c less
// (or, with the signs changed, more) a trifle that a double sum drops. All is scaled, to results of every size; those
// that are subnormal have their last place at 2^-149 however few bits they have, and so their own ties.
Triples constructed_ties(bool subnormal) {
  Triples triples;
  TestRandom random(6);
  for (int n = 0; n < 400000; ++n) {
    const int i = static_cast<int>(random.word() % 1000) + 1;
    const float a = 1 + static_cast<float>(i) * 0x1p-23f;
    const float b = 1 - static_cast<float>(i) * 0x1p-23f;
    const uint32_t fraction = random.word() & 0x7fffff;
    const float integer = static_cast<float>(subnormal ? fraction : fraction | 0x800000);
    const int last_place = subnormal ? -149 : static_cast<int>(random.word() % 250) - 149;
    const float product_sign = (random.word() & 1) != 0 ? 1.0f : -1.0f;
    const float sign = (random.word() & 1) != 0 ? 1.0f : -1.0f;
    const int half = (last_place - 1) / 2;
    triples.add(product_sign * std::ldexp(a, half), std::ldexp(b, last_place - 1 - half),
                sign * std::ldexp(integer, last_place));
  }
  return triples;
}

Triples random_triples() {
  Triples triples;
  TestRandom random(7);
  const float special[] = {0.0f, -0.0f,     1.0f,       -1.0f,     INFINITY,         -INFINITY,
                           NAN,  0x1p-149f, -0x1p-149f, 0x1p-126f, 0x1.fffffep+127f, -0x1.fffffep+127f};
  for (const float x : special) {
    for (const float y : special) {
      for (const float z : special) triples.add(x, y, z);
    }
  }
  for (int n = 0; n < 1 << 20; ++n)
    triples.add(float_of(random.word()), float_of(random.word()), float_of(random.word()));
  // Of comparable size, with much cancellation.
  for (int n = 0; n < 1 << 20; ++n) {
    const float x = static_cast<float>(random.uniform()), y = static_cast<float>(random.uniform());
    triples.add(x, y, std::ldexp(-x * y, static_cast<int>(random.word() % 5) - 2));
  }
  // Subnormal and nearly subnormal results.
  for (int n = 0; n < 1 << 20; ++n) {
    const float x = static_cast<float>(random.uniform()), y = static_cast<float>(random.uniform());
    const float z = static_cast<float>(random.uniform());
    triples.add(std::ldexp(x, -70), std::ldexp(y, -60 - static_cast<int>(random.word() % 25)), std::ldexp(z, -130));
  }
  return triples;
}

// Returns how many of the triples a product and sum in double would have rounded wrongly.
int64_t test(const LaneFunctions& lanes, Triples triples) {
  while (triples.a.size() % 64 != 0) triples.add(0, 0, 0);
  Floats results(triples.a.size());
  lanes.fma(triples.a.data(), triples.b.data(), triples.c.data(), results.data(), static_cast<int64_t>(results.size()));
  int64_t naive_differs = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const float a = triples.a[i], b = triples.b[i], c = triples.c[i];
    const float expected = std::fma(a, b, c);
    CHECK(same(results[i], expected), "%s: fma(%a, %a, %a) = %a, expected %a", lanes.name, a, b, c, results[i],
          expected);
    if (!same(static_cast<float>(double{a} * b + c), expected)) ++naive_differs;
  }
  return naive_differs;
}

}  // namespace

int main() {
  const Triples random = random_triples();
  for (const bool subnormal : {false, true}) {
    const Triples ties = constructed_ties(subnormal);
    for (const LaneFunctions* lanes : available_lane_functions()) {
      const int64_t telling = test(*lanes, ties);
      CHECK(telling > 10000, "only %lld of the constructed ties tell an exact fma from a naive one",
            static_cast<long long>(telling));
    }
  }
  for (const LaneFunctions* lanes : available_lane_functions()) test(*lanes, random);
  return check_report();
}
