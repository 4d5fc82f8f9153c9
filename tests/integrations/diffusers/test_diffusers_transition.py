"""Dynamics of GMMFlowMatchScheduler: its runs, and transitions drawn and scored for rollouts and trainers."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from helpers import assert_same_bits
from schedulers_beside import SEEDS, SHAPE, inputs, model, noise_of
from torch import Tensor

from gmmkernel import Column, FlowSampler, flow_sde_coefficients, gaussian_mixture, gmm_step
from gmmkernel.integrations.diffusers import FlowTransition, GMMFlowMatchScheduler
from gmmkernel.schedules import FLOW_DYNAMICS

STEPS = 5
SIGMAS = np.linspace(1, 1 / STEPS, STEPS).tolist()  # as pipelines have them
X, V = inputs(), inputs(seed=1)


def make(dynamics: str | None = "flow-sde", **options: Any) -> GMMFlowMatchScheduler:
    scheduler = GMMFlowMatchScheduler(**{"shift": 3.0, "dynamics": dynamics, **options})
    scheduler.set_timesteps(sigmas=SIGMAS)
    return scheduler


@pytest.mark.parametrize("dynamics", FLOW_DYNAMICS)
def test_a_run_is_gmm_step_over_the_rows(dynamics: str) -> None:
    options: dict[str, Any] = {} if dynamics == "ode" else {"noise_level": 0.5, "sde_steps": [0, 1, 3]}
    scheduler = make(dynamics, **options)
    rows = flow_sde_coefficients(scheduler.sigmas.double(), dynamics=dynamics, **options).coefficients
    sampler = FlowSampler(
        STEPS, shift=3.0, dynamics=dynamics, **options
    )  # its times are not rounded to float32
    torch.testing.assert_close(sampler.coefficients, rows, rtol=1e-5, atol=1e-6)
    scheduler.set_seeds(SEEDS)
    x = wanted = X
    for i, timestep in enumerate(scheduler.timesteps):
        wanted = gmm_step(wanted, model(wanted, timestep), rows, row=i, seeds=SEEDS).prev_sample
        x = scheduler.step(model(x, timestep), timestep, x).prev_sample
        assert_same_bits(x, wanted)


def test_an_ode_has_the_bits_of_diffusers_and_draws_nothing() -> None:
    scheduler, theirs = make("ode"), FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=SIGMAS)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    x = other = X
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, timestep), timestep, x, generator=generator).prev_sample
        other = theirs.step(model(other, timestep), timestep, other).prev_sample
        assert_same_bits(x, other)
    assert torch.equal(generator.get_state(), before)
    make("cps").step(V, make("cps").timesteps[0], X, generator=generator)
    assert not torch.equal(generator.get_state(), before)


def eager(
    dynamics: str, a: float, x: Tensor, v: Tensor, t: Tensor, s: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and std of a transition in PyTorch's operators."""
    if dynamics == "cps":
        std = s * math.sin(a * math.pi / 2)
        return (1 - s) * (x - t * v) + (s**2 - std**2).sqrt() * (x + (1 - t) * v), std.expand_as(t)
    g = a * (t / (1 - torch.where(t == 1, first, t))).sqrt() if dynamics == "flow-sde" else a * t**0
    dt = s - t
    mean = x * (1 + g**2 / (2 * t) * dt) + v * (1 + g**2 * (1 - t) / (2 * t)) * dt
    return mean, g * (-dt).sqrt()


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_eager_formulas(dynamics: str, dtype: torch.dtype) -> None:
    """Each sample at a step of its own: what is drawn, its mean, std and log-density, and gradients of both."""
    scheduler, at = make(dynamics, noise_level=0.6), torch.tensor([3, 0])
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 3e-6}
    x, v = X.to(dtype), V.to(dtype).requires_grad_()
    drawn = scheduler.transition(v, scheduler.timesteps[at], x, seeds=SEEDS)
    sigmas = scheduler.sigmas.double()
    t, s = (sigmas[index].view(2, 1, 1, 1) for index in (at, at + 1))
    own = v.detach().double().requires_grad_()
    mean, std = eager(dynamics, 0.6, x.double(), own, t, s, sigmas[1])
    noise = torch.cat([noise_of(int(i), (1, *SHAPE[1:]), SEEDS[b : b + 1], dtype) for b, i in enumerate(at)])
    torch.testing.assert_close(drawn.prev_sample.double(), mean + std * noise.double(), **tolerance)
    torch.testing.assert_close(drawn.mean.double(), mean, **tolerance)
    torch.testing.assert_close(drawn.std.double(), std[:, 0, 0, 0], **tolerance)
    y = drawn.prev_sample.detach()
    log_prob = torch.distributions.Normal(mean, std).log_prob(y.double()).flatten(1).sum(1)
    torch.testing.assert_close(drawn.log_prob.double(), log_prob, **tolerance)
    scored = scheduler.transition(v, scheduler.timesteps[at], x, y)
    assert scored.prev_sample is y
    for name in ("log_prob", "mean", "std"):
        assert_same_bits(getattr(scored, name), getattr(drawn, name))
    weights = torch.tensor([1.5, -0.5], dtype=torch.float64)
    for name, truth in (("log_prob", log_prob), ("mean", mean.flatten(1).sin().sum(1))):
        found = getattr(scored, name) if name == "log_prob" else scored.mean.flatten(1).sin().sum(1)
        (gradient,) = torch.autograd.grad((found * weights).sum(), v, retain_graph=True)
        (wanted,) = torch.autograd.grad((truth * weights).sum(), own, retain_graph=True)
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient.double() / scale, wanted / scale, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{"dynamics": "dance-sde"}, {"dynamics": None, "eta": 0.5}], ids=str)
def test_a_rollout_draws_what_a_run_does(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """And leaves it where it is; a mean has more bits than a sample of 16."""
    scheduler = make(**options)
    scheduler.set_seeds(SEEDS)
    x = X.to(dtype)
    for i, timestep in enumerate(scheduler.timesteps):
        v = model(x, timestep)
        before = scheduler.step_index
        drawn = scheduler.transition(v, timestep, x, seeds=SEEDS)
        assert scheduler.step_index == before
        again = scheduler.transition(v, scheduler.timesteps[[i, i]], x, drawn.prev_sample)
        assert_same_bits(again.log_prob, drawn.log_prob)
        assert (
            drawn.mean.dtype
            == drawn.std.dtype
            == drawn.log_prob.dtype
            == (torch.float64 if dtype == torch.float64 else torch.float32)
        )
        quiet = float(drawn.std[0]) == 0
        assert quiet == (i == STEPS - 1 and options["dynamics"] is None)
        assert drawn.log_prob.isnan().tolist() == [quiet] * 2
        if quiet:
            assert_same_bits(drawn.mean.to(dtype), drawn.prev_sample)
        x = scheduler.step(v, timestep, x).prev_sample
        assert_same_bits(drawn.prev_sample, x)


def test_nothing_is_read_on_the_way() -> None:
    """In one graph, where a timestep is looked up as on a device: a value that is read breaks it."""
    scheduler = make()
    at = scheduler.timesteps[[3, 0]]
    wanted = scheduler.transition(V, at, X, seeds=SEEDS)

    @torch.compile(fullgraph=True, backend="eager")
    def draw(v: Tensor, at: Tensor, x: Tensor, seeds: Tensor) -> FlowTransition:
        return scheduler.transition(v, at, x, seeds=seeds)

    for found, expected in zip(draw(V, at, X, SEEDS), wanted, strict=True):
        assert_same_bits(found, expected)
    with pytest.raises(IndexError, match=r"row: expected 0 to 4, got -1"):
        draw(V, at + 1, X, SEEDS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "prev_sample, seeds: expected one to score, or the other to draw with, got neither"),
        ({"prev_sample": X, "seeds": SEEDS}, ValueError, "prev_sample, seeds: expected one to score, or the other"),
        ({"timesteps": torch.tensor(123.0)}, ValueError, "timesteps: expected one that set_timesteps chose (1000.0, "),
        ({"timesteps": torch.tensor([1000.0, 0.5])}, ValueError, "timesteps: expected one that set_timesteps chose"),
        ({"timesteps": torch.tensor(1000)}, TypeError, "timesteps: expected a float tensor of values of scheduler"),
        ({"timesteps": 1000.0}, TypeError, "timesteps: expected a float tensor of values of scheduler.timesteps"),
        ({"timesteps": torch.ones(3)}, ValueError, "timesteps: expected shape [], [1] or [2], got [3]"),
        ({"timesteps": torch.ones(2, 1)}, ValueError, "timesteps: expected shape [], [1] or [2], got [2, 1]"),
        ({"timesteps": torch.ones(2, device="meta")}, ValueError, "timesteps: expected them on the CPU or on cpu like"),
        ({"seeds": SEEDS[:1]}, ValueError, "seeds: expected one for each of 2 samples, got 1"),
        ({"seeds": SEEDS.int()}, TypeError, "seeds: expected int64, got torch.int32"),
        ({"prev_sample": X.double()}, TypeError, "prev_sample: expected the sample's dtype torch.float32, got"),
        ({"prev_sample": X[:1]}, ValueError, "prev_sample: expected the sample's shape"),
        ({"model_output": V[:1], "seeds": SEEDS}, ValueError, "model_output: expected the sample's shape"),
        ({"sample": X.tolist()}, TypeError, "sample: expected a torch.Tensor, got list"),
    ],
)  # fmt: skip
def test_transitions_that_cannot_be_done(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    scheduler = make()
    given = {"model_output": V, "timesteps": scheduler.timesteps[0], "sample": X}
    if arguments and not {"prev_sample", "seeds"} & arguments.keys():
        given["seeds"] = SEEDS
    with pytest.raises(error, match="^" + re.escape(message)):
        scheduler.transition(**{**given, **arguments})


def test_schedulers_that_have_no_transitions() -> None:
    with pytest.raises(ValueError, match=r"^set_timesteps: expected a call before the first transition"):
        GMMFlowMatchScheduler(dynamics="cps").transition(V, torch.tensor(1000.0), X, seeds=SEEDS)
    own = make()
    own.set_mixture(gaussian_mixture("ortho", elements=60, n_components=3, scale=0.1))
    for scheduler in (make(offset_scale=0.1), own):
        with pytest.raises(ValueError, match=r"^transition: expected a scheduler without a mixture"):
            scheduler.transition(V, scheduler.timesteps[0], X, seeds=SEEDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamics": "sde"}, "dynamics: expected one of 'flow-sde', 'dance-sde', 'cps', 'ddim', 'ode', got 'sde'"),
        ({"dynamics": "cps", "eta": 0.5}, "eta: expected 0 beside dynamics='cps'"),
        ({"dynamics": "cps", "stochastic_sampling": True}, "stochastic_sampling: expected False beside dynamics='cps'"),
        ({"noise_level": 0.7}, "noise_level: expected None without dynamics, got 0.7"),
        ({"sde_steps": [0]}, "sde_steps: expected None without dynamics, got [0]"),
        ({"sigma_max": 0.9}, "sigma_max: expected None without dynamics, got 0.9"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        GMMFlowMatchScheduler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": -0.7}, "noise_level: expected finite numbers >= 0, got -0.7 at step 0"),
        ({"noise_level": [0.7]}, "noise_level: expected shape [5], got [1]"),
        ({"sde_steps": [5]}, "sde_steps[0]: expected an integer from 0 to 4, got 5"),
        ({"sigma_max": 1.5}, "sigma_max: expected a number above 0 and below 1, got 1.5"),
    ],
)
def test_options_that_do_not_go_with_the_steps(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make(**options)


def test_options_are_saved_and_loaded(tmp_path: Path) -> None:
    levels = [0.5, 0.25, 1.0, 0.0, 0.75]
    plain = {"dynamics": "flow-sde", "noise_level": levels, "sde_steps": [1, 2], "sigma_max": 0.75}
    forms = [
        plain,
        {**plain, "noise_level": np.array(levels), "sde_steps": range(1, 3), "sigma_max": np.float32(0.75)},
        {**plain, "noise_level": [np.float32(level) for level in levels], "sde_steps": (np.int64(1), 2)},
    ]
    wanted = make(**plain).transition(V, torch.tensor([1000.0]), X, seeds=SEEDS)
    for options in forms:
        scheduler = make(**options)
        scheduler.save_pretrained(tmp_path)
        assert {name: json.loads(scheduler.to_json_string())[name] for name in plain} == plain
        loaded = GMMFlowMatchScheduler.from_pretrained(tmp_path)
        again = GMMFlowMatchScheduler.from_config(scheduler.config)
        for other in (loaded, again):
            assert {name: other.config[name] for name in plain} == plain
            other.set_timesteps(sigmas=SIGMAS)
        copies = [scheduler, loaded, again, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
        for other in copies:
            made = other.transition(V, other.timesteps[:1], X, seeds=SEEDS)
            for found, expected in zip(made, wanted, strict=True):
                assert_same_bits(found, expected)


def test_options_are_those_of_the_newest_set_timesteps() -> None:
    """A pipeline may change the config of a scheduler; what was made for the last run is not taken for the next."""
    scheduler = make("cps")
    stds = [scheduler.transition(V, scheduler.timesteps[:1], X, seeds=SEEDS).std]
    none = {"dynamics": None, "noise_level": None, "sde_steps": None}
    for options in ({"noise_level": 0.2}, {"sde_steps": []}, none):
        scheduler.register_to_config(**options)
        scheduler.set_timesteps(sigmas=SIGMAS)
        stds.append(scheduler.transition(V, scheduler.timesteps[:1], X, seeds=SEEDS).std)
    rows = flow_sde_coefficients(scheduler.sigmas.double(), dynamics="cps", noise_level=0.2).coefficients
    assert float(stds[0][0]) > float(stds[1][0]) == float(rows[0, Column.SIGMA])
    assert [float(std[0]) for std in stds[2:]] == [0, 0]


def test_the_sigma_max_of_another_scheduler_is_not_this_one() -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    theirs = UniPCMultistepScheduler(**flow, sigma_max=0.9).config
    with pytest.raises(ValueError, match=r"^sigma_max: GMMFlowMatchScheduler does not support it"):
        GMMFlowMatchScheduler.from_config(theirs, dynamics="flow-sde")
    for given in (None, 0.8):
        ours = GMMFlowMatchScheduler.from_config(theirs, dynamics="flow-sde", sigma_max=given)
        assert ours.config.sigma_max == given
