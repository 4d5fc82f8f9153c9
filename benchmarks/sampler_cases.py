"""One step of a sampler as its users call it: ours, and diffusers' scheduler of the same method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import Unavailable
from benchmarks.workload import SAMPLING_STEPS, STEP, Workload
from gmmkernel import DPMSolverSampler, noise_schedule

STREAMS = 5
"""Batches that a step of order 2 moves: sample, output and stored prediction read, sample and prediction written."""


def dpm_solver_step(workload: Workload, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """Return a step of `DPMSolverSampler`, of order 2, which stores the data it predicts."""
    sampler = DPMSolverSampler(
        noise_schedule(),
        SAMPLING_STEPS,
        spacing="trailing",
        device=workload.device,
        dtype=dtype,
    )
    sample, model_output = workload.inputs(dtype)
    seeds, history = workload.seeds, (sample.clone(),)

    def call(_: int) -> Tensor:
        return sampler.step(model_output, STEP, sample, seeds, history=history).prev_sample

    return call


def diffusers_dpm_solver_step(
    workload: Workload, dtype: torch.dtype
) -> tuple[Callable[[int], Tensor], Callable[[], None]]:
    """Return the step of diffusers' DPMSolverMultistepScheduler, and what takes it back to that step.

    Raises:
        Unavailable: diffusers is not installed.
    """
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError as error:
        raise Unavailable(f'needs diffusers: pip install "gmmkernel[bench]" ({error})') from None
    untyped: Any = DPMSolverMultistepScheduler
    scheduler = untyped(timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(SAMPLING_STEPS, device=workload.device)
    sample, model_output = workload.inputs(dtype)
    timestep, stored = scheduler.timesteps[STEP], sample.clone()

    def call(_: int) -> Tensor:
        made: Tensor = scheduler.step(model_output, timestep, sample).prev_sample
        return made

    def before() -> None:
        scheduler._step_index = STEP
        scheduler.lower_order_nums = 1
        scheduler.model_outputs = [None, stored]

    return call, before
