// One instruction set's table of lane functions; the file that includes this one names GMM_LANES. As in
// csrc/cpu/kernels.inl, nothing from the standard library may be called here.

#include "gmmkernel/elementary.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/philox.h"
#include "lane_functions.h"

namespace {

using namespace gmmkernel;
using Lanes = GMM_LANES;
using F = Lanes::real;
using U = Lanes::u32;

GMM_INLINE U load_words(const uint32_t* p) {
  U words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

GMM_INLINE void store_words(uint32_t* p, U words) { __builtin_memcpy(p, &words, sizeof words); }

void philox_words(uint64_t seed, const uint32_t counter[4], uint32_t* words) {
  const PhiloxKeys keys = philox_keys(seed);
  Lanes::wide state[4];
  for (int i = 0; i < 4; ++i) state[i] = Lanes::broadcast(counter[i]);
  philox<Lanes>(keys, state);
  for (int i = 0; i < 4; ++i) store_words(words + i * Lanes::width, Lanes::words(state[i]));
}

void random_block_words(uint64_t seed, uint64_t block, uint32_t step, Stream stream, uint32_t* words) {
  const PhiloxKeys keys = philox_keys(seed);
  U drawn[4];
  random_words<Lanes>(keys, block, step, stream, drawn);
  F moved[4];  // the bits travel as floats through the transpose that puts elements in order
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&moved[i], &drawn[i], sizeof moved[i]);
  Lanes::interleave(moved);
  for (int i = 0; i < 4; ++i) __builtin_memcpy(words + i * Lanes::width, &moved[i], sizeof moved[i]);
}

#define GMM_EACH_VECTOR for (int64_t i = 0; i < count; i += Lanes::width)

void count_leading_zeros(const uint32_t* a, uint32_t* result, int64_t count) {
  GMM_EACH_VECTOR store_words(result + i, Lanes::count_leading_zeros(load_words(a + i)));
}

void normalize(const uint32_t* a, uint32_t* result, int64_t count) {
  GMM_EACH_VECTOR {
    const U word = load_words(a + i);
    store_words(result + i, Lanes::shift_left_mod32(word, Lanes::count_leading_zeros(word)));
  }
}

void times_four_plus_two(const uint32_t* a, uint32_t* result, int64_t count) {
  GMM_EACH_VECTOR store_words(result + i, Lanes::times_four_plus_two(load_words(a + i)));
}

void signed_to_float(const uint32_t* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::signed_to_float(load_words(a + i)));
}

void fma(const float* a, const float* b, const float* c, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::fma(Lanes::load(a + i), Lanes::load(b + i), Lanes::load(c + i)));
}

void mul(const float* a, const float* b, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::mul(Lanes::load(a + i), Lanes::load(b + i)));
}

void sub(const float* a, const float* b, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::sub(Lanes::load(a + i), Lanes::load(b + i)));
}

void sqrt(const float* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::sqrt(Lanes::load(a + i)));
}

void at_least(const float* value, const float* low, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::at_least(Lanes::load(value + i), Lanes::load(low + i)));
}

void at_most(const float* value, const float* high, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::at_most(Lanes::load(value + i), Lanes::load(high + i)));
}

void flip_sign_by_bit31(const float* a, const uint32_t* word, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::flip_sign_by_bit31(Lanes::load(a + i), load_words(word + i)));
}

void select_by_bit30(const uint32_t* word, const float* yes, const float* no, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(
      result + i, Lanes::select(Lanes::bit30(load_words(word + i)), Lanes::load(yes + i), Lanes::load(no + i)));
}

void load_bfloat16(const uint16_t* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::load_bfloat16(a + i));
}

void store_bfloat16(const float* a, uint16_t* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store_bfloat16(result + i, Lanes::load(a + i));
}

void load_float16(const uint16_t* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::load_float16(a + i));
}

void store_float16(const float* a, uint16_t* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store_float16(result + i, Lanes::load(a + i));
}

void radius(const uint32_t* word, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, Lanes::sqrt(minus_two_log<Lanes>(load_words(word + i))));
}

void cos_sin_pair(const uint32_t* word, float* cosine, float* sine, int64_t count) {
  GMM_EACH_VECTOR {
    F c, s;
    cos_sin<Lanes>(load_words(word + i), c, s);
    Lanes::store(cosine + i, c);
    Lanes::store(sine + i, s);
  }
}

void logarithms(const float* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, logarithm<Lanes>(Lanes::load(a + i)));
}

void exponentials(const float* a, float* result, int64_t count) {
  GMM_EACH_VECTOR Lanes::store(result + i, exponential<Lanes>(Lanes::load(a + i)));
}

#undef GMM_EACH_VECTOR

void logarithms64(const double* a, double* result, int64_t count) {
  for (int64_t i = 0; i < count; ++i) result[i] = logarithm<DoubleLanes>(a[i]);
}

void exponentials64(const double* a, double* result, int64_t count) {
  for (int64_t i = 0; i < count; ++i) result[i] = exponential<DoubleLanes>(a[i]);
}

constexpr LaneFunctions functions_named(const char* name) {
  return {name,
          Lanes::width,
          philox_words,
          random_block_words,
          count_leading_zeros,
          normalize,
          times_four_plus_two,
          signed_to_float,
          fma,
          mul,
          sub,
          sqrt,
          at_least,
          at_most,
          flip_sign_by_bit31,
          select_by_bit30,
          load_bfloat16,
          store_bfloat16,
          load_float16,
          store_float16,
          radius,
          cos_sin_pair,
          logarithms,
          exponentials,
          logarithms64,
          exponentials64};
}

}  // namespace
