"""Launches of the Triton kernels for sums: level by level, until one number is left; and for projections."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.triton.grid import launch_grid, sample_index, tiles_of
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.project import project_kernel
from gmmkernel.backends.triton.sums import sum_level_kernel

_SUM_LEVEL, _PROJECT = map(Program, (sum_level_kernel, project_kernel))


def levels(tiles: int) -> list[int]:
    """Return how many sums each level has, from that of the tiles to the one number."""
    counts = [tiles]
    while counts[-1] > 1:
        counts.append(tiles_of(counts[-1], SUM_TILE))
    return counts


def sum_levels(sums: Tensor, tiles: int) -> None:
    """Fill the places after the tiles' sums, the last with the sum of all.

    Args:
        sums: [B, places, columns], contiguous; as many places as `levels` has sums, the tiles' first.
        tiles: how many these are.
    """
    batch, places, columns = sums.shape
    counts, below = levels(tiles), 0
    for count, above in pairwise(counts):
        numbers = (places, below, count, below + count, above, columns)
        launch_grid(_SUM_LEVEL, columns, batch, (sums,), numbers, (), sums.get_device())
        below += count


def project(sample: Tensor, table: Tensor, row: int | Tensor, result: Tensor) -> None:
    """Fill `result` [B, K] with the sums over elements of samples times the rows of a table; see `Backend`."""
    batch, (table_rows, k, elements) = result.shape[0], table.shape
    tiles = max(1, tiles_of(elements, SUM_TILE))
    sums = result.new_empty(batch, sum(levels(tiles)), k)
    read = by_sample(sample)
    rows, *row_numbers = sample_index(row)
    numbers = (read.stride()[0], sums.shape[1], *row_numbers, table_rows, k, elements)
    launch_grid(_PROJECT, tiles, batch, (read, sums, table, rows), numbers, (), result.get_device())
    sum_levels(sums, tiles)
    result.copy_(sums[:, -1])
