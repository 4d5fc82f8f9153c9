"""GMMFlowMatchScheduler against diffusers' FlowMatchEulerDiscreteScheduler, and its runs with noise and mixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from schedulers_beside import SEEDS, SHAPE, inputs, mixture_flow, model, noise_of, relative
from torch import Tensor

from gmmkernel import flow_coefficients, gaussian_mixture, gmm_step, seeds_from_generator
from gmmkernel.integrations.diffusers import GMMFlowMatchScheduler

FLOAT32 = 1e-6
"""Largest relative error against diffusers' float32 step; over all cases here the largest is 2.1e-7."""

Timesteps = dict[str, Any]

CASES: dict[str, tuple[dict[str, Any], Timesteps]] = {
    "plain": ({}, {"num_inference_steps": 7}),
    "shift": ({"shift": 3.0}, {"num_inference_steps": 5}),
    "dynamic": ({"use_dynamic_shifting": True}, {"num_inference_steps": 5, "mu": 0.7}),
    "dynamic-linear": (
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"num_inference_steps": 5, "mu": 0.7},
    ),
    "terminal": ({"shift": 2.0, "shift_terminal": 0.1}, {"num_inference_steps": 6}),
    "karras": ({"use_karras_sigmas": True}, {"num_inference_steps": 6}),
    "exponential": ({"use_exponential_sigmas": True}, {"num_inference_steps": 6}),
    "beta": ({"use_beta_sigmas": True}, {"num_inference_steps": 6}),
    "sigmas": ({"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.2]}),
    "timesteps": ({}, {"sigmas": [0.9, 0.5, 0.1], "timesteps": [900, 450, 100]}),
}


def both(case: str, **options: Any) -> tuple[GMMFlowMatchScheduler, FlowMatchEulerDiscreteScheduler]:
    config, arguments = CASES[case]
    ours = GMMFlowMatchScheduler(**{"offset_scale": 0, **config, **options})
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**arguments)
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
def test_every_option_of_the_times(case: str) -> None:
    ours, theirs = both(case)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    x = inputs()
    for index, timestep in enumerate(theirs.timesteps):
        output = model(x, timestep)
        made = ours.step(output, ours.timesteps[index], x).prev_sample
        x = theirs.step(output, timestep, x).prev_sample
        assert relative(made, x) <= FLOAT32
        assert ours.step_index == theirs.step_index


def test_stochastic_sampling_is_eta_1() -> None:
    """x_s = (1 - s) x0 + s z, with the package's noise for z."""
    ours, theirs = both("shift", stochastic_sampling=True)
    ours.set_seeds(SEEDS)
    x = inputs()
    for step, timestep in enumerate(ours.timesteps):
        output = model(x, timestep)
        t, s = theirs.sigmas[step].double(), theirs.sigmas[step + 1].double()
        wanted = (1 - s) * (x.double() - t * output.double()) + s * noise_of(step, SHAPE).double()
        x = ours.step(output, timestep, x).prev_sample
        assert relative(x, wanted) <= FLOAT32


def by_hand(scheduler: GMMFlowMatchScheduler, eta: float, seeds: Tensor, first: int = 0) -> Tensor:
    coefficients = flow_coefficients(scheduler.sigmas.double(), eta=eta)
    mixture = gaussian_mixture("ortho", elements=60, n_components=4, n_steps=len(coefficients))
    tables, x = mixture.bind(coefficients), inputs()
    for row in range(first, len(coefficients)):
        output = model(x, scheduler.timesteps[row])
        x = gmm_step(x, output, coefficients, row=row, seeds=seeds, mixture=tables).prev_sample
    return x


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("first", [0, 2])
def test_a_run_is_gmm_step(eta: float, first: int) -> None:
    scheduler = mixture_flow(eta=eta, n_components=4, shift=3.0)
    made = []
    for begin in (False, True):
        scheduler.set_timesteps(5)
        if begin:
            scheduler.set_begin_index(first)
        x, generator = inputs(), torch.Generator().manual_seed(1)
        for timestep in scheduler.timesteps[first:]:
            (x,) = scheduler.step(model(x, timestep), timestep, x, generator=generator, return_dict=False)
        made.append(x)
    seeds = seeds_from_generator(torch.Generator().manual_seed(1), 2)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], by_hand(scheduler, eta, seeds, first))


def test_a_first_timestep_that_is_a_copy_or_a_number() -> None:
    made = []
    for convert in (lambda t: t, torch.clone, float):
        scheduler = GMMFlowMatchScheduler(offset_scale=0)
        scheduler.set_timesteps(5)
        x = inputs()
        made.append(scheduler.step(x, convert(scheduler.timesteps[2]), x).prev_sample)
        assert scheduler.step_index == 3
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_a_begin_index_needs_no_timestep() -> None:
    scheduler = GMMFlowMatchScheduler(offset_scale=0)
    x, made = inputs(), []
    for timestep in (None, 123.0):
        scheduler.set_timesteps(5)
        if timestep is not None:
            scheduler.set_begin_index(2)
        made.append(scheduler.step(x, timestep or scheduler.timesteps[2], x).prev_sample)
        assert scheduler.step_index == 3
    assert torch.equal(*made)


def test_it_is_compatible_with_the_one_it_replaces() -> None:
    assert FlowMatchEulerDiscreteScheduler in GMMFlowMatchScheduler().compatibles


def test_scale_noise_before_and_within_a_run() -> None:
    ours, theirs = both("shift")
    x, noise = inputs(), inputs(seed=1)
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(1)
    at = ours.timesteps[1:2]
    first = [scheduler.scale_noise(x, at, noise) for scheduler in (ours, theirs)]
    for scheduler in (ours, theirs):
        scheduler.step(x, scheduler.timesteps[1], x)
    second = [scheduler.scale_noise(x, at, noise) for scheduler in (ours, theirs)]
    assert torch.equal(*first)
    assert torch.equal(*second)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_keep_their_type(dtype: torch.dtype) -> None:
    scheduler = mixture_flow(eta=0.5)
    scheduler.set_seeds(SEEDS)
    x, output = inputs(dtype=dtype), inputs(dtype=dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    made = []
    for kind in (dtype, wide):
        scheduler.set_timesteps(4)
        made.append(scheduler.step(output.to(kind), scheduler.timesteps[1], x.to(kind)).prev_sample)
    assert made[0].dtype == dtype
    assert torch.equal(made[0], made[1].to(dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"invert_sigmas": True}, "invert_sigmas: expected False"),
        ({"eta": 1.5}, "eta: expected a number from 0 to 1, got 1.5"),
        ({"eta": -0.1}, "eta: expected a number from 0 to 1"),
        ({"eta": 0.5, "stochastic_sampling": True}, "eta: expected 1 or None with stochastic_sampling=True"),
    ],
    ids=str,
)
def test_options_that_are_not_supported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMMFlowMatchScheduler(**options)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.5], [0.5, 0.7], [1.2, 0.5], [1.0, 0.0]], ids=str)
def test_sigmas_that_are_no_times(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas: expected strictly descending numbers in"):
        mixture_flow().set_timesteps(sigmas=sigmas)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"timestep": 500},
            TypeError,
            "timestep: expected one of scheduler.timesteps, a float, got an integer",
        ),
        ({"timestep": torch.tensor(2)}, TypeError, "timestep: expected one of scheduler.timesteps, a float"),
        ({"timestep": 123.0}, ValueError, r"timestep: expected one that set_timesteps chose .*, got 123.0"),
        ({"timestep": torch.tensor(123.0)}, ValueError, r"timestep: expected one .*, got 123.0"),
        ({"s_churn": 0.5}, ValueError, "s_churn, s_tmin, s_tmax, s_noise: expected 0, 0, infinity and 1"),
        ({"s_noise": 1.1}, ValueError, "s_churn, s_tmin, s_tmax, s_noise: expected 0, 0, infinity and 1"),
        ({"per_token_timesteps": torch.ones(2, 3)}, ValueError, "per_token_timesteps: expected None"),
        ({"model_output": inputs((1, 3, 4, 5))}, ValueError, "model_output: expected the sample's shape"),
        ({"sample": 500.0, "timestep": inputs()}, TypeError, "sample: expected a torch.Tensor, got float"),
    ],
    ids=str,
)
def test_arguments_of_a_step(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    scheduler = mixture_flow()
    scheduler.set_timesteps(4)
    given: dict[str, Any] = {"model_output": inputs(), "timestep": scheduler.timesteps[0], "sample": inputs()}
    with pytest.raises(error, match=message):
        scheduler.step(**{**given, **arguments})


def test_a_run_ends() -> None:
    scheduler = GMMFlowMatchScheduler(offset_scale=0)
    scheduler.set_timesteps(1)
    x = inputs()
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(IndexError, match="row: expected 0 to 0, got 1"):
        scheduler.step(x, scheduler.timesteps[0], x)
