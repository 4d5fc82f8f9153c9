// How gradients flow back through one step, elementwise.
// gmmkernel/backends/reference/backward.py is the specification.
#pragma once

#include "gmmkernel/transition.h"

namespace gmmkernel {

// What one element of the next sample's gradient, and of a prediction's, becomes on its way back.
template <class Lanes>
struct Flow {
  typename Lanes::real x0;                   // clipped, as in the step
  typename Lanes::real grad_x0;              // of x0 before clipping
  typename Lanes::real grad_low, grad_high;  // what a bound took instead
  typename Lanes::real grad_x;
  typename Lanes::real grad_output;  // of the guided output
};

// The values of gmm_prediction.
enum class PredictionKind : int32_t { none = 0, x0 = 1, epsilon = 2, model_output = 3, mean = 4 };

// `x` and `output` matter only where the row clips.
template <class Lanes, class T>
GMM_INLINE Flow<Lanes> flow_back(const Row<T>& row, typename Lanes::real x, typename Lanes::real output,
                                 typename Lanes::real grad, PredictionKind kind, typename Lanes::real grad_prediction) {
  using F = typename Lanes::real;
  const F zero = Lanes::splat(0), low = Lanes::splat(row.clip_min), high = Lanes::splat(row.clip_max);
  const F free = Lanes::fma(Lanes::splat(row.x0_output), output, Lanes::mul(Lanes::splat(row.x0_sample), x));
  const typename Lanes::mask below = Lanes::less(free, low);
  const F raised = Lanes::select(below, low, free);
  const typename Lanes::mask above = Lanes::less(high, raised);
  Flow<Lanes> flow;
  flow.x0 = Lanes::select(above, high, raised);

  F grad_clipped = Lanes::mul(Lanes::splat(row.x0), grad);
  if (kind == PredictionKind::x0) grad_clipped = Lanes::add(grad_clipped, grad_prediction);
  flow.grad_high = Lanes::select(above, grad_clipped, zero);
  const F not_above = Lanes::select(above, zero, grad_clipped);
  flow.grad_low = Lanes::select(below, not_above, zero);
  flow.grad_x0 = Lanes::select(below, zero, not_above);

  flow.grad_output = Lanes::fma(Lanes::splat(row.x0_output), flow.grad_x0, Lanes::mul(Lanes::splat(row.output), grad));
  flow.grad_x = Lanes::fma(Lanes::splat(row.x0_sample), flow.grad_x0, Lanes::mul(Lanes::splat(row.sample), grad));
  if (kind == PredictionKind::model_output) flow.grad_output = Lanes::add(flow.grad_output, grad_prediction);
  if (kind == PredictionKind::epsilon) {
    flow.grad_output = Lanes::fma(Lanes::splat(row.eps_output), grad_prediction, flow.grad_output);
    flow.grad_x = Lanes::fma(Lanes::splat(row.eps_sample), grad_prediction, flow.grad_x);
  }
  return flow;
}

}  // namespace gmmkernel
