// How far the package's logarithm and exponential are from the exact ones, against long double: float32 over every bit
// pattern whose result is not given by a rule, float64 over spread and random arguments.
//
//   elementary_accuracy [--words N] [--doubles N] [--threads N]
//
// The default is all 2^32 words and 10^9 doubles. Fewer words are spread evenly.

#include <cfloat>
#include <cstring>

#include "accuracy.h"
#include "gmmkernel/elementary.h"

namespace {

using gmmkernel::DoubleLanes;
using gmmkernel::ScalarLanes;

constexpr uint64_t all_words = uint64_t{1} << 32;

template <class Number>
struct BothErrors {
  ErrorsOf<Number> logarithm, exponential;

  void merge(const BothErrors& other) {
    logarithm.merge(other.logarithm);
    exponential.merge(other.exponential);
  }
};

// Overflow is counted from the value that would round to infinity on.
template <class Number>
bool in_range(long double truth) {
  const long double largest = std::numeric_limits<Number>::max();
  return truth < largest + std::ldexp(1.0L, std::ilogb(largest) - std::numeric_limits<Number>::digits);
}

BothErrors<float> float_errors(uint64_t words, int threads) {
  return in_parallel<BothErrors<float>>("float", words, threads, [words](uint64_t first, uint64_t last, auto& errors) {
    for (uint64_t i = first; i < last; ++i) {
      const uint32_t word = static_cast<uint32_t>(i * (all_words / words));
      const float x = gmmkernel::bits_float(word);
      if (x > 0 && x < INFINITY) {
        errors.logarithm.add(gmmkernel::logarithm<ScalarLanes>(x), std::log(static_cast<long double>(x)), word);
      }
      if (x > -104 && x < 89) {
        const long double truth = std::exp(static_cast<long double>(x));
        if (in_range<float>(truth)) errors.exponential.add(gmmkernel::exponential<ScalarLanes>(x), truth, word);
      }
    }
  });
}

void add_logarithm(double x, BothErrors<double>& errors) {
  const uint64_t bits = gmmkernel::double_bits(x);
  errors.logarithm.add(gmmkernel::logarithm<DoubleLanes>(x), std::log(static_cast<long double>(x)),
                       static_cast<uint32_t>(bits >> 32), static_cast<uint32_t>(bits));
}

void add_exponential(double x, BothErrors<double>& errors) {
  const uint64_t bits = gmmkernel::double_bits(x);
  const long double truth = std::exp(static_cast<long double>(x));
  if (!in_range<double>(truth)) return;
  errors.exponential.add(gmmkernel::exponential<DoubleLanes>(x), truth, static_cast<uint32_t>(bits >> 32),
                         static_cast<uint32_t>(bits));
}

// Of each function half the arguments from its whole range, half from around log's zero and exp's one.
BothErrors<double> double_errors(uint64_t count, int threads) {
  return in_parallel<BothErrors<double>>("double", count / 4, threads, [](uint64_t first, uint64_t last, auto& errors) {
    for (uint64_t i = first; i < last; ++i) {
      const uint64_t weyl = (i + 1) * 0x9E3779B97F4A7C15;  // odd: every 64-bit pattern once, evenly spread
      const double unit = static_cast<double>(weyl >> 11) * 0x1p-53;
      const double any = gmmkernel::bits_double(weyl >> 1);
      if (any > 0 && any < INFINITY) add_logarithm(any, errors);
      add_logarithm(0.5 + 1.5 * unit, errors);
      add_exponential(-746 + 1456 * unit, errors);
      add_exponential(unit - 0.5, errors);
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t words = all_words, doubles = 1000000000;
  int threads = all_threads();
  for (int i = 1; i < argc; i += 2) {
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (std::strcmp(argv[i], "--words") == 0) {
      words = number(value, 4, all_words);
    } else if (std::strcmp(argv[i], "--doubles") == 0) {
      doubles = number(value, 4, all_words * 1024);
    } else if (std::strcmp(argv[i], "--threads") == 0) {
      threads = static_cast<int>(number(value, 1, 1024));
    } else {
      std::fprintf(stderr, "usage: %s [--words N] [--doubles N] [--threads N]\n", argv[0]);
      return 2;
    }
  }
  const BothErrors<float> single = float_errors(words, threads);
  const BothErrors<double> both = double_errors(doubles, threads);
  std::printf("against long double of %d bits; relative errors in 2^-24 and 2^-53\n", LDBL_MANT_DIG);
  ErrorsOf<float>::print_header("relative");
  single.logarithm.print("log");
  single.exponential.print("exp");
  both.logarithm.print("log64");
  both.exponential.print("exp64");
}
