// Round to nearest even with subnormals kept, for the lifetime of an object, whatever the caller has set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gmmkernel {

class ExactFloatEnvironment {
 public:
  ExactFloatEnvironment() : saved_(get()) { set(exact(saved_)); }
  ~ExactFloatEnvironment() { set(saved_); }
  ExactFloatEnvironment(const ExactFloatEnvironment&) = delete;
  ExactFloatEnvironment& operator=(const ExactFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using State = unsigned int;
  static State get() { return _mm_getcsr(); }
  static void set(State state) { _mm_setcsr(state); }
  // All exceptions masked, round to nearest, no flush-to-zero (bit 15), no denormals-are-zero (bit 6).
  static State exact(State) { return 0x1F80; }
#elif defined(__aarch64__)
  using State = uint64_t;
  static State get() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void set(State state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
  // Rounding mode (bits 22, 23), flush-to-zero (24) and default NaN (25) off.
  static State exact(State state) { return state & ~(State{0xF} << 22); }
#else
  using State = int;
  static State get() { return 0; }
  static void set(State) {}
  static State exact(State state) { return state; }
#endif

  State saved_;
};

}  // namespace gmmkernel
