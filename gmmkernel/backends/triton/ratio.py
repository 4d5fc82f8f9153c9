"""Log-ratios in Triton: sums over elements, and gradients.

gmmkernel/backends/reference/ratio.py is the specification; csrc/cuda/ratio_body.h the other GPU version.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import clip, divide, multiply_add
from gmmkernel.backends.triton.backward import flow_back, place_of_grad, store_history_gradient, unless
from gmmkernel.backends.triton.elementary import constant
from gmmkernel.backends.triton.kernel import (
    CLIP_MAX,
    CLIP_MIN,
    COLUMNS,
    GUIDANCE,
    HISTORY_0,
    HISTORY_1,
    HISTORY_2,
    HISTORY_3,
    OUTPUT,
    SIGMA,
    X0,
    X0_OUTPUT,
    X0_SAMPLE,
    kernel,
)
from gmmkernel.backends.triton.step import index_of, load, predict, put_sum, store
from gmmkernel.backends.triton.sums import TILE


@triton.jit
def is_clipped(c, x, o):
    """Return whether x0 is clipped; `c` is the row of coefficients."""
    x0 = multiply_add(tl.load(c + X0_OUTPUT), o, tl.load(c + X0_SAMPLE) * x)
    low = tl.load(c + CLIP_MIN)
    below = x0 < low
    return below | (tl.where(below, low, x0) > tl.load(c + CLIP_MAX))


@triton.jit
def change_and_distance(
    x, output, uncond, history0, history1, history2, history3, prev_sample, old_output, old_uncond,
    x_stride, output_stride, uncond_stride, history0_stride, history1_stride, history2_stride, history3_stride,
    prev_stride, old_output_stride, old_uncond_stride,
    c, valid, sample, element, inside, T: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Return D and e, 1 / SIGMA, the sample and both guided outputs."""
    sample_x, old_o, old_x0, old_mean = predict(
        x, old_output, old_uncond, history0, history1, history2, history3,
        x_stride, old_output_stride, old_uncond_stride,
        history0_stride, history1_stride, history2_stride, history3_stride,
        c, valid, sample, element, inside, T, False, PTX,
    )  # fmt: skip
    o = load(output + sample * output_stride, element, inside, T, False)
    change = o - load(old_output + sample * old_output_stride, element, inside, T, False)
    if uncond is not None:
        u = load(uncond + sample * uncond_stride, element, inside, T, False)
        of_uncond = u - load(old_uncond + sample * old_uncond_stride, element, inside, T, False)
        guidance = tl.load(c + GUIDANCE)
        o = multiply_add(guidance, o - u, u)
        change = multiply_add(guidance, change - of_uncond, of_uncond)
    x0 = multiply_add(tl.load(c + X0_OUTPUT), o, tl.load(c + X0_SAMPLE) * sample_x)
    x0 = clip(x0, tl.load(c + CLIP_MIN), tl.load(c + CLIP_MAX), PTX)
    clipped = is_clipped(c, sample_x, o) | is_clipped(c, sample_x, old_o)
    of_x0 = tl.where(clipped, x0 - old_x0, tl.load(c + X0_OUTPUT) * change)
    of_mean = multiply_add(tl.load(c + X0), of_x0, tl.load(c + OUTPUT) * change)
    sigma = tl.zeros([TILE], T) + tl.load(c + SIGMA)
    inverse = tl.where(valid & (sigma > 0), divide(constant(sigma, 1.0), sigma), float("nan"))
    distance = load(prev_sample + sample * prev_stride, element, inside, T, False) - old_mean
    return of_mean * inverse, distance * inverse, inverse, sample_x, o, old_o


# Nothing is said of alignment, so that a thread's elements are 128 apart: the first three halvings are its own.
@kernel
def ratio_sums_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    prev_sample,
    old_output, old_uncond,
    sums,  # to write: [B, places, 2], the first of a sample's those of its tiles
    coefficients,  # [S, 16]
    rows,  # int64 [B]
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    history0_stride: tl.int64, history1_stride: tl.int64, history2_stride: tl.int64, history3_stride: tl.int64,
    prev_sample_stride: tl.int64, old_output_stride: tl.int64, old_uncond_stride: tl.int64,
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    PTX: tl.constexpr,
):  # fmt: skip
    """Sum one tile of one sample: of the log-ratio and of the divergence; programs are numbered (tile, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    element = tile * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    valid = (row >= 0) & (row < coefficient_rows)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    change, distance, _, _, _, _ = change_and_distance(
        x, output, uncond, history0, history1, history2, history3, prev_sample, old_output, old_uncond,
        x_stride, output_stride, uncond_stride,
        history0_stride, history1_stride, history2_stride, history3_stride,
        prev_sample_stride, old_output_stride, old_uncond_stride,
        c, valid, sample, element, inside, T, PTX,
    )  # fmt: skip
    target = sums + (sample * places + tile) * 2
    put_sum(target, change * multiply_add(change * 0.0 - 0.5, change, distance), inside)
    put_sum(target + 1, change * 0.5 * change, inside)


@triton.jit
def store_output_gradients(
    target, uncond_target, place, element, inside, whole, c, none, GUIDED: tl.constexpr, PTX: tl.constexpr
):
    """Write the gradients of a model's outputs, given that of the guided one, where they are wanted."""
    part = whole
    if GUIDED:
        part = tl.load(c + GUIDANCE) * whole
    if target is not None:
        store(target + place, element, inside, unless(none, part), PTX, False)
    if uncond_target is not None:
        store(uncond_target + place, element, inside, unless(none, whole - part), PTX, False)


@kernel
def ratio_backward_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    prev_sample,
    old_output, old_uncond,
    grad_x, grad_output, grad_old_output, grad_prev_sample, grad_uncond, grad_old_uncond,  # to write, contiguous
    grad_history0, grad_history1, grad_history2, grad_history3,
    grad,  # [B, 2], or [B, tiles, 2]
    coefficients,  # [S, 16]
    rows,  # int64 [B]
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    history0_stride: tl.int64, history1_stride: tl.int64, history2_stride: tl.int64, history3_stride: tl.int64,
    prev_sample_stride: tl.int64, old_output_stride: tl.int64, old_uncond_stride: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    grads: tl.int64,  # pairs for each sample: 1, or as many as it has tiles
    elements: tl.int64,
    first_sample: tl.int64,
    PTX: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of one sample's tensors; programs are numbered (tile, sample)."""
    T: tl.constexpr = grad.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    valid = (row >= 0) & (row < coefficient_rows)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    change, distance, inverse, sample_x, o, old_o = change_and_distance(
        x, output, uncond, history0, history1, history2, history3, prev_sample, old_output, old_uncond,
        x_stride, output_stride, uncond_stride,
        history0_stride, history1_stride, history2_stride, history3_stride,
        prev_sample_stride, old_output_stride, old_uncond_stride,
        c, valid, sample, element, inside, T, PTX,
    )  # fmt: skip
    of_sample = grad + 2 * place_of_grad(sample, grads)
    of_ratio, of_divergence = tl.load(of_sample), tl.load(of_sample + 1)
    none = valid & (of_ratio == 0) & (of_divergence == 0)
    of_mean = multiply_add(of_divergence - of_ratio, change, of_ratio * distance) * inverse
    of_prev = (of_ratio * change) * inverse
    minus = of_prev * -1.0

    place = sample * elements
    GUIDED: tl.constexpr = uncond is not None
    if grad_prev_sample is not None:
        store(grad_prev_sample + place, element, inside, unless(none, of_prev), PTX, False)
    _, _, _, _, _, whole = flow_back(c, sample_x, o, of_mean, of_mean, 0)
    store_output_gradients(grad_output, grad_uncond, place, element, inside, whole, c, none, GUIDED, PTX)
    of_old = (of_mean + of_prev) * -1.0
    _, _, _, _, _, whole = flow_back(c, sample_x, old_o, of_old, of_old, 0)
    store_output_gradients(
        grad_old_output, grad_old_uncond, place, element, inside, whole, c, none, GUIDED, PTX
    )
    if grad_x is not None:
        _, _, _, _, shared, _ = flow_back(c, sample_x, old_o, minus, minus, 0)
        # What clipping x0 lets through on one side only.
        clipped, old_clipped = is_clipped(c, sample_x, o), is_clipped(c, sample_x, old_o)
        of_x0 = tl.load(c + X0) * of_mean
        changed = multiply_add(tl.load(c + X0_SAMPLE), tl.where(clipped, of_x0 * -1.0, of_x0), shared)
        of_x = tl.where(clipped == old_clipped, shared, changed)
        store(grad_x + place, element, inside, unless(none, of_x), PTX, False)
    store_history_gradient(grad_history0, c + HISTORY_0, place, element, inside, minus, none, PTX, False)
    store_history_gradient(grad_history1, c + HISTORY_1, place, element, inside, minus, none, PTX, False)
    store_history_gradient(grad_history2, c + HISTORY_2, place, element, inside, minus, none, PTX, False)
    store_history_gradient(grad_history3, c + HISTORY_3, place, element, inside, minus, none, PTX, False)
