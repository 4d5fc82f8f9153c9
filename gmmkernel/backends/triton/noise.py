"""Noise and component draws in Triton."""

from __future__ import annotations

import triton.language as tl

from gmmkernel.backends.triton.kernel import kernel
from gmmkernel.backends.triton.normal import shard_normals
from gmmkernel.backends.triton.step import choose_component, index_of, store


@kernel
def standard_normal_kernel(
    result, seeds, steps, first_elements,
    result_stride: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    first_elements_stride: tl.int64, first_element: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    STREAM: tl.constexpr,
    SHARD: tl.constexpr,  # a sample's noise may begin at any of its elements
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Fill one tile of one sample; programs are numbered (tile, sample)."""
    sample = first_sample + tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TILE
    element = first + tl.arange(0, TILE)
    step = index_of(steps, steps_stride, step_value, sample)
    start = first
    if SHARD:
        start = first + index_of(first_elements, first_elements_stride, first_element, sample)
    z = shard_normals(tl.load(seeds + sample), start, step, TILE, result.dtype.element_ty, STREAM, SHARD, PTX)
    z = tl.where((step >= 0) & (step <= 0xFFFFFFFF), z, float("nan"))
    store(result + sample * result_stride, element, element < elements, z, PTX, WHOLE)


@kernel
def draw_components_kernel(
    result, seeds, rows, steps, cdf,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    cdf_rows: tl.int64,
    K: tl.int64,
    first_sample: tl.int64,
    MOST: tl.constexpr,
):  # fmt: skip
    """Draw the component of one sample; -1 where its row or step is out of range."""
    sample = first_sample + tl.program_id(1).to(tl.int64)
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    row = tl.where(cdf_rows == 1, 0, row)
    valid = (row >= 0) & (row < cdf_rows) & (step >= 0) & (step <= 0xFFFFFFFF)
    component = tl.zeros([], tl.int64)
    if K > 1:
        table = cdf + tl.where(valid, row, 0) * (K - 1)
        component = choose_component(tl.load(seeds + sample), step, table, K, MOST)
    tl.store(result + sample, tl.where(valid, component, -1))
