"""The tensors a mixture is made of once it is bound to the steps of a sampler."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MixtureTables(NamedTuple):
    """A mixture bound to S coefficient rows; each table has S entries, or 1 that all steps share.

    Attributes:
        cdf: int64 [S or 1, K - 1], floor(2^32 cdf) of the weights, ascending; K = 1 has none.
        offsets: float32 or float64 [S or 1, K, D], the offsets delta_k, times the row's `Column.OFFSET` in a step.
        std: the same dtype, [S or 1, 1 or K, R] with R <= D: standard deviations of the first R elements; elements
            from R on have the row's sigma. R = 0: the mixture removes no variance.
        weights: the same dtype, [S or 1, K], the weights themselves: positive. Log-densities need them, steps do not.
        basis: where moments are matched exactly (docs/exact.md), the same dtype, [S or 1, R', K]: orthonormal
            directions q_r = sum_l basis_rl delta_l. std has R = 0 then.
        std_delta: with a basis, the same dtype, [S or 1, 1 or K, R']: component k is drawn with
            sum_r std_delta_kr (q_r . z) q_r besides, which is sqrt(sigma^2 - lambda_kr) - sigma.
        slopes: with a basis, for log-densities, the same dtype, [S or 1, 1 or K, R'].
        shifts: the same, [S or 1, K, R'].
        half_logdet: the same, [S or 1, 1 or K]. A component's log-density is less by
            half_logdet_k + sum_r (slope_kr e_r + shift_kr)^2 than with covariance sigma^2 I, with
            e_r = sum_l basis_rl (E_l - E_0) and E_l what the offset l takes from the log-density then.
    """

    cdf: Tensor
    offsets: Tensor
    std: Tensor
    weights: Tensor | None = None
    basis: Tensor | None = None
    std_delta: Tensor | None = None
    slopes: Tensor | None = None
    shifts: Tensor | None = None
    half_logdet: Tensor | None = None

    def to(self, device: torch.device | str) -> MixtureTables:
        """Return the tables on `device`."""
        return MixtureTables(*(None if table is None else table.to(device) for table in self))  # type: ignore[arg-type]

    def at(self, row: int | Tensor) -> MixtureTables:
        """Return the tables of one row, or of each sample's: for a step whose coefficient rows are one a sample.

        Args:
            row: index of an entry, or int64 tensor [], [1] or [B]; the nearest entry where it is out of range.

        Returns:
            Tables with one entry, views where `row` is an int, or with one for each index.
        """
        return MixtureTables(*(None if table is None else _entries(table, row) for table in self))  # type: ignore[arg-type]


def _entries(table: Tensor, row: int | Tensor) -> Tensor:
    if table.shape[0] == 1:
        return table
    if isinstance(row, Tensor):
        return table.index_select(0, row.reshape(-1).clamp(0, table.shape[0] - 1))
    return table[row : row + 1]
