"""What every test runs under: memory that shows what was left unwritten, and settings that are put back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch._dynamo import trace_rules

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("repeatable")


# torch.compile lists PyTorch's functions when it is first used, and would list poisoned ones.
trace_rules.get_torch_obj_rule_map()


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


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialised tensors and arrays with NaN (integers: -1), so that unwritten elements show."""

    def poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(allocate)
        def allocate_poisoned(*args: Any, **kwargs: Any) -> Any:
            result = allocate(*args, **kwargs)
            if not torch.compiler.is_compiling():
                _poison(result)
            return result

        return allocate_poisoned

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (np, "empty"),
        (np, "empty_like"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Give `torch.set_num_threads`, and put the number back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that computes on CPU tensors."""
    return str(request.param)
