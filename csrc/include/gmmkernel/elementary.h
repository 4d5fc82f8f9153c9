// Natural logarithm and exponential over lanes, float32 or float64; every multiply-add explicit. The reference,
// gmmkernel/backends/reference/elementary.py, explains the steps; the coefficients come from tools/fit_elementary.py.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

// coefficients from the lowest degree up
template <class Lanes, class Number>
GMM_INLINE typename Lanes::real horner(typename Lanes::real, Number last) {
  return Lanes::splat(last);
}
template <class Lanes, class Number, class... Numbers>
GMM_INLINE typename Lanes::real horner(typename Lanes::real x, Number first, Numbers... higher) {
  return Lanes::fma(horner<Lanes>(x, higher...), x, Lanes::splat(first));
}

struct Float32Elementary {
  static constexpr float infinity = __builtin_inff();
  static constexpr float nan = __builtin_nanf("");
  static constexpr float smallest_normal = 0x1p-126f;
  static constexpr float subnormal_scale = 0x1p23f;
  static constexpr float subnormal_exponent = 23;
  static constexpr float to_integer = 0x1.8p23f;
  static constexpr float ln_2_high = 0x1.62e4p-1f;
  static constexpr float ln_2_low = 0x1.7f7d1cp-20f;
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float exp_low = -104;
  static constexpr float exp_high = 89;

  template <class Lanes>
  GMM_INLINE typename Lanes::real log_p(typename Lanes::real f) {
    return horner<Lanes>(f, -0x1p-1f, 0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a01cp-3f, -0x1.54728ap-3f, 0x1.22d92ep-3f,
                         -0x1.0d8242p-3f, 0x1.055ec6p-3f, -0x1.38c9dep-4f);
  }
  template <class Lanes>
  GMM_INLINE typename Lanes::real exp_p(typename Lanes::real r) {
    return horner<Lanes>(r, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558aap-5f, 0x1.12396ep-7f, 0x1.6a524ep-10f);
  }
};

struct Float64Elementary {
  static constexpr double infinity = __builtin_inf();
  static constexpr double nan = __builtin_nan("");
  static constexpr double smallest_normal = 0x1p-1022;
  static constexpr double subnormal_scale = 0x1p52;
  static constexpr double subnormal_exponent = 52;
  static constexpr double to_integer = 0x1.8p52;
  static constexpr double ln_2_high = 0x1.62e42fefap-1;
  static constexpr double ln_2_low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double exp_low = -746;
  static constexpr double exp_high = 710;

  template <class Lanes>
  GMM_INLINE double log_p(double f) {
    return horner<Lanes>(f, -0x1p-1, 0x1.5555555555556p-2, -0x1.fffffffffffe7p-3, 0x1.999999999901p-3,
                         -0x1.5555555558074p-3, 0x1.24924925376dap-3, -0x1.fffffffe0374fp-4, 0x1.c71c713ccca51p-4,
                         -0x1.9999999711ba3p-4, 0x1.745d343946656p-4, -0x1.555574cd5f5abp-4, 0x1.3b105762c04e6p-4,
                         -0x1.248bbb2b73ddp-4, 0x1.1148d6d97be33p-4, -0x1.009d9ede13925p-4, 0x1.de2b25a838da5p-5,
                         -0x1.b7c4ffe0c77fep-5, 0x1.b81071d2b9325p-5, -0x1.f6223b4ebae32p-5, 0x1.d03182232bb2p-5,
                         -0x1.9a9a68c44703ep-6);
  }
  template <class Lanes>
  GMM_INLINE double exp_p(double r) {
    return horner<Lanes>(r, 0x1p-1, 0x1.5555555555557p-3, 0x1.5555555555556p-5, 0x1.11111111100dcp-7,
                         0x1.6c16c16c162d4p-10, 0x1.a01a01abe7fe1p-13, 0x1.a01a01a6d889cp-16, 0x1.71de0231960ebp-19,
                         0x1.27e4db646b17ep-22, 0x1.af4de97ca4194p-26, 0x1.1f730349868cep-29);
  }
};

template <class Lanes>
struct Elementary : Float32Elementary {};
template <>
struct Elementary<DoubleLanes> : Float64Elementary {};

// ln x: -inf at zeros, NaN below them, infinity and NaN unchanged.
template <class Lanes>
GMM_INLINE typename Lanes::real logarithm(typename Lanes::real x) {
  using F = typename Lanes::real;
  using C = Elementary<Lanes>;
  const typename Lanes::mask subnormal = Lanes::less(x, Lanes::splat(C::smallest_normal));
  F e, m;
  Lanes::split(Lanes::select(subnormal, Lanes::mul(x, Lanes::splat(C::subnormal_scale)), x), e, m);
  e = Lanes::select(subnormal, Lanes::sub(e, Lanes::splat(C::subnormal_exponent)), e);

  const F f = Lanes::sub(m, Lanes::splat(1));
  const F whole = Lanes::mul(e, Lanes::splat(C::ln_2_high));
  const F first = Lanes::add(whole, f);
  const F lost = Lanes::sub(f, Lanes::sub(first, whole));
  const F rest = Lanes::fma(e, Lanes::splat(C::ln_2_low), lost);
  F result = Lanes::add(first, Lanes::fma(Lanes::mul(f, f), C::template log_p<Lanes>(f), rest));

  const F zero = Lanes::splat(0);
  result = Lanes::select(Lanes::less(zero, x), result, Lanes::splat(-C::infinity));
  result = Lanes::select(Lanes::less(x, zero), Lanes::splat(C::nan), result);
  return Lanes::select(Lanes::less(x, Lanes::splat(C::infinity)), result, x);
}

// e^x: infinity where it is too large, through the subnormals down to 0, NaN for NaN.
template <class Lanes>
GMM_INLINE typename Lanes::real exponential(typename Lanes::real x) {
  using F = typename Lanes::real;
  using C = Elementary<Lanes>;
  const F to_integer = Lanes::splat(C::to_integer);
  x = Lanes::at_most(Lanes::at_least(x, Lanes::splat(C::exp_low)), Lanes::splat(C::exp_high));
  const F n = Lanes::sub(Lanes::fma(x, Lanes::splat(C::log2_e), to_integer), to_integer);
  F r = Lanes::fma(n, Lanes::splat(-C::ln_2_high), x);
  r = Lanes::fma(n, Lanes::splat(-C::ln_2_low), r);
  const F p = C::template exp_p<Lanes>(r);
  const F significand = Lanes::add(Lanes::splat(1), Lanes::fma(Lanes::mul(r, r), p, r));
  const F half = Lanes::sub(Lanes::fma(n, Lanes::splat(0.5f), to_integer), to_integer);
  return Lanes::mul(Lanes::mul(significand, Lanes::power_of_two(half)), Lanes::power_of_two(Lanes::sub(n, half)));
}

}  // namespace gmmkernel
