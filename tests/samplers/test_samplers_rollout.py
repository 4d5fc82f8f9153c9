"""Rollouts for a trainer: stochastic flows, the log-densities of their steps, and what is kept of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from denoisers import ELEMENTS, SHAPE, elementwise, elementwise_pair
from every_sampler import every_sampler, model_of
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import (
    Column,
    DDIMSampler,
    FlowSampler,
    Sampler,
    Stream,
    flow_coefficients,
    flow_sde_coefficients,
    flow_times,
    gaussian_mixture,
    gmm_step,
    gmm_step_log_prob,
    noise_schedule,
    standard_normal,
)
from gmmkernel.samplers import KeptSteps
from gmmkernel.schedules import FLOW_DYNAMICS

STEPS = 5
SEEDS = torch.arange(5)
MIXTURE = gaussian_mixture("ortho", elements=ELEMENTS, n_components=3, scale=0.02, n_steps=STEPS)


def run(sampler: Sampler, model: Any = elementwise, **options: Any) -> Any:
    return sampler.sample(model, SEEDS, SHAPE, **({"progress": False} | options))


@pytest.mark.parametrize("dynamics", FLOW_DYNAMICS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_level": [0.1, 0.2, 0.3, 0.4, 1.0], "guidance_scale": 2.0},
        {"sde_steps": [1, 3], "dtype": torch.float64},
    ],
    ids=["default", "levels, guided", "window, float64"],
)
def test_a_run_is_gmm_step_over_the_rows(dynamics: str, options: dict[str, Any]) -> None:
    if dynamics == "ode":
        options = {name: options[name] for name in options if name not in ("noise_level", "sde_steps")}
    dtype = options.get("dtype", torch.float32)
    sampler = FlowSampler(STEPS, shift=3.0, dynamics=dynamics, **options)
    guided = "guidance_scale" in options
    given = {name: value for name, value in options.items() if name != "dtype"}
    rows = flow_sde_coefficients(
        flow_times(STEPS, shift=3.0), dynamics=dynamics, dtype=dtype, **given
    ).coefficients
    assert torch.equal(sampler.coefficients, rows)
    result = run(
        sampler, elementwise_pair if guided else elementwise, return_trajectory=True, return_log_prob=True
    )
    x = standard_normal(SEEDS, SHAPE, stream=Stream.INITIAL, dtype=dtype)
    for i, timestep in enumerate(sampler.timesteps):
        uncond, output = elementwise_pair(x, timestep)
        made = gmm_step(
            x,
            output,
            rows,
            row=i,
            seeds=SEEDS,
            model_output_uncond=uncond if guided else None,
            return_log_prob=True,
        )
        x = made.prev_sample
        assert_same_bits(result.trajectory[i + 1], x)
        assert_same_bits(result.log_probs[:, i], made.log_prob)
    noisy = [i for i in range(STEPS) if rows[i, Column.SIGMA] > 0]
    assert result.log_probs.isfinite().all(0).nonzero()[:, 0].tolist() == noisy
    assert result.log_probs[:, [i for i in range(STEPS) if i not in noisy]].isnan().all()
    assert result.kept is None


def test_without_dynamics_nothing_has_changed() -> None:
    rows = flow_coefficients(flow_times(STEPS, shift=3.0), eta=0.6)
    assert torch.equal(FlowSampler(STEPS, shift=3.0, eta=0.6).coefficients, rows)


def doubled(x: Tensor, timestep: Tensor) -> Tensor:
    return torch.cat(elementwise_pair(x, timestep))


def learned(x: Tensor, timestep: Tensor) -> Tensor:
    return torch.cat([elementwise(x, timestep), x], dim=1)


def narrow(x: Tensor, timestep: Tensor) -> Tensor:
    return elementwise(x, timestep).bfloat16()


SAMPLERS: dict[str, tuple[Sampler, Any]] = {
    "flow-sde": (FlowSampler(STEPS, shift=3.0, dynamics="flow-sde"), elementwise),
    "bf16 output": (FlowSampler(STEPS, shift=3.0, dynamics="dance-sde"), narrow),
    "bf16": (FlowSampler(STEPS, dynamics="cps", dtype=torch.bfloat16), elementwise),
    "float64": (FlowSampler(STEPS, dynamics="flow-sde", dtype=torch.float64), elementwise),
    "guided": (FlowSampler(STEPS, dynamics="flow-sde", guidance_scale=3.0), doubled),
    "mixture": (FlowSampler(STEPS, dynamics="cps", mixture=MIXTURE), elementwise),
    "learned variance": (
        DDIMSampler(noise_schedule(), STEPS, eta=1.0, mixture=MIXTURE, learned_variance=True),
        learned,
    ),
}


def rescored(sampler: Sampler, kept: KeptSteps) -> Tensor:
    """Return the log-densities of kept steps from what was kept alone, [N, n]."""
    made = []
    for j, step in enumerate(kept.steps):
        uncond = None if kept.model_outputs_uncond is None else kept.model_outputs_uncond[j]
        made.append(
            gmm_step_log_prob(
                kept.next_latents[j],
                kept.latents[j],
                kept.model_outputs[j],
                sampler.coefficients,
                row=step,
                mixture=sampler.tables,
                model_output_uncond=uncond,
            )
        )
    return torch.stack(made, dim=1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_what_is_kept_scores_to_the_bit(name: str, batch_size: int | None) -> None:
    """Of the steps asked for, whole or in chunks, the last one filled up; ratios of a trainer begin at 1."""
    sampler, model = SAMPLERS[name]
    steps = [0, 1, 3]
    result = run(
        sampler,
        model,
        batch_size=batch_size,
        keep_steps=steps,
        return_log_prob=True,
        return_trajectory=True,
    )
    kept = result.kept
    assert kept.steps.tolist() == steps
    assert kept.steps.dtype == torch.int64
    for j, i in enumerate(steps):
        assert_same_bits(kept.latents[j], result.trajectory[i])
        assert_same_bits(kept.next_latents[j], result.trajectory[i + 1])
        assert_same_bits(
            kept.model_outputs[j],
            elementwise(result.trajectory[i], sampler.timesteps[i]).to(kept.model_outputs),
        )
    assert kept.model_outputs.dtype == (torch.bfloat16 if name.startswith("bf16") else sampler.dtype)
    assert (kept.model_outputs_uncond is not None) == (name == "guided")
    assert result.log_probs.shape == (len(SEEDS), len(steps))
    assert result.log_probs.isfinite().all()
    assert_same_bits(rescored(sampler, kept), result.log_probs)
    every = run(sampler, model, return_log_prob=True)
    assert_same_bits(every.log_probs[:, steps], result.log_probs)
    assert_same_bits(every.sample, result.sample)
    alone = run(sampler, model, keep_steps=steps)
    assert alone.log_probs is None
    for found, wanted in zip(alone.kept, kept, strict=True):
        assert_same_bits(found, wanted)


def test_a_late_start_counts_steps_of_the_whole_schedule() -> None:
    sampler, model = SAMPLERS["flow-sde"]
    whole = run(sampler, model, return_trajectory=True, return_log_prob=True)
    late = run(
        sampler,
        model,
        initial=whole.trajectory[2],
        first_step=2,
        return_log_prob=True,
        keep_steps=range(2, STEPS),
    )
    assert_same_bits(late.log_probs, whole.log_probs[:, 2:])
    assert late.kept.steps.tolist() == [2, 3, 4]


def test_a_model_that_writes_where_it_wrote_before() -> None:
    """As one in a CUDA graph does: what is kept has been copied."""
    sampler, model = SAMPLERS["flow-sde"]
    buffer = torch.empty(len(SEEDS), *SHAPE)
    made = run(sampler, lambda x, t: buffer.copy_(model(x, t)), keep_steps=[0, 1])
    for found, wanted in zip(made.kept, run(sampler, model, keep_steps=[0, 1]).kept, strict=True):
        assert_same_bits(found, wanted)


def test_every_sampler_scores_its_steps() -> None:
    """Multistep methods and mixtures too, as its own `step` does."""
    offenders = []
    for name, sampler in every_sampler().items():
        result = sampler.sample(model_of(sampler), SEEDS, (3, 4), progress=False, return_log_prob=True)
        x, history = standard_normal(SEEDS, (3, 4), stream=Stream.INITIAL), ()
        scored = []
        for i, timestep in enumerate(sampler.timesteps):
            output = model_of(sampler)(x, timestep.expand(len(x)))
            made = sampler.step(output, i, x, SEEDS, history=history, return_log_prob=True)
            x, _, history, log_prob = made
            scored.append(log_prob)
        wanted = torch.stack(scored, dim=1)
        noisy = bool(wanted.isfinite().any())
        if not torch.equal(result.log_probs.nan_to_num(), wanted.nan_to_num()):
            offenders.append(name)
        assert noisy == name.startswith(("DDIM, ", "SDE", "flow")) or name == "DDIM, clipped", name
    assert not offenders


def test_no_seeds_keep_nothing() -> None:
    sampler, model = SAMPLERS["guided"]
    result = sampler.sample(
        model, SEEDS[:0], SHAPE, progress=False, keep_steps=[1, 2], return_log_prob=True, batch_size=2
    )
    assert result.log_probs is not None
    assert result.log_probs.shape == (0, 2)
    assert result.kept is not None
    for tensor in result.kept[1:]:
        assert tensor is not None
        assert tensor.shape == (2, 0, *SHAPE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dynamics": "sde"}, ValueError, "dynamics: expected one of 'flow-sde', 'dance-sde', 'cps', 'ddim', 'ode'"),
        ({"dynamics": "cps", "eta": 0.5}, ValueError, "eta: expected 0 beside dynamics='cps', which has a noise level"),
        ({"noise_level": 0.7}, ValueError, "noise_level: expected None without dynamics, got 0.7"),
        ({"sde_steps": [0]}, ValueError, "sde_steps: expected None without dynamics, got [0]"),
        ({"sigma_max": 0.9}, ValueError, "sigma_max: expected None without dynamics, got 0.9"),
        ({"dynamics": "cps", "noise_level": 2}, ValueError, "noise_level: expected numbers from 0 to 1"),
        ({"dynamics": "cps", "sde_steps": [5]}, ValueError, "sde_steps[0]: expected an integer from 0 to 4, got 5"),
        ({"dynamics": "flow-sde", "clip_sample_range": 1.0}, ValueError, "clip_sample_range: expected None with"),
    ],
)  # fmt: skip
def test_samplers_that_cannot_be_made(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        FlowSampler(STEPS, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_steps": []}, ValueError, "keep_steps: expected at least one step, or None to keep nothing, got none"),
        ({"keep_steps": [5]}, ValueError, "keep_steps[0]: expected an integer from 0 to 4, got 5"),
        ({"keep_steps": [0, -1]}, ValueError, "keep_steps[1]: expected an integer from 0 to 4, got -1"),
        ({"keep_steps": [2, 1]}, ValueError, "keep_steps: expected ascending steps, each once, got 1 after 2"),
        ({"keep_steps": [2, 2]}, ValueError, "keep_steps: expected ascending steps, each once, got 2 after 2"),
        ({"keep_steps": [1.0]}, TypeError, "keep_steps[0]: expected an integer from 0 to 4, got 1.0"),
        ({"keep_steps": 1}, TypeError, "keep_steps: expected a sequence of step indices, got int"),
        (
            {"keep_steps": [1], "first_step": 2, "initial": torch.zeros(5, *SHAPE)},
            ValueError,
            "keep_steps[0]: expected an integer from 2 to 4, got 1",
        ),
        ({"return_log_prob": 1}, TypeError, "return_log_prob: expected True or False, got 1"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_kept(options: dict[str, Any], error: type[Exception], message: str) -> None:
    def model(x: Tensor, timestep: Tensor) -> Tensor:
        raise AssertionError("the model was called")

    with pytest.raises(error, match="^" + re.escape(message)):
        run(SAMPLERS["flow-sde"][0], model, **options)


def test_outputs_of_another_type_are_not_rounded() -> None:
    outputs = iter([torch.bfloat16, torch.float32])
    message = "model_output: expected torch.bfloat16 as in steps kept before, got torch.float32"
    with pytest.raises(TypeError, match=re.escape(message)):
        run(SAMPLERS["flow-sde"][0], lambda x, t: x.to(next(outputs)), keep_steps=[0, 1])
