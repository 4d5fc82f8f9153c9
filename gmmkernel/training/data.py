"""What a trainer learns from: tensors in memory, or anything with a length and items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gmmkernel.training.choices import DataOrder

Data = Tensor | Sequence[Tensor] | Dataset[Any]
"""Samples [N, ...]; (samples, *conditioning), each with N entries; or a map-style dataset of either's items."""


def check_data(data: Data) -> tuple[int, int, torch.dtype]:
    """Return the number of samples, how many entries condition each, and the samples' dtype.

    Raises:
        TypeError: `data` is none of the forms of `Data`, or the samples are not floating-point numbers.
        ValueError: there is nothing in it, or not as much of each.
    """
    tensors = _tensors(data)
    if tensors is not None:
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
        if len(set(lengths)) > 1:
            raise ValueError(f"data: expected tensors with as many entries each, got {lengths}")
        count, entries = lengths[0], tensors
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        count = len(data)
        entries = _entries(data[0]) if count else ()
    else:
        raise TypeError(
            f"data: expected a tensor, a sequence of tensors or a map-style dataset, got {type(data).__name__}"
        )
    if count == 0:
        raise ValueError("data: expected at least one sample, got none")
    sample = entries[0]
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        got = sample.dtype if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(f"data: expected samples that are floating-point tensors, got {got}")
    return count, len(entries) - 1, sample.dtype


def batches(
    data: Data, order: DataOrder, steps: range, share: slice, num_workers: int
) -> Iterator[tuple[Tensor, ...]]:
    """Give the share of the batch of each step: the samples, and what conditions them.

    Args:
        data: as `check_data` accepts it.
        order: which samples a batch has.
        steps: the steps to give batches for.
        share: the part of a batch that is given.
        num_workers: processes that load a dataset's items ahead; 0: none. Tensors need none.
    """
    tensors = _tensors(data)
    chosen = (order.batch(step)[share] for step in steps)
    if tensors is not None:
        for index in chosen:
            yield tuple(tensor[index.to(tensor.device)] for tensor in tensors)
        return
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=(index.tolist() for index in chosen),
        num_workers=num_workers,
        generator=torch.Generator("cpu"),  # the global one stays as it is
    )
    for batch in loader:
        yield _entries(batch)


def _tensors(data: Any) -> tuple[Tensor, ...] | None:
    if isinstance(data, Tensor):
        return (data,)
    if isinstance(data, list | tuple) and data and all(isinstance(entry, Tensor) for entry in data):
        return tuple(data)
    return None


def _entries(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, list | tuple) else (item,)
