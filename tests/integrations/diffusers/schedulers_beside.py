"""What these tests share: inputs, whole runs of two schedulers side by side, and the noise that a run would draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gmmkernel import Stream, standard_normal
from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler

SHAPE = (2, 3, 4, 5)
SEEDS = torch.tensor([5, 6])


def inputs(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normals that repeat."""
    return standard_normal(torch.arange(shape[0]) + 1000 * seed, shape[1:]).to(dtype)


def model(sample: Tensor, timestep: Any) -> Tensor:
    """Return an elementwise prediction that depends on the timestep, large enough to be clipped in places."""
    return torch.sin(3 * sample) + sample * (float(timestep) / 1000)


def noise_of(
    step: int, shape: tuple[int, ...], seeds: Tensor = SEEDS, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the noise of a step."""
    return standard_normal(seeds, shape[1:], step=step, stream=Stream.TRANSITION, dtype=dtype)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest error, relative to the largest number."""
    assert ours.shape == theirs.shape
    assert bool(theirs.isfinite().all())
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def mixture_ddim(**options: Any) -> GMMDDIMScheduler:
    """Return a scheduler with a mixture, of scale 1 where nothing is said."""
    return GMMDDIMScheduler(**_with_scale(options))


def mixture_flow(**options: Any) -> GMMFlowMatchScheduler:
    """The same for rectified flow."""
    return GMMFlowMatchScheduler(**_with_scale(options))


def _with_scale(options: dict[str, Any]) -> dict[str, Any]:
    return options if "rho" in options else {"offset_scale": 1.0, **options}
