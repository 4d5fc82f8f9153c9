// Box-Muller from pairs of random words, with the package's own log, sine and cosine; all float32, every
// multiply-add explicit. The reference, gmmkernel/backends/reference/normal.py, explains the steps; the coefficients
// come from tools/fit_normal.py.
#pragma once

#include "gmmkernel/config.h"

namespace gmmkernel {

// -2 ln u of u = word / 2^32 (0 counts as 1), always at least 2^-31.
template <class Lanes>
GMM_INLINE typename Lanes::real minus_two_log(typename Lanes::u32 word) {
  using F = typename Lanes::real;
  const typename Lanes::u32 zeros = Lanes::count_leading_zeros(word);
  const F g = Lanes::mul(Lanes::signed_to_float(Lanes::shift_left_mod32(word, zeros)), Lanes::splat(-0x1p-31f));
  F q = Lanes::splat(0x1.5a115ap-8f);
  q = Lanes::fma(q, g, Lanes::splat(-0x1.86cd18p-7f));
  q = Lanes::fma(q, g, Lanes::splat(0x1.20b9e2p-6f));
  q = Lanes::fma(q, g, Lanes::splat(-0x1.366036p-8f));
  q = Lanes::fma(q, g, Lanes::splat(0x1.08135ap-6f));
  q = Lanes::fma(q, g, Lanes::splat(0x1.f4581ap-6f));
  q = Lanes::fma(q, g, Lanes::splat(0x1.559a4p-4f));
  q = Lanes::fma(q, g, Lanes::splat(0x1.fffefcp-3f));
  const F minus_2_ln_m = Lanes::fma(Lanes::mul(g, g), q, g);
  return Lanes::fma(Lanes::signed_to_float(zeros), Lanes::splat(0x1.62e43p+0f), minus_2_ln_m);
}

// Cosine and sine of the full turn a word stands for: 30 bits of angle, a sign bit (31) and a swap bit (30).
template <class Lanes>
GMM_INLINE void cos_sin(typename Lanes::u32 word, typename Lanes::real& cosine, typename Lanes::real& sine) {
  using F = typename Lanes::real;
  const F t = Lanes::mul(Lanes::signed_to_float(Lanes::times_four_plus_two(word)), Lanes::splat(0x1p-32f));
  const F t2 = Lanes::mul(t, t);
  F s = Lanes::splat(-0x1.2ccf7ap-8f);
  s = Lanes::fma(s, t2, Lanes::splat(0x1.46599ep-4f));
  s = Lanes::fma(s, t2, Lanes::splat(-0x1.4abba8p-1f));
  s = Lanes::fma(s, t2, Lanes::splat(0x1.243f6ap-1f));
  F c = Lanes::splat(-0x1.4e327cp-6f);
  c = Lanes::fma(c, t2, Lanes::splat(0x1.03aea2p-2f));
  c = Lanes::fma(c, t2, Lanes::splat(-0x1.3bd392p+0f));
  const F sin_t = Lanes::fma(t, s, t);
  const F cos_t = Lanes::flip_sign_by_bit31(Lanes::fma(c, t2, Lanes::splat(1.0f)), word);
  const typename Lanes::mask swap = Lanes::bit30(word);
  cosine = Lanes::select(swap, sin_t, cos_t);
  sine = Lanes::select(swap, cos_t, sin_t);
}

// Two words -> two normals.
template <class Lanes>
GMM_INLINE void two_normals(typename Lanes::u32 word, typename Lanes::u32 angle, typename Lanes::real& first,
                            typename Lanes::real& second) {
  const typename Lanes::real radius = Lanes::sqrt(minus_two_log<Lanes>(word));
  typename Lanes::real cosine, sine;
  cos_sin<Lanes>(angle, cosine, sine);
  first = Lanes::mul(radius, cosine);
  second = Lanes::mul(radius, sine);
}

// Words (w0, w1) -> normals (z0, z1) and (w2, w3) -> (z2, z3).
template <class Lanes>
GMM_INLINE void normals_from_words(const typename Lanes::u32 (&words)[4], typename Lanes::real (&normals)[4]) {
  for (int i = 0; i < 4; i += 2) two_normals<Lanes>(words[i], words[i + 1], normals[i], normals[i + 1]);
}

}  // namespace gmmkernel
