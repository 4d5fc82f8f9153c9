"""Projections of samples onto the rows of a table in Triton.

gmmkernel/backends/reference/sums.py is the specification of the order in which products are added.
"""

from __future__ import annotations

import triton.language as tl

from gmmkernel.backends.triton.kernel import kernel
from gmmkernel.backends.triton.step import index_of, load
from gmmkernel.backends.triton.sums import TILE, sum_tile


@kernel
def project_kernel(
    sample_data,  # [B, D]: elements contiguous, any stride from sample to sample
    sums,  # to write: [B, places, K], the first of a sample's those of its tiles
    table,  # [S or 1, K, D]
    rows,  # int64 [B]
    sample_stride: tl.int64,
    places: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    table_rows: tl.int64,
    K: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
):  # fmt: skip
    """Project one tile of one sample onto every row; programs are numbered (tile, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    element = tile * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    row = tl.where(table_rows == 1, 0, row)
    valid = (row >= 0) & (row < table_rows)
    row = tl.where(valid, row, 0) * K
    x = load(sample_data + sample * sample_stride, element, inside, T, False)
    target = sums + (sample * places + tile) * K
    for k in range(K):
        of_row = load(table + (row + k) * elements, element, inside, T, False)
        total = sum_tile(tl.where(inside, of_row * x, 0.0))
        tl.store(target + k, tl.where(valid, total, float("nan")))
