"""Log-densities of transitions in Triton: sums over elements, then each sample's density.

gmmkernel/backends/reference/density.py is the specification.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.reference.density import HALF_LOG_2_PI
from gmmkernel.backends.triton.arithmetic import divide, multiply_add
from gmmkernel.backends.triton.elementary import constant, exp, log
from gmmkernel.backends.triton.kernel import COLUMNS, OFFSET, SIGMA, kernel
from gmmkernel.backends.triton.step import index_of, load, predict, put_sum
from gmmkernel.backends.triton.sums import TILE, sum_tile

HALF_LOG = tl.constexpr(HALF_LOG_2_PI)


@triton.jit
def load_std(std, table_row, std_elements, sigma, element, T: tl.constexpr):
    """Return standard deviations: of a row of the table, and sigma from its end on."""
    deviation = tl.full(element.shape, 0.0, T) + sigma
    if std is not None:
        reduced = element < std_elements
        from_table = tl.load(std + table_row * std_elements + element, mask=reduced, other=0.0)
        deviation = tl.where(reduced, from_table, deviation)
    return deviation


# Nothing is said of alignment, so that a thread's elements are 128 apart: the first three halvings are its own.
@kernel
def density_sums_kernel(
    x, output, uncond,  # [B, D]: elements contiguous, any stride from sample to sample
    history0, history1, history2, history3,
    prev_sample,
    sums,  # to write: [B, places, 1 + K], the first of a sample's those of its tiles
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
    columns: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    PTX: tl.constexpr,
):  # fmt: skip
    """Sum one tile of one sample: of a Gaussian without offset, then how each component differs from it."""
    T: tl.constexpr = sums.dtype.element_ty
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

    sigma = tl.load(c + SIGMA)
    std_row = tl.where(std_rows == 1, 0, row) * std_components
    first_std = load_std(std, std_row, std_elements, sigma, element, T)
    first_log, first_inverse = log(first_std), divide(constant(a, 1.0), first_std)
    b = a * first_inverse
    target = sums + (sample * places + tile) * columns
    put_sum(target, multiply_add(b * 0.5, b, first_log), inside)
    if offsets is not None:
        weight = tl.load(c + OFFSET)
        offset_row = tl.where(offset_rows == 1, 0, row) * K
        for k in range(K):
            d = a
            if weight != 0:
                offset = load(offsets + (offset_row + k) * elements, element, inside, T, False)
                d = multiply_add(-weight, offset, a)
            log_ratio, inverse = first_log - first_log, first_inverse
            if std_components > 1:
                deviation = load_std(std, std_row + k, std_elements, sigma, element, T)
                log_ratio, inverse = log(deviation) - first_log, divide(constant(a, 1.0), deviation)
            t = d * inverse
            put_sum(target + 1 + k, multiply_add((t - b) * 0.5, t + b, log_ratio), inside)


@kernel
def log_prob_kernel(
    result,  # [B]
    responsibilities,  # [B, K]
    sums,  # [B, places, 1 + K]: the last of a sample's those over all its elements
    weights,  # [S or 1, K]
    energies, penalties,  # [B, K]: to write, and to read
    rows,  # int64 [B]
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    weight_rows: tl.int64,
    K: tl.int64,
    columns: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
):  # fmt: skip
    """Write the log-density of one sample, and its components' shares; programs are numbered (1, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    of_sample = sums + ((sample + 1) * places - 1) * columns
    total = tl.zeros([1], T)
    if weights is not None:
        # Where the row is out of range, the sums are NaN.
        row = index_of(rows, rows_stride, row_value, sample)
        row = tl.where((weight_rows > 1) & (row >= 0) & (row < coefficient_rows), row, 0)
        k = tl.arange(0, TILE)
        inside = k < K
        level = log(tl.load(weights + row * K + k, mask=inside, other=1.0))
        energy = tl.load(of_sample + 1 + k, mask=inside, other=0.0)
        level = level - energy
        if energies is not None:
            tl.store(energies + sample * K + k, energy, mask=inside)
        if penalties is not None:
            level = level - tl.load(penalties + sample * K + k, mask=inside, other=0.0)
        level = tl.where(inside, level, float("-inf"))
        # The largest, NaN where there is one.
        largest = tl.zeros([1], T) + tl.max(level, axis=0)
        undefined = tl.sum((level != level).to(tl.int32), axis=0) > 0
        largest = tl.where(undefined, float("nan"), largest)
        parts = tl.where(inside, exp(level - largest), 0.0)
        sum_of_parts = tl.zeros([1], T) + sum_tile(parts)
        total = largest + log(sum_of_parts)
        if responsibilities is not None:
            shares = divide(parts, tl.broadcast_to(sum_of_parts, [TILE]))
            tl.store(responsibilities + sample * K + k, shares, mask=inside)
    base = tl.load(of_sample)
    dimension = tl.zeros([1], T) + elements.to(T)
    log_prob = multiply_add(-dimension, constant(dimension, HALF_LOG), total - base)
    tl.store(result + sample + tl.arange(0, 1), log_prob)
