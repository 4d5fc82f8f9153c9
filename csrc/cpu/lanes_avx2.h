// Eight lanes of AVX2 with FMA and F16C. The names are ScalarLanes'.
#pragma once

#include <immintrin.h>

#include "gmmkernel/config.h"

namespace gmmkernel {

struct Avx2Lanes {
  static constexpr int width = 8;

  using real = __m256;
  using u32 = __m256i;
  using mask = __m256;

  // As in Avx512Lanes: one 32-bit state word in the low half of each 64-bit lane.
  struct wide {
    __m256i even, odd;
  };
  using product = wide;

  GMM_INLINE wide broadcast(uint32_t word) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(word));
    return {all, all};
  }
  // Lane l takes block 2 (l % 4) + l / 4.
  GMM_INLINE wide block_counters(uint32_t first) {
    const __m256i base = _mm256_set1_epi64x(first);
    return {_mm256_add_epi64(base, _mm256_setr_epi64x(0, 4, 1, 5)),
            _mm256_add_epi64(base, _mm256_setr_epi64x(2, 6, 3, 7))};
  }
  GMM_INLINE product multiply_wide(wide a, uint32_t constant) {
    const __m256i factor = _mm256_set1_epi64x(constant);
    return {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
  }
  GMM_INLINE wide high(product p) { return {_mm256_srli_epi64(p.even, 32), _mm256_srli_epi64(p.odd, 32)}; }
  GMM_INLINE wide low(product p) { return p; }
  GMM_INLINE wide xor3(wide a, wide b, uint32_t key) {
    const __m256i k = _mm256_set1_epi32(static_cast<int>(key));
    return {_mm256_xor_si256(_mm256_xor_si256(b.even, k), a.even), _mm256_xor_si256(_mm256_xor_si256(b.odd, k), a.odd)};
  }
  GMM_INLINE u32 words(wide w) { return _mm256_blend_epi32(w.even, _mm256_slli_epi64(w.odd, 32), 0xAA); }

  GMM_INLINE real splat(float value) { return _mm256_set1_ps(value); }
  GMM_INLINE real fma(real a, real b, real c) { return _mm256_fmadd_ps(a, b, c); }
  GMM_INLINE real mul(real a, real b) { return _mm256_mul_ps(a, b); }
  GMM_INLINE real add(real a, real b) { return _mm256_add_ps(a, b); }
  GMM_INLINE real sub(real a, real b) { return _mm256_sub_ps(a, b); }
  GMM_INLINE real div(real a, real b) { return _mm256_div_ps(a, b); }
  GMM_INLINE real sqrt(real a) { return _mm256_sqrt_ps(a); }
  GMM_INLINE real signed_to_float(u32 a) { return _mm256_cvtepi32_ps(a); }
  // The exponent of the word as a float gives the position of its top bit. Clearing the bit below the top one first
  // keeps the conversion from rounding up to the next power of two. Words from 2^31 on convert as negative numbers,
  // whose sign bit makes the difference below negative: 0 zeros; the word 0 has exponent 0: 32.
  GMM_INLINE u32 count_leading_zeros(u32 a) {
    const __m256i top = _mm256_andnot_si256(_mm256_srli_epi32(a, 1), a);
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(top)), 23);
    const __m256i zeros = _mm256_sub_epi32(_mm256_set1_epi32(158), exponent);
    return _mm256_min_epi32(_mm256_max_epi32(zeros, _mm256_setzero_si256()), _mm256_set1_epi32(32));
  }
  // A count of 32 comes only with the word 0, which any shift leaves 0.
  GMM_INLINE u32 shift_left_mod32(u32 a, u32 count) { return _mm256_sllv_epi32(a, count); }
  GMM_INLINE u32 times_four_plus_two(u32 a) { return _mm256_or_si256(_mm256_slli_epi32(a, 2), _mm256_set1_epi32(2)); }
  GMM_INLINE real flip_sign_by_bit31(real a, u32 word) {
    return _mm256_xor_ps(a, _mm256_and_ps(_mm256_castsi256_ps(word), _mm256_set1_ps(-0.0f)));
  }
  // A blend looks only at the sign bit, so moving bit 30 there is enough.
  GMM_INLINE mask bit30(u32 word) { return _mm256_castsi256_ps(_mm256_slli_epi32(word, 1)); }
  GMM_INLINE mask less(real a, real b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  GMM_INLINE real select(mask m, real yes, real no) { return _mm256_blendv_ps(no, yes, m); }
  GMM_INLINE void split(real a, real& exponent, real& significand) {
    const __m256i root = _mm256_set1_epi32(0x3F3504F3);
    const __m256i above = _mm256_sub_epi32(_mm256_castps_si256(a), root);
    exponent = _mm256_cvtepi32_ps(_mm256_srai_epi32(above, 23));
    const __m256i fraction = _mm256_and_si256(above, _mm256_set1_epi32(0x7FFFFF));
    significand = _mm256_castsi256_ps(_mm256_add_epi32(fraction, root));
  }
  GMM_INLINE real power_of_two(real n) {
    const __m256 sum = _mm256_add_ps(n, _mm256_set1_ps(0x1.8p23f + 127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(sum), 23));
  }
  // max and min return their second operand when either is NaN or both are zero.
  GMM_INLINE real at_least(real value, real low) { return _mm256_max_ps(low, value); }
  GMM_INLINE real at_most(real value, real high) { return _mm256_min_ps(high, value); }

  // Normals (z0, z1, z2, z3) of each lane's block -> 32 elements in order: a 4x4 transpose inside each half.
  GMM_INLINE void interleave(real (&z)[4]) {
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(z[0], z[1]));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(z[0], z[1]));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(z[2], z[3]));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(z[2], z[3]));
    z[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    z[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    z[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    z[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
  }

  GMM_INLINE real load(const float* p) { return _mm256_loadu_ps(p); }
  GMM_INLINE void store(float* p, real v) { _mm256_storeu_ps(p, v); }
  GMM_INLINE real load_bfloat16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  GMM_INLINE void store_bfloat16(uint16_t* p, real v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i last_kept = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), last_kept);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7FC0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  GMM_INLINE real load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  GMM_INLINE void store_float16(uint16_t* p, real v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace gmmkernel
