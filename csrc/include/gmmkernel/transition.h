// One sampling step, elementwise, from one row of coefficients; and the choice of the mixture component.
// gmmkernel/backends/reference/transition.py is the specification.
#pragma once

#include "gmmkernel/lanes_scalar.h"
#include "gmmkernel/philox.h"

namespace gmmkernel {

// A row of the coefficient table; T is float, or double where the sample is float64.
template <class T>
struct Row {
  T x0_sample, x0_output, clip_min, clip_max;
  T sample, output, x0, history[4];
  T guidance, sigma, offset;
  T eps_sample, eps_output;
};

constexpr int row_columns = 16;
static_assert(sizeof(Row<float>) == row_columns * sizeof(float), "a row is its columns and nothing else");

// Whether a row's bounds can take anything.
template <class T>
GMM_INLINE bool clips(const Row<T>& row) {
  return !(row.clip_min == -__builtin_huge_val() && row.clip_max == __builtin_huge_val());
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real guide(const Row<T>& row, typename Lanes::real uncond, typename Lanes::real cond) {
  return Lanes::fma(Lanes::splat(row.guidance), Lanes::sub(cond, uncond), uncond);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real predict_x0(const Row<T>& row, typename Lanes::real x, typename Lanes::real output) {
  const typename Lanes::real x0 =
      Lanes::fma(Lanes::splat(row.x0_output), output, Lanes::mul(Lanes::splat(row.x0_sample), x));
  return Lanes::at_most(Lanes::at_least(x0, Lanes::splat(row.clip_min)), Lanes::splat(row.clip_max));
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real predict_epsilon(const Row<T>& row, typename Lanes::real x,
                                                typename Lanes::real output) {
  return Lanes::fma(Lanes::splat(row.eps_output), output, Lanes::mul(Lanes::splat(row.eps_sample), x));
}

// The mean before history and offset, which are added by further fmas in that order.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real predict_mean(const Row<T>& row, typename Lanes::real x, typename Lanes::real output,
                                             typename Lanes::real x0) {
  typename Lanes::real mean = Lanes::mul(Lanes::splat(row.x0), x0);
  mean = Lanes::fma(Lanes::splat(row.output), output, mean);
  return Lanes::fma(Lanes::splat(row.sample), x, mean);
}

// How many values of the ascending cdf the word reaches, by bisection.
GMM_INLINE int64_t count_reached(const int64_t* cdf, int64_t count, uint32_t word) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(word) >= cdf[middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

GMM_INLINE int64_t choose_component(const PhiloxKeys& keys, uint32_t step, const int64_t* cdf, int64_t components) {
  uint32_t words[4];
  random_words<ScalarLanes>(keys, 0, step, Stream::component, words);
  return count_reached(cdf, components - 1, words[0]);
}

}  // namespace gmmkernel
