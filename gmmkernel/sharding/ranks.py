"""The ranks of a run: PyTorch's default process group where it is initialised, else this process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Made = TypeVar("Made")


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Any) -> list[Any]:
    """Return every rank's value, in order, to every rank; each waits for the last one."""
    _, size = rank_and_size()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], Made]) -> Made:
    """Do this rank's part of a piece of work, and go on only when every rank has done its own.

    Raises:
        Exception: what `work` raised here.
        RuntimeError: it raised on another rank alone; the message says where and what.
    """
    problem: Exception | None = None
    try:
        made = work()
    except Exception as error:
        problem = error
    told = gather(None if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    failed = [(rank, text) for rank, text in enumerate(told) if text is not None]
    if failed:
        rank, text = failed[0]
        raise RuntimeError(f"rank {rank} failed: {text}")
    return made
