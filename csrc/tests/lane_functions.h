// The lanes' primitives as functions over arrays, one table for each instruction set, so that a test compiled for any
// processor can call all that this processor has.
#pragma once

#include <vector>

#include "gmmkernel/philox.h"

// Counts of elements are multiples of `width`.
struct LaneFunctions {
  const char* name;
  int width;

  // The four random words of one counter, [4][width]: every lane holds the same block.
  void (*philox)(uint64_t seed, const uint32_t counter[4], uint32_t* words);
  // Words of `width` consecutive blocks, in the order of elements: [width][4].
  void (*random_words)(uint64_t seed, uint64_t block, uint32_t step, gmmkernel::Stream stream, uint32_t* words);

  void (*count_leading_zeros)(const uint32_t* a, uint32_t* result, int64_t count);
  void (*normalize)(const uint32_t* a, uint32_t* result, int64_t count);  // a << (leading zeros mod 32)
  void (*times_four_plus_two)(const uint32_t* a, uint32_t* result, int64_t count);
  void (*signed_to_float)(const uint32_t* a, float* result, int64_t count);

  void (*fma)(const float* a, const float* b, const float* c, float* result, int64_t count);
  void (*mul)(const float* a, const float* b, float* result, int64_t count);
  void (*sub)(const float* a, const float* b, float* result, int64_t count);
  void (*sqrt)(const float* a, float* result, int64_t count);
  void (*at_least)(const float* value, const float* low, float* result, int64_t count);
  void (*at_most)(const float* value, const float* high, float* result, int64_t count);
  void (*flip_sign_by_bit31)(const float* a, const uint32_t* word, float* result, int64_t count);
  void (*select_by_bit30)(const uint32_t* word, const float* yes, const float* no, float* result, int64_t count);

  void (*load_bfloat16)(const uint16_t* a, float* result, int64_t count);
  void (*store_bfloat16)(const float* a, uint16_t* result, int64_t count);
  void (*load_float16)(const uint16_t* a, float* result, int64_t count);
  void (*store_float16)(const float* a, uint16_t* result, int64_t count);

  void (*radius)(const uint32_t* word, float* result, int64_t count);
  void (*cos_sin)(const uint32_t* word, float* cosine, float* sine, int64_t count);

  void (*logarithm)(const float* a, float* result, int64_t count);
  void (*exponential)(const float* a, float* result, int64_t count);
  // By DoubleLanes, as this instruction set's compiler options make them.
  void (*logarithm64)(const double* a, double* result, int64_t count);
  void (*exponential64)(const double* a, double* result, int64_t count);
};

const LaneFunctions& portable_lane_functions();
#if defined(GMM_X86)
const LaneFunctions& avx2_lane_functions();
const LaneFunctions& avx512_lane_functions();
#endif

// Those that this processor can run, the portable ones first.
std::vector<const LaneFunctions*> available_lane_functions();
