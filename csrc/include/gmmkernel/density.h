// The log-density of a transition, elementwise. gmmkernel/backends/reference/density.py is the specification and
// explains why sums over elements are of differences from a Gaussian without offset.
#pragma once

#include "gmmkernel/elementary.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {

constexpr double half_log_2_pi = 0x1.d67f1c864beb5p-1;

// The sample less the mean of a component: a - w delta, or a where the row switches the offset off.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real offset_from(const Row<T>& row, typename Lanes::real a, typename Lanes::real offset) {
  return Lanes::fma(Lanes::splat(-row.offset), offset, a);
}

// b^2 / 2 + log s
template <class Lanes>
GMM_INLINE typename Lanes::real base_term(typename Lanes::real b, typename Lanes::real log_std) {
  return Lanes::fma(Lanes::mul(Lanes::splat(0.5f), b), b, log_std);
}

// (t^2 - b^2) / 2 + log s_k - log s_0
template <class Lanes>
GMM_INLINE typename Lanes::real difference_term(typename Lanes::real t, typename Lanes::real b,
                                                typename Lanes::real log_ratio) {
  return Lanes::fma(Lanes::mul(Lanes::splat(0.5f), Lanes::sub(t, b)), Lanes::add(t, b), log_ratio);
}

// Derivatives of a component's log-density: with respect to its mean, and to its standard deviation.
template <class Lanes>
struct DensityUnits {
  typename Lanes::real mean, std;
};

template <class Lanes>
GMM_INLINE DensityUnits<Lanes> density_units(typename Lanes::real d, typename Lanes::real inverse_std) {
  const typename Lanes::real t = Lanes::mul(d, inverse_std);
  return {Lanes::mul(t, inverse_std), Lanes::mul(Lanes::fma(t, t, Lanes::splat(-1)), inverse_std)};
}

template <class T>
struct OneLane;
template <>
struct OneLane<float> {
  using Lanes = ScalarLanes;
};
template <>
struct OneLane<double> {
  using Lanes = DoubleLanes;
};

// log sum_k exp(level_k) - base - D log(2 pi) / 2, from the parts of the sum.
template <class T>
GMM_INLINE T log_density(T largest, T sum_of_parts, T base, int64_t elements) {
  using L = typename OneLane<T>::Lanes;
  const T total = L::add(largest, logarithm<L>(sum_of_parts));
  return L::fma(-static_cast<T>(elements), static_cast<T>(half_log_2_pi), L::sub(total, base));
}

// Without a mixture.
template <class T>
GMM_INLINE T log_density(T base, int64_t elements) {
  using L = typename OneLane<T>::Lanes;
  return L::fma(-static_cast<T>(elements), static_cast<T>(half_log_2_pi), L::sub(T(0), base));
}

}  // namespace gmmkernel
