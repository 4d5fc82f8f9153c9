"""A sampler on CUDA gives the bits of the one on the CPU, given a model that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from layouts import DEVICE

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Sampler,
    gaussian_mixture,
    noise_schedule,
)
from gmmkernel.samplers import SampleResult

pytestmark = pytest.mark.gpu

SHAPE = (3, 5, 7)


def elementwise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """One product and one sum for each element, each rounded to the type: the same on every device."""
    return x * 0.75 + timestep.to(x.dtype).view(-1, 1, 1, 1) / 4096


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
    if on_cpu.tables is not None and on_device.tables is not None:
        for table, other in zip(on_device.tables, on_cpu.tables, strict=True):
            assert_same_bits(table.cpu(), other)
    assert_same_run(made, expected)


def assert_same_run(made: SampleResult, expected: SampleResult) -> None:
    assert made.sample.device.type == DEVICE.type
    for ours, theirs in zip(made, expected, strict=True):
        assert ours is not None
        assert_same_bits(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: PNDMSampler(noise_schedule(), 6, **o),
        lambda **o: PNDMSampler(noise_schedule(), 6, skip_prk_steps=True, **o),
        lambda **o: DEISSampler(noise_schedule(), 6, lower_order_final=False, **o),
        lambda **o: DPMSolverSampler(noise_schedule(), 6, **o),
        lambda **o: DPMSolverSampler(
            noise_schedule(),
            6,
            algorithm_type="sde-dpmsolver++",
            mixture=gaussian_mixture("ortho", elements=105, scale=0.5, n_steps=6),
            **o,
        ),
        lambda **o: FlowSampler(6, eta=0.5, mixture=gaussian_mixture("ortho", elements=105, scale=0.5), **o),
    ],
    ids=["f-pndm", "plms", "deis-3", "dpm-solver++", "dpm-solver++-sde-mixture", "flow-mixture"],
)
def test_samplers_with_a_history_and_flows(make: Callable[..., Sampler], dtype: torch.dtype) -> None:
    seeds = torch.tensor([3, -4, 2**40])
    made, expected = (
        make(device=device, dtype=dtype, guidance_scale=2.5).sample(
            pair, seeds, SHAPE, batch_size=2, progress=False, return_trajectory=True
        )
        for device in (DEVICE, torch.device("cpu"))
    )
    assert_same_run(made, expected)
