// How far the normals are from the exact Box-Muller transform of their words, against long double:
// radius, cosine and sine over every 32-bit word, the normal itself over pairs of words from Philox.
//
//   normal_accuracy [--words N] [--pairs N] [--threads N]
//
// The default is all 2^32 words and 10^9 pairs. Fewer words are spread evenly.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "accuracy.h"
#include "gmmkernel/lanes_scalar.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/philox.h"

namespace {

using gmmkernel::ScalarLanes;
using Errors = ErrorsOf<float>;

constexpr uint64_t all_words = uint64_t{1} << 32;

// ---- the truth ----

// sqrt(-2 ln u), u = word / 2^32, the word 0 counting as 1; by way of 1 - u where that is the small one.
long double true_radius(uint32_t word) {
  const uint64_t below_one = all_words - word;
  const long double log = below_one < all_words / 2 ? std::log1p(-static_cast<long double>(below_one) * 0x1p-32L)
                                                    : std::log(std::max<uint32_t>(word, 1) * 0x1p-32L);
  return std::sqrt(-2 * log);
}

// The angle of the low 30 bits, within a quarter of a turn either way around 0.
void true_cos_sin(uint32_t word, long double& cosine, long double& sine) {
  constexpr long double half_pi = 1.570796326794896619231321691639751442L;
  const long double angle = half_pi * (static_cast<int32_t>(word << 2 | 2) * 0x1p-32L);
  cosine = std::cos(angle);
  sine = std::sin(angle);
  if ((word >> 31) != 0) cosine = -cosine;
  if ((word >> 30 & 1) != 0) std::swap(cosine, sine);
}

struct AngleErrors {
  Errors cosine, sine;
  uint64_t wrong_quadrants = 0;

  void merge(const AngleErrors& other) {
    cosine.merge(other.cosine);
    sine.merge(other.sine);
    wrong_quadrants += other.wrong_quadrants;
  }
};

Errors radius_errors(uint64_t words, int threads) {
  return in_parallel<Errors>("radius", words, threads, [words](uint64_t first, uint64_t last, Errors& errors) {
    for (uint64_t i = first; i < last; ++i) {
      const uint32_t word = static_cast<uint32_t>(i * (all_words / words));
      errors.add(ScalarLanes::sqrt(gmmkernel::minus_two_log<ScalarLanes>(word)), true_radius(word), word);
    }
  });
}

// The words of the first quarter against the truth; the others must be theirs with sign and place changed.
AngleErrors angle_errors(uint64_t words, int threads) {
  const uint64_t quarter = words / 4;
  return in_parallel<AngleErrors>("angle", quarter, threads, [quarter](uint64_t first, uint64_t last, AngleErrors& e) {
    for (uint64_t i = first; i < last; ++i) {
      const uint32_t word = static_cast<uint32_t>(i * (all_words / 4 / quarter));
      long double true_cosine, true_sine;
      float c[4], s[4];
      true_cos_sin(word, true_cosine, true_sine);
      for (uint32_t q = 0; q < 4; ++q) gmmkernel::cos_sin<ScalarLanes>(word | q << 30, c[q], s[q]);
      e.cosine.add(c[0], true_cosine, word);
      e.sine.add(s[0], true_sine, word);
      const bool right = c[1] == s[0] && s[1] == c[0] && c[2] == -c[0] && s[2] == s[0] && c[3] == s[0] && s[3] == -c[0];
      e.wrong_quadrants += right ? 0 : 1;
    }
  });
}

Errors normal_errors(uint64_t pairs, int threads) {
  const gmmkernel::PhiloxKeys keys = gmmkernel::philox_keys(0);
  return in_parallel<Errors>("normal", pairs / 2, threads, [&keys](uint64_t first, uint64_t last, Errors& errors) {
    for (uint64_t block = first; block < last; ++block) {
      uint32_t words[4];
      float normals[4];
      gmmkernel::random_words<ScalarLanes>(keys, block, 0, gmmkernel::Stream::transition, words);
      gmmkernel::normals_from_words<ScalarLanes>(words, normals);
      for (int i = 0; i < 4; i += 2) {
        const long double radius = true_radius(words[i]);
        long double cosine, sine;
        true_cos_sin(words[i + 1], cosine, sine);
        errors.add(normals[i], radius * cosine, words[i], words[i + 1]);
        errors.add(normals[i + 1], radius * sine, words[i], words[i + 1]);
      }
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t words = all_words, pairs = 1000000000;
  int threads = all_threads();
  for (int i = 1; i < argc; i += 2) {
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (std::strcmp(argv[i], "--words") == 0) {
      words = number(value, 4, all_words);
    } else if (std::strcmp(argv[i], "--pairs") == 0) {
      pairs = number(value, 2, all_words * 1024);
    } else if (std::strcmp(argv[i], "--threads") == 0) {
      threads = static_cast<int>(number(value, 1, 1024));
    } else {
      std::fprintf(stderr, "usage: %s [--words N] [--pairs N] [--threads N]\n", argv[0]);
      return 2;
    }
  }

  const Errors radius = radius_errors(words, threads);
  const AngleErrors angle = angle_errors(words, threads);
  const Errors normal = normal_errors(pairs, threads);
  std::printf("against long double of %d bits; cosine and sine of the other three quarters of the words: %llu differ\n",
              LDBL_MANT_DIG, static_cast<unsigned long long>(angle.wrong_quadrants));
  Errors::print_header("rel 2^-24");
  radius.print("radius");
  angle.cosine.print("cosine");
  angle.sine.print("sine");
  normal.print("normal");
  // A product of floats: the relative errors of its factors and of its own rounding, at most.
  const double factor = std::max(angle.cosine.worst_relative, angle.sine.worst_relative);
  const double bound = (1 + radius.worst_relative) * (1 + factor) * (1 + 0x1p-24) - 1;
  std::printf("bound on the normal from these: %.4f ulp (relative %.4f * 2^-24); largest possible |z| %.8g\n",
              bound * 0x1p24, bound * 0x1p24, radius.largest * std::max(angle.cosine.largest, angle.sine.largest));
  return angle.wrong_quadrants == 0 ? 0 : 1;
}
