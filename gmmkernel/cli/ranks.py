"""The process group of a command that torchrun has started, and the device of each rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=1)
"""How long a rank waits for another: as long as the slowest chunk may take. A rank that dies is noticed at once."""


class Place(NamedTuple):
    """Where a process stands.

    Attributes:
        rank: its rank, 0 without torchrun.
        ranks: how many there are.
        device: what it computes on.
    """

    rank: int
    ranks: int
    device: torch.device


def by_ranks(place: Place) -> str:
    """Return the part of a report that says how many ranks shared the work, of one nothing."""
    return f" by {place.ranks} ranks" if place.ranks > 1 else ""


@contextmanager
def process_group(device: str) -> Iterator[Place]:
    """Join torchrun's process group for the duration of a block: gloo for "cpu", nccl for "cuda".

    Without torchrun there is none, and this process is all there is. With several GPUs, the one of `LOCAL_RANK` is
    this rank's.

    Raises:
        RuntimeError: there is no CUDA device, or fewer than ranks on this machine.
    """
    launched = dist.is_available() and dist.is_torchelastic_launched()
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if launched else 0)
        if place.index >= torch.cuda.device_count():
            raise RuntimeError(
                f"--device: expected {place} to be there, got {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(place)
    if not launched:
        yield Place(0, 1, place)
        return
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        timeout=_PATIENCE,
        device_id=place if device == "cuda" else None,
    )
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
