"""Gradients of tables in Triton: sums over the samples that used an entry, added in the order of the batch.

A program has an entry, or a tile of one, to itself, and goes over the batch: no atomics, and every entry is written.
"""

from __future__ import annotations

import triton.language as tl

from gmmkernel.backends.triton.arithmetic import multiply_add
from gmmkernel.backends.triton.kernel import COLUMNS, OFFSET, TRANSITION, kernel
from gmmkernel.backends.triton.normal import normals
from gmmkernel.backends.triton.step import choose_component, index_of, load, store

ENTRIES = tl.constexpr(
    3
)  # of a sample: its row, its offset's, its std's; -1 where row or step is out of range, or it has no part in the loss


@kernel
def entries_kernel(
    entries,  # int64 [B, 3]
    rows, steps, seeds,  # int64 [B]
    cdf,  # int64 [S or 1, K - 1]
    of_density,  # [B], a loss's gradients of log-densities: where that is 0, the sample has no part in it
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    coefficient_rows: tl.int64,
    cdf_rows: tl.int64,
    offset_rows: tl.int64,
    std_rows: tl.int64, std_components: tl.int64,
    K: tl.int64,
    first_sample: tl.int64,
    MOST: tl.constexpr,  # values of the cdf are read this many at once
):  # fmt: skip
    """Find the entries of the tables that one sample used; programs are numbered (1, sample)."""
    sample = first_sample + tl.program_id(1).to(tl.int64)
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = (row >= 0) & (row < coefficient_rows) & (step >= 0) & (step <= 0xFFFFFFFF)
    if of_density is not None:
        valid = valid & (tl.load(of_density + sample) != 0)
    component = tl.zeros([], tl.int64)
    if cdf is not None:
        if K > 1:
            table = cdf + tl.where(valid & (cdf_rows > 1), row, 0) * (K - 1)
            component = choose_component(tl.load(seeds + sample), step, table, K, MOST)
    offset = tl.where(offset_rows == 1, 0, row) * K + component
    std = tl.where(std_rows == 1, 0, row) * std_components + tl.where(std_components == 1, 0, component)
    target = entries + sample * ENTRIES
    tl.store(target, tl.where(valid, row, -1))
    tl.store(target + 1, tl.where(valid, offset, -1))
    tl.store(target + 2, tl.where(valid, std, -1))


@kernel
def add_rows_kernel(
    table,  # [S, 16]
    sums,  # [B, places, 16]: the last of a sample's those over all its elements
    entries,  # int64 [B, 3]
    places: tl.int64,
    batch: tl.int64,
    first_row: tl.int64,
):  # fmt: skip
    """Add up one row of the coefficients' gradients; programs are numbered (1, row)."""
    row = first_row + tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], table.dtype.element_ty)
    for sample in range(batch):
        of_sample = tl.load(sums + ((sample + 1) * places - 1) * COLUMNS + column)
        is_used = tl.load(entries + sample * ENTRIES) == row
        total = tl.where(is_used, total + of_sample, total)
    tl.store(table + row * COLUMNS + column, total)


@kernel
def add_entries_kernel(
    grad,  # [B, D]: elements contiguous, any stride from sample to sample
    table,  # [entries, elements]
    coefficients,  # [S, 16]
    entries,  # int64 [B, 3]
    steps, seeds,  # int64 [B]
    grad_stride: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    batch: tl.int64,
    elements: tl.int64,
    first_entry: tl.int64,
    STD: tl.constexpr,  # which table: std, else offsets
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,  # full tiles, everything aligned
    PTX: tl.constexpr,
):  # fmt: skip
    """Add up one tile of one entry; programs are numbered (tile, entry)."""
    T: tl.constexpr = table.dtype.element_ty
    entry = first_entry + tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    total = tl.zeros([TILE], T)
    for sample in range(batch):
        of_sample = entries + sample * ENTRIES
        if tl.load(of_sample + (2 if STD else 1)) == entry:
            g = load(grad + sample * grad_stride, element, inside, T, WHOLE)
            if STD:
                step = index_of(steps, steps_stride, step_value, sample)
                seed = tl.load(seeds + sample)
                z = normals(seed, first, step, TILE, grad.dtype.element_ty, TRANSITION, PTX).to(T)
                total = multiply_add(g, z, total)
            else:
                weight = tl.load(coefficients + tl.load(of_sample) * COLUMNS + OFFSET)
                total = multiply_add(weight, g, total)
    store(table + entry * elements, element, inside, total, PTX, WHOLE)
