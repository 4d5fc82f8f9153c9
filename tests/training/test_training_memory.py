"""No noise is stored: what training ops add to the process's memory at their peak."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.memory import peak_memory
from gmmkernel import add_noise, noise_schedule, skip_step_loss, training_coefficients

BATCH, ELEMENTS = 4, 2**22
SIZE = 4 * BATCH * ELEMENTS  # of a batch: large enough to be given back to the system at once


@pytest.fixture
def calls() -> dict[str, Callable[[], object]]:
    coefficients = training_coefficients(noise_schedule(), prediction_type="v_prediction")
    data, output, out = (torch.zeros(BATCH, ELEMENTS) for _ in range(3))
    given = {"row": torch.tensor([3, 500, 800, 999]), "seeds": torch.arange(BATCH)}
    leaf = torch.zeros(BATCH, ELEMENTS, requires_grad=True)

    def backward() -> None:
        skip_step_loss(leaf, coefficients, sample=data, **given).mean().backward()

    return {
        "add_noise into out": lambda: add_noise(data, coefficients, out=out, **given),
        "add_noise": lambda: add_noise(data, coefficients, **given),
        "loss": lambda: skip_step_loss(output, coefficients, sample=data, **given),
        "loss and gradient": backward,
    }


@pytest.mark.parametrize(
    ("name", "batches"), [("add_noise into out", 0), ("add_noise", 1), ("loss", 0), ("loss and gradient", 1)]
)
def test_only_results_take_memory(name: str, batches: int, calls: dict[str, Callable[[], object]]) -> None:
    """Nothing for the noise, and nothing between the loss and its gradient, whose memory is all there is."""
    torch.zeros(10, requires_grad=True).sum().backward()  # loads what is loaded once
    peak = peak_memory(calls[name])
    assert (batches - 0.1) * SIZE < peak < (batches + 0.1) * SIZE
