"""A sampler on CUDA gives the bits of the one on the CPU, given a model that does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from layouts import DEVICE

from gmmkernel import DDIMSampler, gaussian_mixture, noise_schedule

pytestmark = pytest.mark.gpu

SHAPE = (3, 5, 7)


def elementwise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """One product and one sum for each element, each rounded to the type: the same on every device."""
    return x * 0.75 + timestep.to(x.dtype) / 4096


def pair(x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 0.5, elementwise(x, timestep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("variant", "n_steps", "eta", "guidance"),
    [
        (None, None, 0.0, None),
        ("ortho", 6, 1.0, None),
        ("ortho-vub", None, 0.5, 2.5),
        ("rand", None, 0.0, None),
    ],
)
def test_samplers(variant: Any, n_steps: Any, eta: float, guidance: Any, dtype: torch.dtype) -> None:
    mixture = None
    if variant is not None:
        mixture = gaussian_mixture(variant, elements=105, scale=0.5, n_steps=n_steps)
    seeds = torch.tensor([3, -4, 2**40])
    results = []
    for device in (DEVICE, torch.device("cpu")):
        sampler = DDIMSampler(
            noise_schedule(), 6, eta=eta, mixture=mixture, clip_sample_range=1.0, guidance_scale=guidance,
            device=device, dtype=dtype,
        )  # fmt: skip
        model = elementwise if guidance is None else pair
        results.append(
            (
                sampler,
                sampler.sample(model, seeds, SHAPE, batch_size=2, progress=False, return_trajectory=True),
            )
        )
    (on_device, made), (on_cpu, expected) = results
    assert made.sample.device.type == DEVICE.type
    if on_cpu.tables is not None and on_device.tables is not None:
        for table, other in zip(on_device.tables, on_cpu.tables, strict=True):
            assert_same_bits(table.cpu(), other)
    assert made.trajectory is not None
    assert made.x0 is not None
    assert_same_bits(made.trajectory.cpu(), expected.trajectory)
    assert_same_bits(made.x0.cpu(), expected.x0)
    assert_same_bits(made.sample.cpu(), expected.sample)
