"""PNDM, DEIS, DPM-Solver++ and rectified flow against diffusers' schedulers, call by call, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import SHAPE, mixing
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    NoiseSchedule,
    PNDMSampler,
    Sampler,
    Stream,
    noise_schedule,
    standard_normal,
)

SEEDS = torch.tensor([11, 12])
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
EXACT = 1e-10
"""Largest error allowed, relative to the largest number of the state."""


class Float64Torch:
    """What a scheduler's module sees as torch: its casts to float32 keep float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("deis_multistep", "dpmsolver_multistep", "flow_match_euler_discrete"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.torch", Float64Torch())


def noise_of_step(index: int) -> Tensor:
    return standard_normal(SEEDS, SHAPE, step=index, stream=Stream.TRANSITION, dtype=torch.float64)


def run(scheduler: Any, **options: Any) -> Tensor:
    """Run diffusers' loop: every state, the first included."""
    x = standard_normal(SEEDS, SHAPE, dtype=torch.float64)
    states = [x]
    for index, t in enumerate(scheduler.timesteps):
        given = {name: make(index) for name, make in options.items()}
        x = scheduler.step(mixing(x, t), t, x, **given).prev_sample
        states.append(x)
    return torch.stack(states)


def assert_same(sampler: Sampler, theirs: Tensor) -> None:
    result = sampler.sample(mixing, SEEDS, SHAPE, progress=False, return_trajectory=True)
    ours = result.trajectory
    assert ours is not None
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert bool(theirs.isfinite().all())
    error = (ours - theirs).flatten(1).abs().amax(1)
    assert (error / theirs.flatten(1).abs().amax(1)).max() <= EXACT, error.tolist()


def with_sigmas(scheduler: Any, schedule: NoiseSchedule, last: float) -> Any:
    """Give a scheduler the noise levels sqrt((1 - a)/a) of our schedule."""
    a = schedule.alphas_cumprod[scheduler.timesteps]
    ends = torch.tensor([last], dtype=torch.float64)
    scheduler.sigmas = torch.cat([((1 - a) / a).sqrt(), ends])
    return scheduler


def smallest(schedule: NoiseSchedule) -> float:
    a = schedule.alphas_cumprod[0]
    return float(((1 - a) / a).sqrt())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("skip_prk_steps", [False, True])
@pytest.mark.parametrize(
    "steps", [1, 2, 4, 10, 50]
)  # 1000 // steps is even: diffusers' half-steps are halves
@pytest.mark.parametrize("to_one", [False, True])
def test_pndm(name: str, skip_prk_steps: bool, steps: int, to_one: bool) -> None:
    if steps < 4 and not skip_prk_steps:
        with pytest.raises(
            ValueError, match=f"num_inference_steps: expected at least 4 without skip_prk_steps, got {steps}"
        ):
            PNDMSampler(noise_schedule(name), steps)
        return
    schedule = noise_schedule(name)
    scheduler = PNDMScheduler(beta_schedule=name, skip_prk_steps=skip_prk_steps, set_alpha_to_one=to_one)
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.final_alpha_cumprod = torch.ones(()).double() if to_one else schedule.alphas_cumprod[0]
    if steps == 1:  # theirs is at timestep 0; the formula for one step is DDIM's
        ddim = DDIMSampler(schedule, 1, set_alpha_to_one=to_one, dtype=torch.float64)
        ours = PNDMSampler(schedule, 1, skip_prk_steps=True, set_alpha_to_one=to_one, dtype=torch.float64)
        torch.testing.assert_close(
            *(s.sample(mixing, SEEDS, SHAPE, progress=False).sample for s in (ours, ddim))
        )
        return
    scheduler.set_timesteps(steps)
    sampler = PNDMSampler(
        schedule, steps, skip_prk_steps=skip_prk_steps, set_alpha_to_one=to_one, dtype=torch.float64
    )
    assert torch.equal(sampler.timesteps, scheduler.timesteps)
    assert len(sampler.timesteps) == (steps + (steps > 1) if skip_prk_steps else steps + 9)
    assert_same(sampler, run(scheduler))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [1, 5, 14, 20])
def test_deis(name: str, prediction_type: str, steps: int) -> None:
    schedule = noise_schedule(name)
    for order, lower in itertools.product((1, 2, 3), (False, True)):
        scheduler = DEISMultistepScheduler(
            beta_schedule=name,
            prediction_type=prediction_type,
            solver_order=order,
            lower_order_final=lower,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        sampler = DEISSampler(
            schedule,
            steps,
            solver_order=order,
            lower_order_final=lower,
            prediction_type=prediction_type,
            spacing="trailing",
            set_alpha_to_one=False,
            dtype=torch.float64,
        )
        assert torch.equal(sampler.timesteps, scheduler.timesteps)
        assert_same(sampler, run(with_sigmas(scheduler, schedule, smallest(schedule))))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_dpm_solver(name: str, prediction_type: str, algorithm: str, steps: int) -> None:
    schedule = noise_schedule(name)
    options: dict[str, Any] = {"variance_noise": noise_of_step} if algorithm.startswith("sde") else {}
    for order, to_one, lower in itertools.product((1, 2), (False, True), (False, True)):
        scheduler = DPMSolverMultistepScheduler(
            beta_schedule=name,
            prediction_type=prediction_type,
            algorithm_type=algorithm,
            solver_order=order,
            final_sigmas_type="zero" if to_one else "sigma_min",
            lower_order_final=lower,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        sampler = DPMSolverSampler(
            schedule,
            steps,
            algorithm_type=algorithm,
            solver_order=order,
            lower_order_final=lower,
            prediction_type=prediction_type,
            spacing="trailing",
            set_alpha_to_one=to_one,
            dtype=torch.float64,
        )
        assert torch.equal(sampler.timesteps, scheduler.timesteps)
        last = 0.0 if to_one else smallest(schedule)
        assert_same(sampler, run(with_sigmas(scheduler, schedule, last), **options))


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("stochastic", [False, True])
def test_flow(steps: int, shift: float, stochastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' two ends of the family: the ODE, and all noise drawn anew."""
    drawn = iter(range(steps))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor",
        lambda *_args, **_options: noise_of_step(next(drawn)),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    sampler = FlowSampler(steps, shift=shift, eta=float(stochastic), dtype=torch.float64)
    torch.testing.assert_close(sampler.timesteps, scheduler.timesteps.double(), rtol=2e-7, atol=0)
    scheduler.timesteps = sampler.timesteps  # theirs are rounded to float32
    scheduler.sigmas = torch.cat([sampler.timesteps / 1000, torch.zeros(1, dtype=torch.float64)])
    assert_same(sampler, run(scheduler))
    assert next(drawn, None) == (None if stochastic else 0)


@pytest.mark.parametrize("make", [DEISSampler, DPMSolverSampler])
def test_order_one_is_ddim(make: Any) -> None:
    from gmmkernel import DDIMSampler

    schedule = noise_schedule("scaled_linear")
    options: dict[str, Any] = {"spacing": "trailing", "dtype": torch.float64, "set_alpha_to_one": False}
    states = [
        sampler.sample(mixing, SEEDS, SHAPE, progress=False, return_trajectory=True).trajectory
        for sampler in (make(schedule, 7, solver_order=1, **options), DDIMSampler(schedule, 7, **options))
    ]
    torch.testing.assert_close(*states, rtol=1e-11, atol=1e-11)
