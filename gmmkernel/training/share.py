"""A rank's share of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Share(NamedTuple):
    """Which samples of the whole batch this process has.

    Attributes:
        rank: of this process, 0 where there is one alone.
        ranks: how many there are.
        part: its places in the batch.
        group: the process group, or None.
    """

    rank: int
    ranks: int
    part: slice
    group: Any

    @classmethod
    def of(cls, model: nn.Module, batch_size: int) -> Share:
        """Return the share of the rank that a DistributedDataParallel is on, or everything for another model.

        Raises:
            ValueError: the batch cannot be divided equally: means of gradients over ranks would not be their mean.
        """
        group = model.process_group if isinstance(model, DistributedDataParallel) else None
        ranks = 1 if group is None else dist.get_world_size(group)
        rank = 0 if group is None else dist.get_rank(group)
        if batch_size % ranks:
            raise ValueError(f"batch_size: expected a multiple of {ranks}, the ranks, got {batch_size}")
        own = batch_size // ranks
        return cls(rank, ranks, slice(rank * own, (rank + 1) * own), group)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.group is None:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.ranks

    def wait(self) -> None:
        """Wait for all ranks: what rank 0 has written is there then."""
        if self.group is not None:
            dist.barrier(self.group)
