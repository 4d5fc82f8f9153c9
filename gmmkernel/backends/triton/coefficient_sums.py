"""Sums over a tile's elements for the gradients of a row's 16 coefficients, in Triton.

gmmkernel/backends/reference/backward.py is the specification.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import multiply_add
from gmmkernel.backends.triton.backward import flow_back
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
    OFFSET,
    OUTPUT,
    SAMPLE,
    SIGMA,
    TRANSITION,
    X0,
    X0_OUTPUT,
    X0_SAMPLE,
    kernel,
)
from gmmkernel.backends.triton.normal import shard_normals
from gmmkernel.backends.triton.step import index_of, load, put_sum
from gmmkernel.backends.triton.sums import TILE
from gmmkernel.backends.triton.tables import ENTRIES


@triton.jit
def put_history_sum(target, stored, stride, sample, element, inside, grad):
    """Write the sum of a stored prediction's terms; 0 where there is none."""
    if stored is None:
        tl.store(target, 0.0)
    else:
        put_sum(target, grad * load(stored + sample * stride, element, inside, grad.dtype, False), inside)


# Nothing is said of alignment, so that a thread's elements are 128 apart: the first three halvings are its own.
@kernel
def coefficient_sums_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    grad, grad_prediction,
    sums,  # to write: [B, places, 16], the first of a sample's those of its tiles
    coefficients,  # [S, 16]
    entries,  # int64 [B, 3]
    steps, first_elements, seeds,  # int64 [B]; without seeds, the sums of SIGMA and OFFSET are not this kernel's
    of_tiles,  # [B, tiles], a loss's gradients of tiles: where that is 0, the tile has no part in it
    offsets,  # [S or 1, K, D]
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    history0_stride: tl.int64, history1_stride: tl.int64, history2_stride: tl.int64, history3_stride: tl.int64,
    grad_stride: tl.int64, grad_prediction_stride: tl.int64,
    places: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    first_elements_stride: tl.int64, first_element: tl.int64,
    std_elements: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    SHARD: tl.constexpr,  # a sample's noise may begin at any of its elements
    PREDICTION: tl.constexpr,  # whose gradient `grad_prediction` is
    PTX: tl.constexpr,
):  # fmt: skip
    """Sum one tile of one sample; programs are numbered (tile, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    if of_tiles is not None:
        inside = inside & (tl.load(of_tiles + sample * tl.num_programs(0) + tile) != 0)
    # A sample that has no row is not added to any: what is summed for it only has to be within bounds.
    c = coefficients + tl.maximum(tl.load(entries + sample * ENTRIES), 0) * COLUMNS

    sample_x = load(x + sample * x_stride, element, inside, T, False)
    o = load(output + sample * output_stride, element, inside, T, False)
    if uncond is not None:
        u = load(uncond + sample * uncond_stride, element, inside, T, False)
        difference = o - u
        o = multiply_add(tl.load(c + GUIDANCE), difference, u)
    g = load(grad + sample * grad_stride, element, inside, T, False)
    more = g
    if PREDICTION > 0:
        more = load(grad_prediction + sample * grad_prediction_stride, element, inside, T, False)
    of_noise = g
    if PREDICTION == 4:
        g = g + more
    x0, of_x0, of_low, of_high, _, of_output = flow_back(c, sample_x, o, g, more, PREDICTION)

    # What needs the most is summed first, so that registers are free again for the rest.
    target = sums + (sample * places + tile) * COLUMNS
    put_sum(target + CLIP_MIN, of_low, inside)
    put_sum(target + CLIP_MAX, of_high, inside)
    put_sum(target + X0_SAMPLE, of_x0 * sample_x, inside)
    put_sum(target + X0_OUTPUT, of_x0 * o, inside)
    put_sum(target + X0, g * x0, inside)
    if uncond is not None:
        put_sum(target + GUIDANCE, of_output * difference, inside)
    else:
        tl.store(target + GUIDANCE, 0.0)
    if PREDICTION == 2:
        put_sum(target + EPS_SAMPLE, more * sample_x, inside)
        put_sum(target + EPS_OUTPUT, more * o, inside)
    else:
        tl.store(target + EPS_SAMPLE, 0.0)
        tl.store(target + EPS_OUTPUT, 0.0)
    put_sum(target + SAMPLE, g * sample_x, inside)
    put_sum(target + OUTPUT, g * o, inside)
    put_history_sum(target + HISTORY_0, history0, history0_stride, sample, element, inside, g)
    put_history_sum(target + HISTORY_1, history1, history1_stride, sample, element, inside, g)
    put_history_sum(target + HISTORY_2, history2, history2_stride, sample, element, inside, g)
    put_history_sum(target + HISTORY_3, history3, history3_stride, sample, element, inside, g)
    if seeds is not None:
        if first + TILE > std_elements:
            step = index_of(steps, steps_stride, step_value, sample)
            start = first
            if SHARD:
                start = first + index_of(first_elements, first_elements_stride, first_element, sample)
            DTYPE: tl.constexpr = x.dtype.element_ty
            z = shard_normals(tl.load(seeds + sample), start, step, TILE, DTYPE, TRANSITION, SHARD, PTX).to(T)
            put_sum(target + SIGMA, of_noise * z, inside & (element >= std_elements))
        else:  # the mixture's table gives all of these elements their std
            tl.store(target + SIGMA, 0.0)
        if offsets is not None:
            entry = tl.maximum(tl.load(entries + sample * ENTRIES + 1), 0)
            put_sum(
                target + OFFSET,
                of_noise * load(offsets + entry * elements, element, inside, T, False),
                inside,
            )
        else:
            tl.store(target + OFFSET, 0.0)
