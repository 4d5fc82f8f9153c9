"""Gradients of the step's tensors in Triton: one program for each tile of one sample.

gmmkernel/backends/reference/backward.py is the specification; tables.py has the gradients of tables.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import multiply_add
from gmmkernel.backends.triton.kernel import (
    CLIP_MAX,
    CLIP_MIN,
    COLUMNS,
    EPS_OUTPUT,
    EPS_SAMPLE,
    GUIDANCE,
    HISTORY_0,
    HISTORY_1,
    HISTORY_2,
    HISTORY_3,
    OUTPUT,
    SAMPLE,
    X0,
    X0_OUTPUT,
    X0_SAMPLE,
    kernel,
)
from gmmkernel.backends.triton.step import index_of, load, store


@triton.jit
def flow_back(c, x, o, grad, more, PREDICTION: tl.constexpr):
    """Return x0, and gradients: of x0 before clipping, of the two bounds, of the sample and of the guided output.

    `c` is the sample's row of coefficients; `x` and `o` matter only where it clips. `more` is the gradient of the
    prediction that PREDICTION says: 0 none, 1 x0, 2 epsilon, 3 model output, 4 mean, which is part
    of `grad` already.
    """
    x0_sample, x0_output = tl.load(c + X0_SAMPLE), tl.load(c + X0_OUTPUT)
    low, high = tl.load(c + CLIP_MIN), tl.load(c + CLIP_MAX)
    x0 = multiply_add(x0_output, o, x0_sample * x)
    below = x0 < low
    x0 = tl.where(below, low, x0)
    above = x0 > high
    x0 = tl.where(above, high, x0)

    of_clipped = tl.load(c + X0) * grad
    if PREDICTION == 1:
        of_clipped += more
    of_high = tl.where(above, of_clipped, 0.0)
    not_above = tl.where(above, 0.0, of_clipped)
    of_low = tl.where(below, not_above, 0.0)
    of_x0 = tl.where(below, 0.0, not_above)

    of_output = multiply_add(x0_output, of_x0, tl.load(c + OUTPUT) * grad)
    of_x = multiply_add(x0_sample, of_x0, tl.load(c + SAMPLE) * grad)
    if PREDICTION == 3:
        of_output += more
    if PREDICTION == 2:
        of_output = multiply_add(tl.load(c + EPS_OUTPUT), more, of_output)
        of_x = multiply_add(tl.load(c + EPS_SAMPLE), more, of_x)
    return x0, of_x0, of_low, of_high, of_x, of_output


@triton.jit
def place_of_grad(sample, grads):
    """Return where a loss's gradient of this program's tile is: each sample has one, or each of its tiles."""
    return sample * grads + tl.where(grads == 1, 0, tl.program_id(0))


@triton.jit
def store_history_gradient(
    target, coefficient, place, element, inside, grad, none, PTX: tl.constexpr, WHOLE: tl.constexpr
):
    """Write the gradient of a stored prediction, where it is wanted."""
    if target is not None:
        store(target + place, element, inside, unless(none, tl.load(coefficient) * grad), PTX, WHOLE)


@triton.jit
def unless(none, gradient):
    """Return a gradient, or 0 where the sample has no part in the loss, though it may be NaN itself."""
    if none is not None:
        gradient = tl.where(none, 0.0, gradient)
    return gradient


@kernel
def step_backward_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    grad, grad_prediction,
    grad_x, grad_output, grad_uncond,  # contiguous
    grad_history0, grad_history1, grad_history2, grad_history3,
    coefficients,  # [S, 16]
    rows, steps,  # int64 [B]
    of_density,  # [B], or [B, tiles], a loss's gradients of log-densities: where that is 0, there is no part in it
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    grad_stride: tl.int64, grad_prediction_stride: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    grads: tl.int64,  # for each sample: 1, or as many as it has tiles
    elements: tl.int64,
    first_sample: tl.int64,
    TILE: tl.constexpr,
    PREDICTION: tl.constexpr,  # whose gradient `grad_prediction` is
    WHOLE: tl.constexpr,  # full tiles, everything aligned
    PTX: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of one sample's tensors; programs are numbered (tile, sample)."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # of the arithmetic
    sample = first_sample + tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = (row >= 0) & (row < coefficient_rows) & (step >= 0) & (step <= 0xFFFFFFFF)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS

    g = load(grad + sample * grad_stride, element, inside, T, WHOLE)
    g = tl.where(valid, g, float("nan"))  # which makes every gradient of the sample NaN
    more = g
    if PREDICTION > 0:
        more = load(grad_prediction + sample * grad_prediction_stride, element, inside, T, WHOLE)
    if PREDICTION == 4:
        g = g + more
    # Without bounds nothing depends on what x0 was.
    sample_x, o = tl.zeros([TILE], T), tl.zeros([TILE], T)
    if (tl.load(c + CLIP_MIN) != float("-inf")) | (tl.load(c + CLIP_MAX) != float("inf")):
        sample_x = load(x + sample * x_stride, element, inside, T, WHOLE)
        o = load(output + sample * output_stride, element, inside, T, WHOLE)
        if uncond is not None:
            u = load(uncond + sample * uncond_stride, element, inside, T, WHOLE)
            o = multiply_add(tl.load(c + GUIDANCE), o - u, u)
    _, _, _, _, of_x, of_output = flow_back(c, sample_x, o, g, more, PREDICTION)

    none = None
    if of_density is not None:
        none = valid & (tl.load(of_density + place_of_grad(sample, grads)) == 0)
    place = sample * elements
    if grad_x is not None:
        store(grad_x + place, element, inside, unless(none, of_x), PTX, WHOLE)
    of_conditional = of_output
    if uncond is not None:
        of_conditional = tl.load(c + GUIDANCE) * of_output
    if grad_output is not None:
        store(grad_output + place, element, inside, unless(none, of_conditional), PTX, WHOLE)
    if grad_uncond is not None:
        store(grad_uncond + place, element, inside, unless(none, of_output - of_conditional), PTX, WHOLE)
    store_history_gradient(grad_history0, c + HISTORY_0, place, element, inside, g, none, PTX, WHOLE)
    store_history_gradient(grad_history1, c + HISTORY_1, place, element, inside, g, none, PTX, WHOLE)
    store_history_gradient(grad_history2, c + HISTORY_2, place, element, inside, g, none, PTX, WHOLE)
    store_history_gradient(grad_history3, c + HISTORY_3, place, element, inside, g, none, PTX, WHOLE)
