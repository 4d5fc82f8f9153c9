"""How the samples of a run are shared out between calls of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """Samples that the model is called with together.

    Attributes:
        start: how many samples come before these.
        wanted: how many there are; those behind are copies of the last one.
        seeds: int64 [B].
        initial: [B, ...], or None.
        conditioning: [B, ...] each.
    """

    start: int
    wanted: int
    seeds: Tensor
    initial: Tensor | None
    conditioning: tuple[Tensor, ...]


def chunks(
    seeds: Tensor, initial: Tensor | None, conditioning: Sequence[Tensor], size: int
) -> Iterator[Chunk]:
    """Give the samples in chunks of `size`, the last one filled up; one without samples where there are none."""
    total = seeds.shape[0]
    for start in range(0, max(total, 1), max(size, 1)):
        wanted = min(size, total - start)
        yield Chunk(
            start,
            wanted,
            _filled(seeds[start : start + wanted], size),
            None if initial is None else _filled(initial[start : start + wanted], size),
            tuple(_filled(entries[start : start + wanted], size) for entries in conditioning),
        )


def _filled(entries: Tensor, size: int) -> Tensor:
    """Return entries with copies of the last one behind them, `size` in all; none where there are none."""
    count = entries.shape[0]
    if count in (0, size):
        return entries
    return torch.cat([entries, entries[-1:].expand(size - count, *entries.shape[1:])])


def check_conditioning(conditioning: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """Return what samples are conditioned on as a tuple.

    Raises:
        TypeError: it is no sequence of tensors.
        ValueError: a tensor has not one entry for each of `count` samples.
    """
    if isinstance(conditioning, Tensor) or not isinstance(conditioning, Sequence):
        got = "one tensor" if isinstance(conditioning, Tensor) else type(conditioning).__name__
        raise TypeError(f"conditioning: expected a sequence of tensors, got {got}")
    for place, entries in enumerate(conditioning):
        if not isinstance(entries, Tensor):
            raise TypeError(f"conditioning[{place}]: expected a torch.Tensor, got {type(entries).__name__}")
        if entries.dim() < 1 or entries.shape[0] != count:
            raise ValueError(
                f"conditioning[{place}]: expected shape [{count}, ...], one entry for each sample, "
                f"got {list(entries.shape)}"
            )
    return tuple(conditioning)
