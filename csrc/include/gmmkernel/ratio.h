// How the density of a transition changes with the model's output, elementwise.
// gmmkernel/backends/reference/ratio.py is the specification and explains why it is made of the outputs' difference.
#pragma once

#include "gmmkernel/backward.h"

namespace gmmkernel {

// 1 / sigma; NaN where there is no density.
template <class T>
GMM_INLINE T inverse_std(T sigma) {
  return sigma > 0 ? T(1) / sigma : static_cast<T>(__builtin_nanf(""));
}

// The guided outputs of two transitions, and their difference.
template <class Lanes>
struct OutputPair {
  typename Lanes::real output, old_output, change;
};

template <class Lanes, class T>
GMM_INLINE OutputPair<Lanes> guide_pair(const Row<T>& row, typename Lanes::real uncond, typename Lanes::real old_uncond,
                                        const OutputPair<Lanes>& conditional) {
  const typename Lanes::real of_uncond = Lanes::sub(uncond, old_uncond);
  return {guide<Lanes>(row, uncond, conditional.output), guide<Lanes>(row, old_uncond, conditional.old_output),
          guide<Lanes>(row, of_uncond, conditional.change)};
}

// Whether x0 is clipped: 1 or 0.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real is_clipped(const Row<T>& row, typename Lanes::real x, typename Lanes::real output) {
  using F = typename Lanes::real;
  const F low = Lanes::splat(row.clip_min), high = Lanes::splat(row.clip_max), one = Lanes::splat(1);
  const F free = Lanes::fma(Lanes::splat(row.x0_output), output, Lanes::mul(Lanes::splat(row.x0_sample), x));
  const typename Lanes::mask below = Lanes::less(free, low);
  const F raised = Lanes::select(below, low, free);
  return Lanes::select(Lanes::less(high, raised), one, Lanes::select(below, one, Lanes::splat(0)));
}

// What the mean changes by.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real change_of_mean(const Row<T>& row, typename Lanes::real x,
                                               const OutputPair<Lanes>& pair) {
  using F = typename Lanes::real;
  F of_x0 = Lanes::mul(Lanes::splat(row.x0_output), pair.change);
  if (clips(row)) {
    const F clipped = Lanes::sub(predict_x0<Lanes>(row, x, pair.output), predict_x0<Lanes>(row, x, pair.old_output));
    const F either = Lanes::add(is_clipped<Lanes>(row, x, pair.output), is_clipped<Lanes>(row, x, pair.old_output));
    of_x0 = Lanes::select(Lanes::less(Lanes::splat(0), either), clipped, of_x0);
  }
  return Lanes::fma(Lanes::splat(row.x0), of_x0, Lanes::mul(Lanes::splat(row.output), pair.change));
}

// Both in units of the standard deviation: what the mean changes by, and how far the sample is from the old one.
template <class Lanes>
GMM_INLINE typename Lanes::real ratio_term(typename Lanes::real change, typename Lanes::real distance) {
  return Lanes::mul(change, Lanes::fma(Lanes::splat(-0.5f), change, distance));
}

template <class Lanes>
GMM_INLINE typename Lanes::real divergence_term(typename Lanes::real change) {
  return Lanes::mul(Lanes::mul(Lanes::splat(0.5f), change), change);
}

// The gradients of both means and of the sample, from those of the log-ratio and of the divergence.
template <class Lanes>
struct RatioFlow {
  typename Lanes::real mean, old_mean, prev;
};

template <class Lanes, class T>
GMM_INLINE RatioFlow<Lanes> ratio_back(typename Lanes::real change, typename Lanes::real distance, T of_ratio,
                                       T of_divergence, T inverse) {
  using F = typename Lanes::real;
  const F ratio = Lanes::splat(of_ratio);
  const F of_change = Lanes::fma(Lanes::splat(of_divergence - of_ratio), change, Lanes::mul(ratio, distance));
  RatioFlow<Lanes> flow;
  flow.mean = Lanes::mul(of_change, Lanes::splat(inverse));
  flow.prev = Lanes::mul(Lanes::mul(ratio, change), Lanes::splat(inverse));
  flow.old_mean = Lanes::mul(Lanes::splat(-1), Lanes::add(flow.mean, flow.prev));
  return flow;
}

// The gradient of the sample that both transitions start from: the outputs' part is not in it, but for what clipping x0
// lets through on one side only.
template <class Lanes, class T>
GMM_INLINE typename Lanes::real shared_back(const Row<T>& row, typename Lanes::real x, const OutputPair<Lanes>& pair,
                                            const RatioFlow<Lanes>& flow) {
  using F = typename Lanes::real;
  const F grad = Lanes::mul(Lanes::splat(-1), flow.prev);
  const F shared = flow_back<Lanes>(row, x, pair.old_output, grad, PredictionKind::none, grad).grad_x;
  if (!clips(row)) return shared;
  const F passed = Lanes::sub(is_clipped<Lanes>(row, x, pair.old_output), is_clipped<Lanes>(row, x, pair.output));
  const F of_x0 = Lanes::mul(passed, Lanes::mul(Lanes::splat(row.x0), flow.mean));
  const F changed = Lanes::fma(Lanes::splat(row.x0_sample), of_x0, shared);
  return Lanes::select(Lanes::less(Lanes::splat(0), Lanes::mul(passed, passed)), changed, shared);
}

}  // namespace gmmkernel
