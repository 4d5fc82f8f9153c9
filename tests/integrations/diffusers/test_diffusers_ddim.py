"""GMMDDIMScheduler without a mixture against diffusers' DDIMScheduler, step by step over whole runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from schedulers_beside import inputs, mixture_ddim, model, relative

from gmmkernel.integrations.diffusers import GMMDDIMScheduler

EXACT = 1e-11
"""Largest relative error allowed in float64; the largest here is 4.0e-13."""

FLOAT32 = 1e-4
"""The same against diffusers' own float32 step. The largest here is 8.8e-5, at timestep 1, where its 1 - a_s - sigma^2
cancels; in float64 both do the same."""

SHAPE_WIDE = (2, 3, 16, 16)
BOUNDS: dict[str, dict[str, Any]] = {
    "clip": {"clip_sample": True, "clip_sample_range": 0.8},
    "threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    "free": {"clip_sample": False},
}


def compare(
    options: dict[str, Any], steps: int, dtype: torch.dtype = torch.float32, **step_options: Any
) -> float:
    """Run both, each step from diffusers' sample, and return the largest error of samples and predictions."""
    ours, theirs = GMMDDIMScheduler(offset_scale=0, **options), DDIMScheduler(**options)
    for scheduler in (ours, theirs):
        if dtype == torch.float64:
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
            if not options.get("set_alpha_to_one", True):
                scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        scheduler.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x, worst = inputs(SHAPE_WIDE, dtype), 0.0
    for index, timestep in enumerate(theirs.timesteps):
        noise = inputs(SHAPE_WIDE, dtype, seed=index + 1)
        arguments = (model(x, timestep), timestep, x)
        made = ours.step(*arguments, variance_noise=noise, **step_options)
        wanted = theirs.step(*arguments, variance_noise=noise, **step_options)
        assert made.prev_sample.dtype == dtype
        worst = max(
            worst,
            relative(made.prev_sample, wanted.prev_sample),
            relative(made.pred_original_sample, wanted.pred_original_sample),
        )
        x = wanted.prev_sample
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_every_option_of_a_step(prediction_type: str, spacing: str, bounds: str, dtype: torch.dtype) -> None:
    for eta, clipped, to_one in itertools.product((0.0, 0.6, 1.0), (False, True), (False, True)):
        options = {
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            "set_alpha_to_one": to_one,
            "steps_offset": 1,
            **BOUNDS[bounds],
        }
        error = compare(options, 4, dtype, eta=eta, use_clipped_model_output=clipped)
        assert error <= (EXACT if dtype == torch.float64 else FLOAT32), (eta, clipped, to_one, error)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * (1 + i) for i in range(40)], "num_train_timesteps": 40},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"num_train_timesteps": 37},
    ],
    ids=["scaled_linear", "cosine", "trained", "zero-snr", "T37"],
)
@pytest.mark.parametrize("steps", [1, 3, 7, 30])
def test_noise_schedules_and_numbers_of_steps(options: dict[str, Any], steps: int) -> None:
    assert compare(options, steps, eta=0.5) <= FLOAT32


def test_attributes_are_those_of_diffusers() -> None:
    ours, theirs = mixture_ddim(beta_end=0.03), DDIMScheduler(beta_end=0.03)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.num_inference_steps is None
    for name in ("alphas_cumprod", "final_alpha_cumprod", "betas"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.order, ours.init_noise_sigma, len(ours)) == (
        theirs.order,
        theirs.init_noise_sigma,
        len(theirs),
    )
    assert ours._compatibles == theirs._compatibles
    x, noise = inputs(), inputs(seed=1)
    at = torch.tensor([3, 700])
    assert ours.scale_model_input(x, 3) is x
    assert torch.equal(ours.add_noise(x, noise, at), theirs.add_noise(x, noise, at))
    assert torch.equal(ours.get_velocity(x, noise, at), theirs.get_velocity(x, noise, at))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_samples_are_computed_in_float32(dtype: torch.dtype) -> None:
    """The step of the widened inputs, rounded once."""
    scheduler = mixture_ddim(n_components=3)
    scheduler.set_timesteps(5)
    x, output = inputs(dtype=dtype), inputs(dtype=dtype, seed=1)
    scheduler.set_seeds(torch.tensor([1, 2]))
    made = scheduler.step(output, 400, x, eta=1.0)
    wide = scheduler.step(output.float(), 400, x.float(), eta=1.0)
    assert made.prev_sample.dtype == made.pred_original_sample.dtype == dtype
    assert torch.equal(made.prev_sample, wide.prev_sample.to(dtype))
    assert torch.equal(made.pred_original_sample, wide.pred_original_sample.to(dtype))


def test_an_autocast_model_beside_a_float32_sample() -> None:
    scheduler = GMMDDIMScheduler(offset_scale=0)
    scheduler.set_timesteps(5)
    x, output = inputs(), inputs(dtype=torch.bfloat16, seed=1)
    made = scheduler.step(output, 400, x).prev_sample
    assert made.dtype == torch.float32
    assert torch.equal(made, scheduler.step(output.float(), 400, x).prev_sample)


def test_tuples_strides_and_gradients() -> None:
    scheduler = mixture_ddim(clip_sample=False)
    scheduler.set_timesteps(5)
    x = inputs((2, 5, 4, 3)).permute(0, 3, 2, 1).requires_grad_()
    seeds = torch.tensor([1, 2])
    scheduler.set_seeds(seeds)
    made = scheduler.step(0.1 * x, 400, x, return_dict=False)
    named = scheduler.step(0.1 * x, 400, x)
    assert isinstance(made, tuple)
    assert len(made) == 2
    assert torch.equal(made[0], named.prev_sample)
    assert torch.equal(made[1], named.pred_original_sample)
    (gradient,) = torch.autograd.grad(made[0].sum() + made[1].sum(), x)
    assert gradient.shape == x.shape
    assert bool((gradient != 0).all())
