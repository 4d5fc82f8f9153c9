"""Sums in one fixed order, and the orthonormalisation built on them.

Every sum of the package is this halving tree over tiles, repeated on the tiles' partial sums, so that it has the same
bits whatever the vector width, thread count or device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.reference.arithmetic import Array

DEPENDENT = 2.0**-40
"""A row of which less is left counts as a combination of those before it: the rest is rounding."""


def tree_sum(values: Array) -> Array:
    """Sum over the last axis.

    A tile of 1024 (padded with +0) is halved ten times by adding its second half to its first; the tiles' sums form
    the next level, until one number is left.

    Args:
        values: [..., n] float32 or float64.

    Returns:
        [...] of the same dtype.
    """
    while True:
        tiles = max(1, -(-values.shape[-1] // SUM_TILE))
        padded = np.zeros((*values.shape[:-1], tiles * SUM_TILE), dtype=values.dtype)
        padded[..., : values.shape[-1]] = values
        level = padded.reshape(*values.shape[:-1], tiles, SUM_TILE)
        width = SUM_TILE
        while width > 1:
            width //= 2
            level = level[..., :width] + level[..., width:]
        values = level[..., 0]
        if tiles == 1:
            return values[..., 0]


def orthonormalize(rows: NDArray[np.float64]) -> None:
    """Make the rows orthonormal in place by modified Gram-Schmidt, in order.

    Row k has its projections on rows 0 .. k-1 removed one after another (product, tree sum, product, difference,
    each rounded), and is then divided by its norm.

    Args:
        rows: float64 [K, D], K <= D, linearly independent.

    Raises:
        ValueError: a row is not finite, or no more than 2^-40 of it is left beside the rows before it.
    """
    before = np.sqrt(tree_sum(rows * rows))
    for k in range(rows.shape[0]):
        norm = np.sqrt(tree_sum(rows[k] * rows[k]))
        if not (norm > before[k] * DEPENDENT and np.isfinite(norm)):
            raise ValueError(
                f"rows: expected linearly independent finite rows, row {k} has norm {norm:g} left"
            )
        rows[k] /= norm
        rest = rows[k + 1 :]
        rest -= tree_sum(rest * rows[k])[:, None] * rows[k]
