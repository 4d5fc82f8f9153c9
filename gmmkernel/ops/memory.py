"""Where tensors lie in memory: which inputs an output may share it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_overlap(out: Tensor, *, in_place: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    """Refuse an `out` that shares memory with an input.

    Tensors without memory of their own (fake ones, or any under torch.compile, which keeps reads before writes by
    itself) are let through.

    Args:
        out: the tensor to write.
        in_place: inputs, tensors or anything else, of which each element is read before the same element of `out` is
            written; they may be exactly `out`'s memory.
        tables: inputs that are read at other places too.

    Raises:
        ValueError: `out` shares memory with one of them; the message names it.
    """
    if torch.compiler.is_compiling() or type(out) not in (Tensor, torch.nn.Parameter):
        return
    begin = out.data_ptr()
    end = begin + _extent(out)
    for name, tensor in in_place.items():
        if isinstance(tensor, Tensor) and _meets(tensor, begin, end) and not _is_same(tensor, out):
            raise ValueError(f"out: overlaps {name} in memory without being the same tensor")
    for name, tensor in tables.items():
        if isinstance(tensor, Tensor) and _meets(tensor, begin, end):
            raise ValueError(f"out: overlaps {name} in memory")


def _meets(tensor: Tensor, begin: int, end: int) -> bool:
    first = tensor.data_ptr()
    return first < end and begin < first + _extent(tensor)


def _is_same(tensor: Tensor, out: Tensor) -> bool:
    return (
        tensor.data_ptr() == out.data_ptr()
        and tensor.stride() == out.stride()
        and tensor.shape == out.shape
        and tensor.dtype == out.dtype
    )


def _extent(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
