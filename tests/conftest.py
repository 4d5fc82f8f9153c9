"""What every test runs under: memory that shows what was left unwritten, and settings that are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest
import torch
from poison import poisoned
from torch._dynamo import trace_rules
from torch.utils._device import _device_constructors

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialised tensors and arrays with NaN (integers: -1), so that unwritten elements show."""
    # torch.compile lists PyTorch's and NumPy's functions when it is first used, and again after a process group has
    # been; so do default devices. They would list poisoned ones.
    trace_rules.get_torch_obj_rule_map()
    trace_rules.get_tensor_method()
    trace_rules.is_numpy(None)
    _device_constructors()
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
