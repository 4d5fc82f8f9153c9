// Sixteen lanes of AVX-512 (F, BW, CD, DQ, VL). The names are ScalarLanes'.
#pragma once

#include <immintrin.h>

#include "gmmkernel/config.h"

namespace gmmkernel {

struct Avx512Lanes {
  static constexpr int width = 16;

  using real = __m512;
  using u32 = __m512i;
  using mask = __mmask16;

  // Philox state sits in the low halves of 64-bit lanes, so that one multiplication gives both halves of a product;
  // what the upper halves hold never matters. `even` feeds the even 32-bit lanes, `odd` the odd ones.
  struct wide {
    __m512i even, odd;
  };
  using product = wide;

  GMM_INLINE wide broadcast(uint32_t word) {
    const __m512i all = _mm512_set1_epi32(static_cast<int>(word));
    return {all, all};
  }
  // Lane l takes block 4 (l % 4) + l / 4: after `interleave`, elements are in order.
  GMM_INLINE wide block_counters(uint32_t first) {
    const __m512i base = _mm512_set1_epi64(first);
    return {_mm512_add_epi64(base, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11)),
            _mm512_add_epi64(base, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15))};
  }
  GMM_INLINE product multiply_wide(wide a, uint32_t constant) {
    const __m512i factor = _mm512_set1_epi64(constant);
    return {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
  }
  GMM_INLINE wide high(product p) { return {_mm512_srli_epi64(p.even, 32), _mm512_srli_epi64(p.odd, 32)}; }
  GMM_INLINE wide low(product p) { return p; }
  GMM_INLINE wide xor3(wide a, wide b, uint32_t key) {
    const __m512i k = _mm512_set1_epi32(static_cast<int>(key));
    return {_mm512_ternarylogic_epi32(a.even, b.even, k, 0x96), _mm512_ternarylogic_epi32(a.odd, b.odd, k, 0x96)};
  }
  GMM_INLINE u32 words(wide w) { return _mm512_mask_shuffle_epi32(w.even, 0xAAAA, w.odd, _MM_PERM_CCAA); }

  GMM_INLINE real splat(float value) { return _mm512_set1_ps(value); }
  GMM_INLINE real fma(real a, real b, real c) { return _mm512_fmadd_ps(a, b, c); }
  GMM_INLINE real mul(real a, real b) { return _mm512_mul_ps(a, b); }
  GMM_INLINE real add(real a, real b) { return _mm512_add_ps(a, b); }
  GMM_INLINE real sub(real a, real b) { return _mm512_sub_ps(a, b); }
  GMM_INLINE real div(real a, real b) { return _mm512_div_ps(a, b); }
  GMM_INLINE real sqrt(real a) { return _mm512_sqrt_ps(a); }
  GMM_INLINE real signed_to_float(u32 a) { return _mm512_cvtepi32_ps(a); }
  GMM_INLINE u32 count_leading_zeros(u32 a) { return _mm512_lzcnt_epi32(a); }
  // A count of 32 comes only with the word 0, which any shift leaves 0.
  GMM_INLINE u32 shift_left_mod32(u32 a, u32 count) { return _mm512_sllv_epi32(a, count); }
  GMM_INLINE u32 times_four_plus_two(u32 a) { return _mm512_or_si512(_mm512_slli_epi32(a, 2), _mm512_set1_epi32(2)); }
  GMM_INLINE real flip_sign_by_bit31(real a, u32 word) {
    // a ^ (word & sign), one three-input operation
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(a), word, _mm512_set1_epi32(INT32_MIN), 0x78));
  }
  GMM_INLINE mask bit30(u32 word) { return _mm512_test_epi32_mask(word, _mm512_set1_epi32(0x40000000)); }
  GMM_INLINE mask less(real a, real b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  GMM_INLINE real select(mask m, real yes, real no) { return _mm512_mask_blend_ps(m, no, yes); }
  GMM_INLINE void split(real a, real& exponent, real& significand) {
    const __m512i root = _mm512_set1_epi32(0x3F3504F3);
    const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(a), root);
    exponent = _mm512_cvtepi32_ps(_mm512_srai_epi32(above, 23));
    const __m512i fraction = _mm512_and_si512(above, _mm512_set1_epi32(0x7FFFFF));
    significand = _mm512_castsi512_ps(_mm512_add_epi32(fraction, root));
  }
  GMM_INLINE real power_of_two(real n) {
    const __m512 sum = _mm512_add_ps(n, _mm512_set1_ps(0x1.8p23f + 127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(sum), 23));
  }
  // max and min return their second operand when either is NaN or both are zero.
  GMM_INLINE real at_least(real value, real low) { return _mm512_max_ps(low, value); }
  GMM_INLINE real at_most(real value, real high) { return _mm512_min_ps(high, value); }

  // Normals (z0, z1, z2, z3) of each lane's block -> 64 elements in order: a 4x4 transpose inside each quarter.
  GMM_INLINE void interleave(real (&z)[4]) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
    z[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    z[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    z[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    z[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }

  GMM_INLINE real load(const float* p) { return _mm512_loadu_ps(p); }
  GMM_INLINE void store(float* p, real v) { _mm512_storeu_ps(p, v); }
  GMM_INLINE real load_bfloat16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // By integers: the bfloat16 conversion instruction flushes subnormals.
  GMM_INLINE void store_bfloat16(uint16_t* p, real v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i last_kept = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), last_kept);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }
  GMM_INLINE real load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  GMM_INLINE void store_float16(uint16_t* p, real v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace gmmkernel
