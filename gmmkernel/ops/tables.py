"""The tensors a mixture is made of once it is bound to the steps of a sampler."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MixtureTables(NamedTuple):
    """A mixture bound to S coefficient rows; each table has S entries, or 1 that all steps share.

    Attributes:
        thresholds: int64 [S or 1, K - 1], floor(2^32 cdf) of the weights, ascending; K = 1 has none.
        offsets: float32 or float64 [S or 1, K, D], the offsets delta_k, times the row's `Column.OFFSET` in a step.
        std: the same dtype, [S or 1, 1 or K, R] with R <= D: standard deviations of the first R elements; elements
            from R on have the row's sigma. R = 0: the mixture removes no variance.
        weights: the same dtype, [S or 1, K], the weights themselves: positive. Log-densities need them, steps do not.
    """

    thresholds: Tensor
    offsets: Tensor
    std: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device | str) -> MixtureTables:
        """Return the tables on `device`."""
        return MixtureTables(*(None if table is None else table.to(device) for table in self))  # type: ignore[arg-type]
