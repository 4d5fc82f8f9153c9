"""Sums in the fixed order, in Triton: a tile of 1024 is halved until one number is left.

gmmkernel/backends/reference/sums.py is the specification.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.triton.kernel import kernel

TILE = tl.constexpr(SUM_TILE)
HALVINGS = tl.constexpr(SUM_TILE.bit_length() - 2)  # until two numbers are left


@triton.jit
def sum_tile(values):
    """Return the sum of [TILE] values. `tl.sum` adds two at a time here, so their order cannot matter."""
    for _ in tl.static_range(HALVINGS):
        values = tl.sum(tl.reshape(values, [2, values.shape[0] // 2]), axis=0)
    return tl.sum(values, axis=0)


@kernel
def sum_level_kernel(
    sums,  # [B, places, columns]: each level's, one after another
    places: tl.int64,
    below: tl.int64, count: tl.int64,  # where a level begins, and how many sums it has
    above: tl.int64, tiles: tl.int64,  # the same of the next one
    columns: tl.int64,
    first_sample: tl.int64,
):  # fmt: skip
    """Sum a level's tiles, one column of one sample; programs are numbered (column, sample)."""
    sample = first_sample + tl.program_id(1).to(tl.int64)
    of_column = sums + sample * places * columns + tl.program_id(0)
    for tile in range(tiles):
        place = tile * TILE + tl.arange(0, TILE)
        values = tl.load(of_column + (below + place) * columns, mask=place < count, other=0.0)
        tl.store(of_column + (above + tile) * columns, sum_tile(values))
