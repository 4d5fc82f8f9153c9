"""Memory that shows what was left unwritten. A module of its own name: torch.compile looks up what it has traced."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that allocates the same and fills it."""

    @functools.wraps(allocate)
    def allocate_poisoned(*args: Any, **kwargs: Any) -> Any:
        result = allocate(*args, **kwargs)
        if not torch.compiler.is_compiling():
            _poison(result)
        return result

    return allocate_poisoned


def _poison(allocated: object) -> None:
    """Set every byte to 255: NaN in each floating-point type, -1 (or the largest) in each integer type.

    Not by torch's own fill, whose threads would hang in a forked process.
    """
    if isinstance(allocated, np.ndarray):
        if allocated.dtype.kind in "fciu":
            ctypes.memset(allocated.ctypes.data, 255, allocated.nbytes)
    elif type(allocated) is torch.Tensor and allocated.device.type == "cpu" and allocated.dtype != torch.bool:
        storage = allocated.untyped_storage()
        if storage.nbytes():
            ctypes.memset(storage.data_ptr(), 255, storage.nbytes())
