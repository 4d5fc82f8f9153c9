// Noise added to a training sample, and the loss of S2-DM, elementwise.
// gmmkernel/backends/reference/training.py is the specification.
#pragma once

#include "gmmkernel/lanes_scalar.h"

namespace gmmkernel {

// A row of the training table; T is float, or double where the sample is float64.
template <class T>
struct TrainingRow {
  T signal, noise, eps_sample, eps_output;
  T weight, skip_weight, skip_scale, skip_noise, skip_fresh;

  GMM_METHOD bool reads_sample() const { return eps_sample != 0; }
  GMM_METHOD bool skips() const { return skip_weight != 0; }
  GMM_METHOD bool draws_fresh() const { return skips() && skip_fresh != 0; }
};

constexpr int training_columns = 9;
static_assert(sizeof(TrainingRow<float>) == training_columns * sizeof(float), "a row is its columns and nothing else");

template <class Lanes, class T>
GMM_INLINE typename Lanes::real noised(const TrainingRow<T>& row, typename Lanes::real x0, typename Lanes::real noise) {
  return Lanes::fma(Lanes::splat(row.noise), noise, Lanes::mul(Lanes::splat(row.signal), x0));
}

// The noise that an output stands for; where the row reads the sample, its part comes on top.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real noise_of_output(const TrainingRow<T>& row, typename Lanes::real output) {
  return Lanes::mul(Lanes::splat(row.eps_output), output);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real add_noise_of_sample(const TrainingRow<T>& row, typename Lanes::real sample,
                                                    typename Lanes::real epsilon) {
  return Lanes::fma(Lanes::splat(row.eps_sample), sample, epsilon);
}

// What the second target has of the noise in the sample; where the row draws fresh noise, that comes on top.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real skip_target(const TrainingRow<T>& row, typename Lanes::real noise) {
  return Lanes::mul(Lanes::splat(row.skip_noise), noise);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real add_fresh_noise(const TrainingRow<T>& row, typename Lanes::real fresh,
                                                typename Lanes::real target) {
  return Lanes::fma(Lanes::splat(row.skip_fresh), fresh, target);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real skip_residual(const TrainingRow<T>& row, typename Lanes::real target,
                                              typename Lanes::real epsilon) {
  return Lanes::fma(Lanes::splat(-row.skip_scale), epsilon, target);
}

// The two squares of the loss, from how far the prediction is off each target.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real own_term(const TrainingRow<T>& row, typename Lanes::real own) {
  return Lanes::mul(Lanes::mul(Lanes::splat(row.weight), own), own);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real add_skip_term(const TrainingRow<T>& row, typename Lanes::real skip,
                                              typename Lanes::real term) {
  return Lanes::fma(Lanes::mul(Lanes::splat(row.skip_weight), skip), skip, term);
}

// Their derivatives: half of that of a term with respect to the prediction, negated.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real weighted_own(const TrainingRow<T>& row, typename Lanes::real own) {
  return Lanes::mul(Lanes::splat(row.weight), own);
}

template <class Lanes, class T>
GMM_INLINE typename Lanes::real add_weighted_skip(const TrainingRow<T>& row, typename Lanes::real skip,
                                                  typename Lanes::real residual) {
  return Lanes::fma(Lanes::splat(row.skip_weight * row.skip_scale), skip, residual);
}

// What the residual of every element is multiplied with, but for the row's EPS_OUTPUT or EPS_SAMPLE.
template <class T>
GMM_INLINE T residual_scale(T grad, int64_t elements) {
  return grad * (T(-2) / static_cast<T>(elements));
}

}  // namespace gmmkernel
