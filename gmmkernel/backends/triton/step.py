"""The step in Triton: one program for each tile of one sample.

gmmkernel/backends/reference/transition.py is the specification; csrc/cuda/step_body.h the other GPU version.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import clip, divide, multiply_add, round_to
from gmmkernel.backends.triton.elementary import constant, log
from gmmkernel.backends.triton.kernel import (
    CLIP_MAX,
    CLIP_MIN,
    COLUMNS,
    COMPONENT,
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
from gmmkernel.backends.triton.philox import random_words
from gmmkernel.backends.triton.sums import sum_tile


@triton.jit
def index_of(values, stride: tl.int64, value: tl.int64, sample):
    """Return a sample's row or step, int64: from its tensor, or the value that all have."""
    if values is None:
        index = value.to(tl.int64)
    else:
        index = tl.load(values + sample * stride)
    return index


@triton.jit
def choose_component(seed, step, cdf, K, MOST: tl.constexpr):
    """Return the component of a sample: the number of its cdf's K - 1 values that one random word reaches."""
    word, _, _, _ = random_words(seed, tl.zeros([1], tl.int64), step, COMPONENT)
    k = tl.arange(0, MOST)
    threshold = tl.load(cdf + k, mask=k < K - 1, other=2**40)
    reached = (word.to(tl.int64) >= threshold).to(tl.int32)
    return tl.sum(reached, axis=0).to(tl.int64)


@triton.jit
def load(pointer, element, inside, T: tl.constexpr, WHOLE: tl.constexpr):
    """Return elements widened to the type of the arithmetic.

    WHOLE: tiles are full, and tensors aligned to 16 bytes at every sample. Said here, and not found out by Triton from
    addresses and sizes, so that these never make it compile a kernel anew.
    """
    if WHOLE:
        values = tl.load(tl.multiple_of(pointer + element, 16))
    else:
        values = tl.load(pointer + element, mask=inside, other=0.0)
    return values.to(T)


@triton.jit
def store(pointer, element, inside, values, PTX: tl.constexpr, WHOLE: tl.constexpr):
    """Write elements, rounded once to the tensor's type."""
    rounded = round_to(values, pointer.dtype.element_ty, PTX)
    if WHOLE:
        tl.store(tl.multiple_of(pointer + element, 16), rounded)
    else:
        tl.store(pointer + element, rounded, mask=inside)


@triton.jit
def add_history(
    mean, stored, stride, coefficient, sample, element, inside, T: tl.constexpr, WHOLE: tl.constexpr
):
    """Add a stored prediction; a coefficient of 0 means that it is not there."""
    if coefficient != 0:
        mean = multiply_add(coefficient, load(stored + sample * stride, element, inside, T, WHOLE), mean)
    return mean


@triton.jit
def predict(
    x, output, uncond, history0, history1, history2, history3,
    x_stride, output_stride, uncond_stride, history0_stride, history1_stride, history2_stride, history3_stride,
    c, valid, sample, element, inside, T: tl.constexpr, WHOLE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Return the sample, the guided output, x0 and the mean before any offset; `c` is the row of coefficients."""
    sample_x = load(x + sample * x_stride, element, inside, T, WHOLE)
    o = load(output + sample * output_stride, element, inside, T, WHOLE)
    if uncond is not None:
        u = load(uncond + sample * uncond_stride, element, inside, T, WHOLE)
        o = multiply_add(tl.load(c + GUIDANCE), o - u, u)
    # Where row or step is out of range, a NaN among the coefficients of the sample makes all of it NaN.
    of_sample = tl.where(valid, tl.load(c + SAMPLE), float("nan"))
    x0 = multiply_add(
        tl.load(c + X0_OUTPUT), o, tl.where(valid, tl.load(c + X0_SAMPLE), float("nan")) * sample_x
    )
    x0 = clip(x0, tl.load(c + CLIP_MIN), tl.load(c + CLIP_MAX), PTX)
    y = tl.load(c + X0) * x0
    y = multiply_add(tl.load(c + OUTPUT), o, y)
    y = multiply_add(of_sample, sample_x, y)
    if history0 is not None:
        y = add_history(
            y, history0, history0_stride, tl.load(c + HISTORY_0), sample, element, inside, T, WHOLE
        )
    if history1 is not None:
        y = add_history(
            y, history1, history1_stride, tl.load(c + HISTORY_1), sample, element, inside, T, WHOLE
        )
    if history2 is not None:
        y = add_history(
            y, history2, history2_stride, tl.load(c + HISTORY_2), sample, element, inside, T, WHOLE
        )
    if history3 is not None:
        y = add_history(
            y, history3, history3_stride, tl.load(c + HISTORY_3), sample, element, inside, T, WHOLE
        )
    return sample_x, o, x0, y


@triton.jit
def put_sum(target, terms, inside):
    """Write the sum of a tile's terms; what is read beyond the last element takes no part."""
    tl.store(target, sum_tile(tl.where(inside, terms, 0.0)))


@kernel
def step_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    result, prediction,
    components,  # int64 [B]
    sums,  # [B, places], the first of a sample's those of its tiles, which its log-density is made of
    coefficients,  # [S, 16]
    rows, steps, first_elements, seeds,  # int64 [B]
    cdf,  # int64 [S or 1, K - 1]
    offsets,  # [S or 1, K, D]
    std,  # [S or 1, 1 or K, R]
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    history0_stride: tl.int64, history1_stride: tl.int64, history2_stride: tl.int64, history3_stride: tl.int64,
    result_stride: tl.int64, prediction_stride: tl.int64,
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    first_elements_stride: tl.int64, first_element: tl.int64,
    cdf_rows: tl.int64,
    offset_rows: tl.int64,
    std_rows: tl.int64, std_components: tl.int64, std_elements: tl.int64,
    K: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    TILE: tl.constexpr,
    SHARD: tl.constexpr,  # a sample's noise may begin at any of its elements
    PREDICTION: tl.constexpr,  # 0 none, 1 x0, 2 epsilon, 3 model output, 4 mean
    MOST: tl.constexpr,  # values of the cdf are read this many at once
    WHOLE: tl.constexpr,  # full tiles, everything aligned
    PTX: tl.constexpr,
):  # fmt: skip
    """Take one step for one tile of one sample; programs are numbered (tile, sample)."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # of the arithmetic
    sample = first_sample + tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = (row >= 0) & (row < coefficient_rows) & (step >= 0) & (step <= 0xFFFFFFFF)
    row = tl.where(valid, row, 0)
    seed = tl.load(seeds + sample)
    c = coefficients + row * COLUMNS

    component = tl.zeros([], tl.int64)
    if offsets is not None:
        if K > 1:
            table = cdf + tl.where(cdf_rows == 1, 0, row) * (K - 1)
            component = choose_component(seed, step, table, K, MOST)

    sample_x, o, x0, y = predict(
        x, output, uncond, history0, history1, history2, history3,
        x_stride, output_stride, uncond_stride,
        history0_stride, history1_stride, history2_stride, history3_stride,
        c, valid, sample, element, inside, T, WHOLE, PTX,
    )  # fmt: skip

    mean = y
    sigma = tl.load(c + SIGMA)
    noisy = sigma != 0
    if offsets is not None:
        weight = tl.load(c + OFFSET)
        if weight != 0:
            offset_row = tl.where(offset_rows == 1, 0, row) * K + component
            y = multiply_add(weight, load(offsets + offset_row * elements, element, inside, T, WHOLE), y)
        noisy = noisy | (std_elements > 0)
    if PREDICTION > 0:
        made = x0
        if PREDICTION == 2:
            made = multiply_add(
                tl.load(c + EPS_OUTPUT), o, tl.where(valid, tl.load(c + EPS_SAMPLE), float("nan")) * sample_x
            )
        if PREDICTION == 3:
            made = tl.where(valid, o, float("nan"))
        if PREDICTION == 4:
            made = mean
        store(prediction + sample * prediction_stride, element, inside, made, PTX, WHOLE)
    if noisy:
        start = first
        if SHARD:
            start = first + index_of(first_elements, first_elements_stride, first_element, sample)
        z = shard_normals(seed, start, step, TILE, x.dtype.element_ty, TRANSITION, SHARD, PTX).to(T)
        spread = tl.broadcast_to(sigma, [TILE])
        if offsets is not None:
            std_row = tl.where(std_rows == 1, 0, row) * std_components + tl.where(
                std_components == 1, 0, component
            )
            if WHOLE and first + TILE <= std_elements:
                spread = load(std + std_row * std_elements, element, inside, T, WHOLE)
            elif first < std_elements:
                reduced = element < std_elements
                from_table = tl.load(std + std_row * std_elements + element, mask=reduced, other=0.0)
                spread = tl.where(reduced, from_table, spread)
        y = multiply_add(spread, z, y)
    store(result + sample * result_stride, element, inside, y, PTX, WHOLE)
    if sums is not None:
        spread = tl.zeros([1], T) + sigma
        inverse, of_spread = divide(constant(spread, 1.0), spread), log(spread)
        b = (round_to(y, result.dtype.element_ty, PTX).to(T) - mean) * inverse
        put_sum(
            sums + sample * places + tl.program_id(0),
            multiply_add(b * 0.5, b, tl.broadcast_to(of_spread, [TILE])),
            inside,
        )
    if components is not None:
        if first == 0:
            tl.store(components + sample, tl.where(valid, component, -1))
