"""Gradients of log-densities in Triton: what flows back into the transition, and the mixture's tables.

gmmkernel/backends/reference/density.py is the specification; the step's own kernels take the flow further.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import divide, multiply_add
from gmmkernel.backends.triton.backward import place_of_grad
from gmmkernel.backends.triton.density import load_std
from gmmkernel.backends.triton.elementary import constant
from gmmkernel.backends.triton.kernel import COLUMNS, OFFSET, SIGMA, kernel
from gmmkernel.backends.triton.step import index_of, load, predict, put_sum, store
from gmmkernel.backends.triton.sums import TILE


@triton.jit
def units_of(a, offset, weight, deviation):
    """Return a component's derivatives with respect to its mean and to its standard deviation.

    `a` is the sample less the mean before any offset; a weight of 0 means that the row switches the offset off.
    """
    inverse = divide(constant(a, 1.0), deviation)
    d = a
    if weight != 0:
        d = multiply_add(-weight, offset, a)
    t = d * inverse
    return t * inverse, multiply_add(t, t, constant(t, -1.0)) * inverse


# Nothing is said of alignment, so that a thread's elements are 128 apart: the first three halvings are its own.
@kernel
def density_backward_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    prev_sample,
    distance, flow,  # to write: [B, D], the sample less the mean before any offset, and the mean's gradient
    grad_prev_sample,  # to write: [B, D], the gradient of the sample
    sums,  # to write: [B, places, 16], the first of a sample's those of its tiles
    responsibilities,  # [B, K]
    grad,  # [B], or [B, tiles]
    coefficients,  # [S, 16]
    rows,  # int64 [B]
    offsets,  # [S or 1, K, D]
    std,  # [S or 1, 1 or K, R]
    x_stride: tl.int64, output_stride: tl.int64, uncond_stride: tl.int64,
    history0_stride: tl.int64, history1_stride: tl.int64, history2_stride: tl.int64, history3_stride: tl.int64,
    prev_sample_stride: tl.int64,
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    offset_rows: tl.int64,
    std_rows: tl.int64, std_components: tl.int64, std_elements: tl.int64,
    K: tl.int64,
    grads: tl.int64,  # for each sample: 1, or as many as it has tiles
    elements: tl.int64,
    first_sample: tl.int64,
    PTX: tl.constexpr,
):  # fmt: skip
    """Take one tile of one sample back to its mean; programs are numbered (tile, sample)."""
    T: tl.constexpr = distance.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    element = tile * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    valid = (row >= 0) & (row < coefficient_rows)
    row = tl.where(valid, row, 0)
    c = coefficients + row * COLUMNS
    _, _, _, mean = predict(
        x, output, uncond, history0, history1, history2, history3,
        x_stride, output_stride, uncond_stride,
        history0_stride, history1_stride, history2_stride, history3_stride,
        c, valid, sample, element, inside, T, False, PTX,
    )  # fmt: skip
    a = load(prev_sample + sample * prev_sample_stride, element, inside, T, False) - mean
    store(distance + sample * elements, element, inside, a, PTX, False)

    sigma, weight, g = tl.load(c + SIGMA), tl.load(c + OFFSET), tl.load(grad + place_of_grad(sample, grads))
    std_row = tl.where(std_rows == 1, 0, row) * std_components
    zero = tl.zeros([TILE], T)
    of_mean, of_sigma, of_offset = zero, zero, zero
    if offsets is None:
        of_mean, of_sigma = units_of(a, zero, 0.0, load_std(std, std_row, std_elements, sigma, element, T))
        of_mean, of_sigma = zero + of_mean, zero + of_sigma
    else:
        offset_row = tl.where(offset_rows == 1, 0, row) * K
        for k in range(K):
            share = tl.load(responsibilities + sample * K + k)
            offset = load(offsets + (offset_row + k) * elements, element, inside, T, False)
            which = std_row + tl.where(std_components == 1, 0, k)
            deviation = load_std(std, which, std_elements, sigma, element, T)
            of_one, of_std = units_of(a, offset, weight, deviation)
            of_mean = multiply_add(share, of_one, of_mean)
            of_sigma = multiply_add(share, of_std, of_sigma)
            of_offset = multiply_add(share, of_one * offset, of_offset)
    of_mean = g * of_mean
    store(flow + sample * elements, element, inside, of_mean, PTX, False)
    if grad_prev_sample is not None:
        # A sample that has no part in the loss gives zeros, though it may be NaN itself.
        of_prev = tl.where(valid & (g == 0), 0.0, of_mean * -1.0)
        store(grad_prev_sample + sample * elements, element, inside, of_prev, PTX, False)
    if sums is not None:
        target = sums + (sample * places + tile) * COLUMNS
        inside = inside & ((grads == 1) | (g != 0))
        put_sum(target + SIGMA, g * of_sigma, inside & (element >= std_elements))
        put_sum(target + OFFSET, g * of_offset, inside)


@kernel
def add_density_entries_kernel(
    table,  # [table rows, table components, length]
    distance,  # [B, D]
    responsibilities,  # [B, K]
    grad,  # [B]
    coefficients,  # [S, 16]
    rows,  # int64 [B]
    offsets,  # [S or 1, K, D]
    std,  # [S or 1, 1 or K, R]
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    offset_rows: tl.int64,
    std_rows: tl.int64, std_components: tl.int64, std_elements: tl.int64,
    K: tl.int64,
    table_rows: tl.int64, table_components: tl.int64, length: tl.int64,
    batch: tl.int64,
    elements: tl.int64,
    first_entry: tl.int64,
    STD: tl.constexpr,  # which table: std, else offsets
    PTX: tl.constexpr,
):  # fmt: skip
    """Add up one tile of one entry; programs are numbered (tile, entry)."""
    T: tl.constexpr = table.dtype.element_ty
    entry = first_entry + tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = element < length
    total = tl.zeros([TILE], T)
    for sample in range(batch):
        row = index_of(rows, rows_stride, row_value, sample)
        own = entry - tl.where(table_rows == 1, 0, row) * table_components
        g = tl.load(grad + sample)
        if (row >= 0) & (row < coefficient_rows) & (own >= 0) & (own < table_components) & (g != 0):
            c = coefficients + row * COLUMNS
            sigma, weight = tl.load(c + SIGMA), tl.load(c + OFFSET)
            a = load(distance + sample * elements, element, inside, T, False)
            # One entry for all components takes each one's part, in their order.
            first = tl.where(table_components == 1, 0, own)
            last = tl.where(table_components == 1, K, own + 1)
            for k in range(first, last):
                std_row = tl.where(std_rows == 1, 0, row) * std_components
                which = std_row + tl.where(std_components == 1, 0, k)
                deviation = load_std(std, which, std_elements, sigma, element, T)
                offset_row = tl.where(offset_rows == 1, 0, row) * K + k
                offset = load(offsets + offset_row * elements, element, inside, T, False)
                of_mean, of_std = units_of(a, offset, weight, deviation)
                part = g * tl.load(responsibilities + sample * K + k)
                if STD:
                    total = multiply_add(part, of_std, total)
                else:
                    total = multiply_add(part * weight, of_mean, total)
    store(table + entry * length, element, inside, total, PTX, False)


@kernel
def add_weights_kernel(
    table,  # [S or 1, K]
    responsibilities,  # [B, K]
    grad,  # [B]
    weights,  # [S or 1, K]
    rows,  # int64 [B]
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    weight_rows: tl.int64,
    K: tl.int64,
    batch: tl.int64,
    first_row: tl.int64,
):  # fmt: skip
    """Add up one row of the weights' gradients; programs are numbered (1, row)."""
    own = first_row + tl.program_id(1).to(tl.int64)
    k = tl.arange(0, TILE)
    inside = k < K
    weight = tl.load(weights + own * K + k, mask=inside, other=1.0)
    total = tl.zeros([TILE], table.dtype.element_ty)
    for sample in range(batch):
        row = index_of(rows, rows_stride, row_value, sample)
        valid = (row >= 0) & (row < coefficient_rows)
        g = tl.load(grad + sample)
        is_used = valid & (tl.where(weight_rows == 1, 0, row) == own) & (g != 0)
        shares = tl.load(responsibilities + sample * K + k, mask=inside, other=0.0)
        part = divide(g * shares, weight)
        total = tl.where(is_used, total + part, total)
    tl.store(table + own * K + k, total, mask=inside)
