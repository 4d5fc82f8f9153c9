"""Exact moment matching in Triton: the noise's projections, and the small sums over components and directions.

gmmkernel/backends/reference/low_rank.py is the specification. What is vectorised over directions or components has a
tile for all of them, of which there are at most 1024.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.arithmetic import multiply_add
from gmmkernel.backends.triton.kernel import COLUMNS, OFFSET, SIGMA, TRANSITION, kernel
from gmmkernel.backends.triton.normal import normals
from gmmkernel.backends.triton.step import choose_component, index_of, load
from gmmkernel.backends.triton.sums import TILE, sum_tile


@triton.jit
def removes_in_directions(coefficients, row):
    """Return whether a row has both an offset and noise."""
    c = coefficients + row * COLUMNS
    return (tl.load(c + OFFSET) != 0) & (tl.load(c + SIGMA) != 0)


@kernel
def project_kernel(
    sums,  # to write: [B, places, K], the first of a sample's those of its tiles
    coefficients,  # [S, 16]
    rows, steps, seeds,  # int64 [B]
    offsets,  # [S or 1, K, D]
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    offset_rows: tl.int64,
    K: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    PTX: tl.constexpr,
):  # fmt: skip
    """Project the noise of one tile of one sample on every offset; programs are numbered (tile, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = (row >= 0) & (row < coefficient_rows)
    row = tl.where(valid, row, 0)
    if valid & removes_in_directions(coefficients, row):
        z = normals(tl.load(seeds + sample), first, step, TILE, T, TRANSITION, PTX).to(T)
        target = sums + (sample * places + tile) * K
        offset_row = tl.where(offset_rows == 1, 0, row) * K
        for k in range(K):
            offset = load(offsets + (offset_row + k) * elements, element, inside, T, False)
            tl.store(target + k, sum_tile(tl.where(inside, offset * z, 0.0)))


@kernel
def pulls_kernel(
    pulls,  # to write: [B, R]
    values,  # [B, places, columns]: the last of a sample's are the projections or, from the second on, the energies
    basis,  # [S or 1, R, K]
    std_delta,  # [S or 1, 1 or K, R]; without it, the energies along each direction
    rows, steps, seeds,  # int64 [B]
    cdf,  # int64 [S or 1, K - 1]
    places: tl.int64, columns: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    cdf_rows: tl.int64,
    basis_rows: tl.int64,
    std_delta_rows: tl.int64, std_delta_components: tl.int64,
    R: tl.int64,
    K: tl.int64,
    first_sample: tl.int64,
    MOST: tl.constexpr,  # values of the cdf are read this many at once
):  # fmt: skip
    """Sum one sample's values along every direction; programs are numbered (1, sample)."""
    T: tl.constexpr = pulls.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    row = index_of(rows, rows_stride, row_value, sample)
    row = tl.where((row >= 0) & (row < coefficient_rows), row, 0)
    r = tl.arange(0, TILE)
    inside = r < R
    of_row = basis + tl.where(basis_rows == 1, 0, row) * R * K
    of_sample = values + ((sample + 1) * places - 1) * columns + (columns - K)
    total = tl.zeros([TILE], T)
    for k in range(K):
        value = tl.load(of_sample + k)
        if std_delta is None:
            value = value - tl.load(of_sample)
        total = multiply_add(value, tl.load(of_row + r * K + k, mask=inside, other=0.0), total)
    if std_delta is not None:
        component = tl.zeros([], tl.int64)
        if std_delta_components > 1:
            table = cdf + tl.where(cdf_rows == 1, 0, row) * (K - 1)
            step = index_of(steps, steps_stride, step_value, sample)
            component = choose_component(tl.load(seeds + sample), step, table, K, MOST)
        entry = tl.where(std_delta_rows == 1, 0, row) * std_delta_components + component
        total = tl.load(std_delta + entry * R + r, mask=inside, other=0.0) * total
    tl.store(pulls + sample * R + r, total, mask=inside)


@kernel
def offset_weights_kernel(
    weights,  # to write: [B, K]
    pulls,  # [B, R]
    basis,  # [S or 1, R, K]
    coefficients,  # [S, 16]
    rows, steps, seeds,  # int64 [B]
    cdf,  # int64 [S or 1, K - 1]
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    cdf_rows: tl.int64,
    basis_rows: tl.int64,
    R: tl.int64,
    K: tl.int64,
    first_sample: tl.int64,
    MOST: tl.constexpr,  # values of the cdf are read this many at once
):  # fmt: skip
    """Find what one sample's offsets are multiplied with; programs are numbered (1, sample)."""
    T: tl.constexpr = weights.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    row = index_of(rows, rows_stride, row_value, sample)
    row = tl.where((row >= 0) & (row < coefficient_rows), row, 0)
    k = tl.arange(0, TILE)
    inside = k < K
    component = tl.zeros([], tl.int64)
    if K > 1:
        table = cdf + tl.where(cdf_rows == 1, 0, row) * (K - 1)
        step = index_of(steps, steps_stride, step_value, sample)
        component = choose_component(tl.load(seeds + sample), step, table, K, MOST)
    own = tl.load(coefficients + row * COLUMNS + OFFSET)
    total = tl.where(k == component, own, tl.zeros([TILE], T))
    of_row = basis + tl.where(basis_rows == 1, 0, row) * R * K
    for r in range(R):
        pull = tl.load(pulls + sample * R + r)
        total = multiply_add(pull, tl.load(of_row + r * K + k, mask=inside, other=0.0), total)
    tl.store(weights + sample * K + k, total, mask=inside)


@kernel
def penalties_kernel(
    penalties,  # to write: [B, K]
    along,  # [B, R], the energies along each direction
    slopes,  # [S or 1, 1 or K, R]
    shifts,  # [S or 1, K, R]
    half_logdet,  # [S or 1, 1 or K]
    coefficients,  # [S, 16]
    rows,  # int64 [B]
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    slope_rows: tl.int64, slope_components: tl.int64,
    shift_rows: tl.int64,
    half_logdet_rows: tl.int64, half_logdet_components: tl.int64,
    R: tl.int64,
    K: tl.int64,
    first_sample: tl.int64,
):  # fmt: skip
    """Find what one sample's components lose of their log-density; programs are numbered (1, sample)."""
    sample = first_sample + tl.program_id(1).to(tl.int64)
    row = index_of(rows, rows_stride, row_value, sample)
    row = tl.where((row >= 0) & (row < coefficient_rows), row, 0)
    k = tl.arange(0, TILE)
    inside = k < K
    of_volume = tl.where(half_logdet_rows == 1, 0, row) * half_logdet_components
    total = tl.load(
        half_logdet + of_volume + tl.where(half_logdet_components == 1, 0, k), mask=inside, other=0.0
    )
    slope = tl.where(slope_rows == 1, 0, row) * slope_components + tl.where(slope_components == 1, 0, k)
    shift = tl.where(shift_rows == 1, 0, row) * K + k
    for r in range(R):
        of_slope = tl.load(slopes + slope * R + r, mask=inside, other=0.0)
        h = tl.load(shifts + shift * R + r, mask=inside, other=0.0)
        h = multiply_add(tl.load(along + sample * R + r), of_slope, h)
        total = multiply_add(h, h, total)
    has_offset = tl.load(coefficients + row * COLUMNS + OFFSET) != 0
    tl.store(penalties + sample * K + k, tl.where(has_offset, total, 0.0), mask=inside)
