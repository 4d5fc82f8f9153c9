"""Whole runs of DDIMSampler against diffusers' DDIM and DDPM schedulers, with the same noise handed to both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from denoisers import SHAPE, mixing
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from gmmkernel import DDIMSampler, NoiseSchedule, Stream, noise_schedule, standard_normal
from gmmkernel.samplers import SampleResult

SEEDS = torch.tensor([11, 12])
STEPS = 4
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

EXACT = 1e-10
"""Largest relative error allowed in float64."""

FLOAT32 = 2e-5
"""The same against diffusers' own float32 schedule and step; over all cases here the largest is 7.2e-6."""


def noise_of_step(index: int, dtype: torch.dtype) -> Tensor:
    return standard_normal(SEEDS, SHAPE, step=index, stream=Stream.TRANSITION, dtype=dtype)


def in_float64(scheduler: Any, schedule: NoiseSchedule) -> Any:
    """Give a scheduler of diffusers, which is float32, our float64 schedule."""
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    if not scheduler.config.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = schedule.alphas_cumprod[0]
    return scheduler


def run_ddim(
    scheduler: DDIMScheduler, dtype: torch.dtype, *, next_entry: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """Run diffusers' loop: every state, the first included, and every prediction of the data.

    diffusers steps back by T // n whatever the next timestep is; `next_entry` tells it the real distance.
    """
    x = standard_normal(SEEDS, SHAPE, dtype=dtype)
    visited = [*scheduler.timesteps.tolist(), -1]
    states, predicted = [x], []
    for index, (t, after) in enumerate(itertools.pairwise(visited)):
        if next_entry:
            scheduler.register_to_config(num_train_timesteps=t - after)
            scheduler.num_inference_steps = 1
        noise = noise_of_step(index, dtype) if options["eta"] > 0 else None
        out = scheduler.step(mixing(x, torch.tensor(t)), t, x, variance_noise=noise, **options)
        x = out.prev_sample
        states.append(x)
        predicted.append(out.pred_original_sample)
    return torch.stack(states), torch.stack(predicted)


def run_ours(schedule: NoiseSchedule, steps: int, **options: Any) -> SampleResult:
    sampler = DDIMSampler(schedule, steps, **options)
    return sampler.sample(mixing, SEEDS, SHAPE, progress=False, return_trajectory=True)


def assert_close(result: SampleResult, expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    """Compare states and predictions, each step's error relative to the largest number of that step."""
    for ours, theirs in zip((result.trajectory, result.x0), expected, strict=True):
        assert ours is not None
        assert ours.shape == theirs.shape
        assert bool(theirs.isfinite().all())
        error = (ours.double() - theirs.double()).flatten(1).abs().amax(1)
        size = theirs.double().flatten(1).abs().amax(1)
        assert (error / size).max() <= tolerance, (error / size).tolist()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
def test_ddim_in_float64(name: str, prediction_type: str, spacing: str, offset: int) -> None:
    schedule = noise_schedule(name)
    for limit, rederive, to_one, eta in itertools.product(
        (None, 0.7), (False, True), (False, True), (0.0, 0.6, 1.0)
    ):
        scheduler = DDIMScheduler(
            beta_schedule=name,
            prediction_type=prediction_type,
            clip_sample=limit is not None,
            clip_sample_range=limit or 1.0,
            set_alpha_to_one=to_one,
            timestep_spacing=spacing,
            steps_offset=offset,
        )
        in_float64(scheduler, schedule).set_timesteps(STEPS)
        theirs = run_ddim(
            scheduler,
            torch.float64,
            next_entry=spacing == "linspace",
            eta=eta,
            use_clipped_model_output=rederive,
        )
        ours = run_ours(
            schedule,
            STEPS,
            eta=eta,
            spacing=spacing,
            steps_offset=offset,
            prediction_type=prediction_type,
            clip_sample_range=limit,
            use_clipped_model_output=rederive,
            set_alpha_to_one=to_one,
            dtype=torch.float64,
        )
        assert_close(ours, theirs, EXACT)


@pytest.mark.parametrize(
    ("steps", "spacing"), [(7, "leading"), (30, "trailing"), (63, "linspace"), (1, "trailing")]
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_other_numbers_of_steps(steps: int, spacing: str, eta: float) -> None:
    schedule = noise_schedule()
    scheduler = in_float64(DDIMScheduler(clip_sample=False, timestep_spacing=spacing), schedule)
    scheduler.set_timesteps(steps)
    theirs = run_ddim(scheduler, torch.float64, next_entry=spacing != "leading", eta=eta)
    assert_close(run_ours(schedule, steps, eta=eta, spacing=spacing, dtype=torch.float64), theirs, EXACT)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_from_pure_noise(name: str, prediction_type: str, spacing: str, eta: float) -> None:
    schedule = noise_schedule(name, rescale_betas_zero_snr=True)
    assert schedule.alphas_cumprod[-1] == 0
    scheduler = DDIMScheduler(
        beta_schedule=name,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=True,
    )
    in_float64(scheduler, schedule).set_timesteps(STEPS)
    theirs = run_ddim(scheduler, torch.float64, next_entry=spacing == "linspace", eta=eta)
    options = {"eta": eta, "spacing": spacing, "prediction_type": prediction_type, "clip_sample_range": 1.0}
    assert_close(run_ours(schedule, STEPS, dtype=torch.float64, **options), theirs, EXACT)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_as_installed_in_float32(
    name: str, prediction_type: str, limit: float | None, eta: float
) -> None:
    scheduler = DDIMScheduler(
        beta_schedule=name, prediction_type=prediction_type, clip_sample=limit is not None
    )
    scheduler.set_timesteps(10)
    theirs = run_ddim(scheduler, torch.float32, eta=eta)
    options = {"eta": eta, "prediction_type": prediction_type, "clip_sample_range": limit}
    assert_close(run_ours(noise_schedule(name), 10, **options), theirs, FLOAT32)


@pytest.fixture
def ddpm_noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What diffusers' DDPM draws, in this order, instead of its own noise."""
    waiting: list[Tensor] = []
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_args, **_options: waiting.pop(0)
    )
    return waiting


DDPM_RUNS = ((100, "leading", 100), (10, "leading", 1000), (10, "trailing", 1000), (7, "linspace", 90))


@pytest.mark.parametrize(
    ("prediction_type", "limit", "run"),
    [*itertools.product(PREDICTION_TYPES, (None, 0.7), DDPM_RUNS), ("epsilon", 0.7, (1000, "leading", 1000))],
)
def test_ddpm_in_float64(
    prediction_type: str, limit: float | None, run: tuple[int, str, int], ddpm_noise: list[Tensor]
) -> None:
    """DDPM's posterior is DDIM's step at eta = 1, with the noise derived from the clipped data."""
    steps, spacing, train_steps = run
    schedule = noise_schedule(num_train_timesteps=train_steps)
    scheduler = DDPMScheduler(
        num_train_timesteps=train_steps,
        prediction_type=prediction_type,
        variance_type="fixed_small",
        clip_sample=limit is not None,
        clip_sample_range=limit or 1.0,
        timestep_spacing=spacing,
    )
    in_float64(scheduler, schedule).set_timesteps(steps)
    x = standard_normal(SEEDS, SHAPE, dtype=torch.float64)
    states, predicted = [x], []
    for index, t in enumerate(scheduler.timesteps):
        # At the last step diffusers puts its smallest variance, 1e-20, where the exact one is 0.
        last = index == steps - 1
        ddpm_noise[:] = [torch.zeros_like(x) if last else noise_of_step(index, torch.float64)]
        out = scheduler.step(mixing(x, t), t, x)
        x = out.prev_sample
        states.append(x)
        predicted.append(out.pred_original_sample)
        assert last or not ddpm_noise  # it was used
    ours = run_ours(
        schedule,
        steps,
        eta=1.0,
        spacing=spacing,
        prediction_type=prediction_type,
        clip_sample_range=limit,
        use_clipped_model_output=True,
        dtype=torch.float64,
    )
    assert_close(ours, (torch.stack(states), torch.stack(predicted)), EXACT)
