"""Launches of the Triton kernel for sums: level by level, until one number is left."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.triton.grid import launch_grid, tiles_of
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.sums import sum_level_kernel

_SUM_LEVEL = Program(sum_level_kernel)


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
