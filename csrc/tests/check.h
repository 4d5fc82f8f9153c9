// What the test programs share: a check that reports where it failed, and comparison of floats by their bits.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

inline int& check_failures() {
  static int failures = 0;
  return failures;
}

// Go on after a failure, up to the first 20 messages; the arguments after the condition say, printf-like, which case.
#define CHECK(condition, ...)                                                      \
  do {                                                                             \
    if (!(condition) && ++check_failures() <= 20) {                                \
      std::fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                           \
      std::fputc('\n', stderr);                                                    \
    }                                                                              \
  } while (false)

// The exit status of a test program.
inline int check_report() {
  if (check_failures() > 0) std::fprintf(stderr, "%d checks failed\n", check_failures());
  return check_failures() > 0 ? 1 : 0;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Equal bits, or both NaN: a NaN's payload is free.
inline bool same(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

// A small generator of test inputs, independent of the library's (SplitMix64).
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  uint32_t word() { return static_cast<uint32_t>(next() >> 32); }
  // Uniform in [-1, 1).
  double uniform() { return static_cast<double>(static_cast<int64_t>(next())) * 0x1p-63; }

 private:
  uint64_t state_;
};
