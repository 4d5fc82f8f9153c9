// Philox and the primitives of every instruction set's lanes, against Random123, the scalar lanes and plain arithmetic.
// `test_lanes --every-word` also compares the lanes over all 2^32 words.

#include <cmath>

#include "check.h"
#include "lane_functions.h"

using gmmkernel::Stream;
using Words = std::vector<uint32_t>;
using Floats = std::vector<float>;

namespace {

// Random123's known answers for philox4x32-10 (its file kat_vectors).
struct KnownAnswer {
  uint32_t counter[4];
  uint64_t seed;  // high key word, low key word
  uint32_t words[4];
};

constexpr KnownAnswer known_answers[] = {
    {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     0xffffffffffffffff,
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     0x299f31d0a4093822,
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void test_philox(const LaneFunctions& lanes) {
  Words words(4 * lanes.width);
  for (const KnownAnswer& known : known_answers) {
    lanes.philox(known.seed, known.counter, words.data());
    for (int i = 0; i < 4 * lanes.width; ++i) {
      CHECK(words[i] == known.words[i / lanes.width], "%s, word %d, lane %d: %08x", lanes.name, i / lanes.width,
            i % lanes.width, words[i]);
    }
  }
}

// Blocks in the order of elements, up to the last one and with both counter words in use.
void test_random_words(const LaneFunctions& lanes) {
  Words words(4 * lanes.width);
  const uint64_t width = lanes.width;
  const uint64_t starts[] = {
      0, width, 1000 * width, 0x100000000 - width, 0x100000000, 0x123456789 / width * width, uint64_t{0} - width};
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{0x8000000000000000}, ~uint64_t{0}}) {
    for (const uint64_t start : starts) {
      for (const uint32_t step : {0u, 1u, 0xffffffffu}) {
        lanes.random_words(seed, start, step, Stream::offsets, words.data());
        for (uint64_t block = 0; block < width; ++block) {
          const uint64_t number = start + block;
          const uint32_t counter[4] = {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), step,
                                       static_cast<uint32_t>(Stream::offsets)};
          uint32_t expected[4];
          portable_lane_functions().philox(seed, counter, expected);
          CHECK(std::memcmp(expected, &words[4 * block], sizeof expected) == 0, "%s, block %llu + %llu", lanes.name,
                static_cast<unsigned long long>(start), static_cast<unsigned long long>(block));
        }
      }
    }
  }
}

// Every power of two, its neighbours, runs of ones from either end, and random words of every length.
Words interesting_words() {
  Words words = {0, 1, 2, 3, 0xffffffff, 0xfffffffe, 0xaaaaaaaa, 0x55555555};
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t power = uint32_t{1} << bit;
    for (const uint32_t word : {power - 1, power, power + 1, ~power, ~(power - 1), power | 1, power | (power >> 1)}) {
      words.push_back(word);
    }
  }
  TestRandom random(1);
  while (words.size() < 1 << 20) words.push_back(random.word() >> (random.word() & 31));
  return words;
}

// Zeros, subnormals, the ends of every binade, infinities, NaN, and random bit patterns.
Floats interesting_floats(uint64_t seed) {
  Floats floats = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 1.0f, -1.0f};
  for (uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (const uint32_t fraction : {0u, 1u, 0x400000u, 0x7fffffu}) {
      floats.push_back(float_of(exponent << 23 | fraction));
      floats.push_back(float_of(0x80000000 | exponent << 23 | fraction));
    }
  }
  TestRandom random(seed);
  while (floats.size() < 1 << 18) floats.push_back(float_of(random.word()));
  // Another order for another seed, so that two lists make all sorts of pairs.
  for (size_t i = floats.size() - 1; i > 0; --i) std::swap(floats[i], floats[random.next() % (i + 1)]);
  return floats;
}

int leading_zeros(uint32_t word) {
  int zeros = 0;
  while (zeros < 32 && (word & (0x80000000u >> zeros)) == 0) ++zeros;
  return zeros;
}

void test_integers(const LaneFunctions& lanes) {
  const Words words = interesting_words();
  const int64_t count = static_cast<int64_t>(words.size());
  Words zeros(words.size()), normalized(words.size()), quarters(words.size());
  Floats converted(words.size());
  lanes.count_leading_zeros(words.data(), zeros.data(), count);
  lanes.normalize(words.data(), normalized.data(), count);
  lanes.times_four_plus_two(words.data(), quarters.data(), count);
  lanes.signed_to_float(words.data(), converted.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = words[i];
    const int expected = leading_zeros(word);
    CHECK(zeros[i] == static_cast<uint32_t>(expected), "%s, word %08x: %u", lanes.name, word, zeros[i]);
    CHECK(normalized[i] == (expected == 32 ? 0 : word << expected), "%s, word %08x", lanes.name, word);
    CHECK(quarters[i] == static_cast<uint32_t>(uint64_t{4} * word + 2), "%s, word %08x", lanes.name, word);
    // Through double, which holds every integer exactly.
    const float nearest = static_cast<float>(static_cast<double>(static_cast<int32_t>(word)));
    CHECK(same(converted[i], nearest), "%s, word %08x: %a", lanes.name, word, converted[i]);
  }
}

void test_floats(const LaneFunctions& lanes) {
  const Floats a = interesting_floats(2), b = interesting_floats(3);
  Words words(a.size());
  TestRandom random(4);
  for (uint32_t& word : words) word = random.word();
  const int64_t count = static_cast<int64_t>(a.size());
  Floats product(a.size()), difference(a.size()), root(a.size()), low(a.size()), high(a.size()), flipped(a.size()),
      selected(a.size());
  lanes.mul(a.data(), b.data(), product.data(), count);
  lanes.sub(a.data(), b.data(), difference.data(), count);
  lanes.sqrt(a.data(), root.data(), count);
  lanes.at_least(a.data(), b.data(), low.data(), count);
  lanes.at_most(a.data(), b.data(), high.data(), count);
  lanes.flip_sign_by_bit31(a.data(), words.data(), flipped.data(), count);
  lanes.select_by_bit30(words.data(), a.data(), b.data(), selected.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    // Double has more than twice float's bits and two more: rounding its result again changes nothing.
    CHECK(same(product[i], static_cast<float>(double{a[i]} * b[i])), "%s: %a * %a", lanes.name, a[i], b[i]);
    CHECK(same(difference[i], static_cast<float>(double{a[i]} - b[i])), "%s: %a - %a", lanes.name, a[i], b[i]);
    CHECK(same(root[i], static_cast<float>(std::sqrt(double{a[i]}))), "%s: sqrt %a", lanes.name, a[i]);
    // NaN stays, and a zero keeps its sign.
    CHECK(same(low[i], a[i] < b[i] ? b[i] : a[i]), "%s: at_least %a %a", lanes.name, a[i], b[i]);
    CHECK(same(high[i], a[i] > b[i] ? b[i] : a[i]), "%s: at_most %a %a", lanes.name, a[i], b[i]);
    const float sign = (words[i] >> 31) != 0 ? -a[i] : a[i];
    CHECK(same(flipped[i], sign), "%s: flip %a by %08x", lanes.name, a[i], words[i]);
    CHECK(same(selected[i], (words[i] >> 30 & 1) != 0 ? a[i] : b[i]), "%s: select by %08x", lanes.name, words[i]);
  }
}

// Box-Muller's parts: the same bits in every instruction set.
void test_same_normal_parts(const LaneFunctions& lanes, const Words& words) {
  const int64_t count = static_cast<int64_t>(words.size());
  Floats radius(words.size()), cosine(words.size()), sine(words.size());
  Floats expected_radius(words.size()), expected_cosine(words.size()), expected_sine(words.size());
  lanes.radius(words.data(), radius.data(), count);
  lanes.cos_sin(words.data(), cosine.data(), sine.data(), count);
  const LaneFunctions& portable = portable_lane_functions();
  portable.radius(words.data(), expected_radius.data(), count);
  portable.cos_sin(words.data(), expected_cosine.data(), expected_sine.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    CHECK(same(radius[i], expected_radius[i]), "%s: radius of %08x", lanes.name, words[i]);
    CHECK(same(cosine[i], expected_cosine[i]), "%s: cosine of %08x", lanes.name, words[i]);
    CHECK(same(sine[i], expected_sine[i]), "%s: sine of %08x", lanes.name, words[i]);
  }
}

// Right to about two units in the last place; csrc/tools/normal_accuracy.cpp measures exactly.
void test_true_normal_parts(const LaneFunctions& lanes, const Words& words) {
  Floats radius(words.size()), cosine(words.size()), sine(words.size());
  lanes.radius(words.data(), radius.data(), static_cast<int64_t>(words.size()));
  lanes.cos_sin(words.data(), cosine.data(), sine.data(), static_cast<int64_t>(words.size()));
  for (size_t i = 0; i < words.size(); ++i) {
    const uint32_t word = words[i];
    const double true_radius = std::sqrt(-2 * std::log1p((word == 0 ? 1 : word) * 0x1p-32 - 1));
    // 30 bits of angle within a quarter turn; the two highest bits turn it by reflections.
    const double angle = std::acos(-1.0) / 2 * (static_cast<int32_t>(word << 2 | 2) * 0x1p-32);
    const double c = (word >> 31) != 0 ? -std::cos(angle) : std::cos(angle), s = std::sin(angle);
    const bool swapped = (word >> 30 & 1) != 0;
    const auto close = [](double value, double truth) {
      return std::fabs(value - truth) <= 2 * 0x1p-23 * std::fabs(truth);
    };
    CHECK(close(radius[i], true_radius), "%s: radius of %08x", lanes.name, word);
    CHECK(close(cosine[i], swapped ? s : c), "%s: cosine of %08x", lanes.name, word);
    CHECK(close(sine[i], swapped ? c : s), "%s: sine of %08x", lanes.name, word);
  }
}

// All 2^32 words, which takes minutes.
void test_every_word() {
  Words words(1 << 20);
  for (uint64_t first = 0; first >> 32 == 0; first += words.size()) {
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(first + i);
    for (const LaneFunctions* lanes : available_lane_functions()) {
      if (lanes != &portable_lane_functions()) test_same_normal_parts(*lanes, words);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const LaneFunctions* lanes : available_lane_functions()) {
    test_philox(*lanes);
    test_random_words(*lanes);
    test_integers(*lanes);
    test_floats(*lanes);
    test_same_normal_parts(*lanes, interesting_words());
    test_true_normal_parts(*lanes, interesting_words());
  }
  if (argc > 1 && std::strcmp(argv[1], "--every-word") == 0) test_every_word();
  return check_report();
}
