"""Tests on a CUDA device: where there is none, each is skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The tests' helpers, also where the conftest above, which makes them importable, is not loaded.
_TESTS = Path(__file__).resolve().parents[1]
for _folder in (str(_TESTS), str(_TESTS / "gradients"), str(_TESTS / "training")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from gmmkernel.backends import available_backends  # noqa: E402


@pytest.fixture(autouse=True)
def device_needed() -> None:
    """Skip where there is no device; one that the backend cannot use is a failure."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    (status,) = (status for status in available_backends() if status.name == "cuda")
    assert status.available, status.detail


@pytest.fixture(autouse=True)
def poisoned_memory(device_needed: None) -> None:
    """As the other tests' fixture, by other means: PyTorch hands out memory that was freed last, here full of NaN."""
    for size in (2**20, 2**25):
        torch.full((size,), -1, dtype=torch.int8, device="cuda")
