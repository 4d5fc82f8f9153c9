"""Requests of different kinds and at different steps in one batch: each has the bits it has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import ELEMENTS, SHAPE, elementwise, elementwise_pair
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import (
    Column,
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    Mixture,
    MixtureTables,
    Sampler,
    gaussian_mixture,
    gmm_step,
    noise_schedule,
    stack_samplers,
    standard_normal,
)
from gmmkernel.samplers import StackedSamplers

LINEAR, SCALED = noise_schedule("linear"), noise_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012)


def mixture(variant: str, steps: int | None, **options: Any) -> Mixture:
    defaults = {"elements": ELEMENTS, "n_components": 3, "scale": 0.4}
    return gaussian_mixture(variant, n_steps=steps, **(defaults | options))


def kinds(*, guided: bool = True, **common: Any) -> list[Sampler]:
    """Samplers that differ in all they may: R is 0, K and D, std is for one component and for each."""
    unequal = [0.2, 0.3, 0.5]
    made: list[Sampler] = [
        DDIMSampler(LINEAR, 3, **common),
        DDIMSampler(LINEAR, 7, eta=1.0, spacing="trailing", **common),
        DDIMSampler(SCALED, 4, mixture=mixture("ortho", 4), prediction_type="v_prediction", **common),
        DDIMSampler(LINEAR, 5, eta=1.0, mixture=mixture("ortho", 5), clip_sample_range=0.7, **common),
        DDIMSampler(LINEAR, 5, eta=0.5, mixture=mixture("rand", None, weights=unequal), **common),
        DDIMSampler(SCALED, 2, eta=1.0, mixture=mixture("ortho-vub", None), set_alpha_to_one=False, **common),
        DDIMSampler(LINEAR, 1, eta=1.0, mixture=mixture("ortho-vub", 1, weights=unequal), **common),
        DPMSolverSampler(LINEAR, 3, algorithm_type="sde-dpmsolver++", solver_order=1, **common),
    ]
    if guided:
        made += [
            DDIMSampler(LINEAR, 4, guidance_scale=2.5, prediction_type="sample", **common),
            DDIMSampler(LINEAR, 6, eta=1.0, guidance_scale=-0.5, mixture=mixture("rand", 6), **common),
        ]
    return made


def alone(sampler: Sampler, seed: int) -> Tensor:
    model = elementwise_pair if sampler.guided else elementwise
    return sampler.sample(model, torch.tensor([seed]), SHAPE, progress=False).sample[0]


def together(
    stack: StackedSamplers, requests: list[tuple[int, int, int]], dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    """Run requests (kind, seed, first tick) in one batch, whose other slots idle meanwhile."""
    seeds = torch.tensor([seed for _, seed, _ in requests])
    pair = torch.tensor([stack.guided[kind] for kind, *_ in requests]).view(-1, 1, 1)
    sample = standard_normal(seeds, SHAPE, dtype=dtype)
    row = torch.full_like(seeds, stack.idle_row)
    finished: dict[int, Tensor] = {}
    for tick in range(max(start + stack.n_steps[kind] for kind, _, start in requests)):
        for slot, (kind, _, start) in enumerate(requests):
            if tick == start:
                row[slot] = stack.first_rows[kind]
        timestep = stack.timesteps[row].view(-1, 1, 1)
        uncond, output = elementwise_pair(sample, timestep)
        sample = gmm_step(
            sample,
            output,
            stack.coefficients,
            row=row,
            step=stack.steps[row],
            seeds=seeds,
            mixture=stack.tables,
            model_output_uncond=torch.where(pair, uncond, output) if any(stack.guided) else None,
            **options,
        ).prev_sample
        row = stack.next_rows[row]
        for slot, (kind, _, start) in enumerate(requests):
            if tick == start + stack.n_steps[kind] - 1:
                assert int(row[slot]) == stack.idle_row
                finished[slot] = sample[slot]
    assert (row == stack.idle_row).all()
    return [finished[slot] for slot in range(len(requests))]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_request_has_the_bits_it_has_alone(dtype: torch.dtype, guided: bool, backend: str) -> None:
    samplers = kinds(guided=guided, dtype=dtype)
    stack = stack_samplers(samplers)
    requests = [(i % len(samplers), 100 + i // 3, (5 * i) % 7) for i in range(2 * len(samplers))]
    made = together(stack, requests, dtype, backend=backend)
    for (kind, seed, _), sample in zip(requests, made, strict=True):
        assert_same_bits(sample, alone(samplers[kind], seed))


@pytest.mark.parametrize("kind", range(9))
def test_a_stack_of_one(kind: int) -> None:
    sampler = kinds()[kind]
    stack = stack_samplers([sampler])
    (made,) = together(stack, [(0, 5, 0)], torch.float32)
    assert_same_bits(made, alone(sampler, 5))
    assert_same_bits(stack.coefficients[:-1, : Column.OFFSET], sampler.coefficients[:, : Column.OFFSET])
    assert stack.guided == (sampler.guided,)
    if sampler.tables is None:
        assert stack.tables is None


def test_rows_lead_to_the_next_and_then_to_the_idle_one() -> None:
    stack = stack_samplers([DDIMSampler(LINEAR, 3), DDIMSampler(LINEAR, 1), DDIMSampler(LINEAR, 2)])
    assert stack.first_rows == (0, 3, 4)
    assert stack.n_steps == (3, 1, 2)
    assert stack.idle_row == 6
    assert stack.steps.tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert stack.next_rows.tolist() == [1, 2, 6, 6, 5, 6, 6]
    assert stack.timesteps.tolist() == [666, 333, 0, 999, 500, 0, 0]
    assert stack.timesteps.dtype == stack.steps.dtype == stack.next_rows.dtype == torch.int64


@pytest.mark.parametrize("guided", [False, True])
def test_an_idle_slot_keeps_its_sample(guided: bool) -> None:
    stack = stack_samplers(kinds(guided=guided))
    sample, output = torch.randn(2, 5, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1e3
    made = gmm_step(
        sample,
        output,
        stack.coefficients,
        row=stack.idle_row,
        seeds=torch.arange(5),
        mixture=stack.tables,
        model_output_uncond=output.flip(0) if guided else None,
    )
    assert_same_bits(made.prev_sample, sample)


def test_samplers_themselves_are_left_alone() -> None:
    samplers = kinds()
    before = [sampler.coefficients.clone() for sampler in samplers]
    stack_samplers(samplers).coefficients.zero_()
    for sampler, coefficients in zip(samplers, before, strict=True):
        assert_same_bits(sampler.coefficients, coefficients)


AWKWARD = (0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_output_as_both_of_a_pair_is_itself(dtype: torch.dtype, backend: str) -> None:
    """To the sign of zero, which GUIDANCE = 1 would lose; of infinities nothing is promised."""
    stack = stack_samplers([DDIMSampler(LINEAR, 2, dtype=dtype, guidance_scale=g) for g in (3.0, None)])
    assert torch.signbit(stack.coefficients[2:4, Column.GUIDANCE]).all()
    output = torch.tensor([AWKWARD], dtype=dtype)
    made = gmm_step(
        torch.zeros_like(output),
        output,
        stack.coefficients,
        row=stack.first_rows[1],
        seeds=torch.tensor([0]),
        model_output_uncond=output,
        prediction="model_output",
        backend=backend,
    )
    assert_same_bits(made.prediction, output)


def test_a_step_without_noise_may_lose_the_sign_of_a_zero_beside_tables_that_have_some() -> None:
    """The exception that `stack_samplers` names, and no other stack has it."""
    plain = DDIMSampler(LINEAR, 3, prediction_type="sample", use_clipped_model_output=True)
    quiet, noisy = (stack_samplers([plain, kinds(guided=False)[i]]) for i in (2, 3))
    zero = torch.full((8, *SHAPE), -0.0)
    last = len(plain.timesteps) - 1

    def step(coefficients: Tensor, tables: MixtureTables | None) -> Tensor:
        return gmm_step(zero, zero, coefficients, row=last, seeds=torch.arange(8), mixture=tables).prev_sample

    expected = step(plain.coefficients, None)
    assert torch.signbit(expected).all()
    assert_same_bits(step(quiet.coefficients, quiet.tables), expected)
    made = step(noisy.coefficients, noisy.tables)
    assert torch.equal(made, expected)
    assert not torch.signbit(made).all()


def test_a_request_without_a_mixture_draws_component_zero() -> None:
    stack = stack_samplers(kinds())
    seeds = torch.arange(50)
    zeros = torch.zeros(50, *SHAPE)
    for kind, some in ((0, False), (3, True)):
        drawn = gmm_step(
            zeros,
            zeros,
            stack.coefficients,
            row=stack.first_rows[kind],
            seeds=seeds,
            mixture=stack.tables,
            return_components=True,
        ).components
        assert drawn is not None
        assert bool(drawn.any()) is some


def test_offsets_that_all_share_are_stored_once() -> None:
    shared = mixture("ortho", None)
    samplers = [
        DDIMSampler(LINEAR, 3, eta=1.0, mixture=shared),
        DDIMSampler(LINEAR, 2, eta=1.0),
        DDIMSampler(LINEAR, 4, mixture=shared),
    ]
    stack = stack_samplers(samplers)
    assert stack.tables is not None
    assert stack.tables.offsets.shape[0] == 1
    assert stack.tables.weights is None
    for (kind, seed, _), sample in zip(
        requests := [(0, 1, 2), (1, 2, 0), (2, 3, 1)], together(stack, requests, torch.float32), strict=True
    ):
        assert_same_bits(sample, alone(samplers[kind], seed))
    other = DDIMSampler(LINEAR, 3, mixture=mixture("ortho", None, seed=1))
    tables = stack_samplers([*samplers, other]).tables
    assert tables is not None
    assert tables.offsets.shape[0] == 3 + 2 + 4 + 3 + 1


PLAIN = DDIMSampler(LINEAR, 2, mixture=mixture("ortho", 2))
BAD: list[tuple[Any, type[Exception], str]] = [
    (PLAIN, TypeError, "samplers: expected a sequence of samplers, got DDIMSampler"),
    ([], ValueError, "samplers: expected at least one, got none"),
    ([PLAIN, 3], TypeError, r"samplers\[1\]: expected a Sampler, got int"),
    (
        [PLAIN, DDIMSampler(LINEAR, 2, dtype=torch.float64)],
        ValueError,
        r"samplers\[1\]: expected dtype torch.float32 like samplers\[0\], got torch.float64",
    ),
    (
        [PLAIN, DDIMSampler(LINEAR, 2, device="meta")],
        ValueError,
        r"samplers\[1\]: expected device cpu like samplers\[0\], got meta",
    ),
    (
        [PLAIN, FlowSampler(3)],
        ValueError,
        r"samplers\[1\]: expected timesteps of torch.int64 like samplers\[0\], got torch.float32",
    ),
    (
        [PLAIN, DDIMSampler(LINEAR, 2, dynamic_thresholding_ratio=0.9)],
        ValueError,
        r"samplers\[1\]: expected one without dynamic thresholding",
    ),
    ([PLAIN, DEISSampler(LINEAR, 4)], ValueError, r"samplers\[1\]: expected rows without history"),
    (
        [DDIMSampler(LINEAR, 1), PLAIN, DDIMSampler(LINEAR, 1, mixture=mixture("rand", 1, n_components=4))],
        ValueError,
        r"samplers\[2\]: expected a mixture with K = 3 and D = 15 like that of samplers\[1\], got K = 4 and D = 15",
    ),
    (
        [PLAIN, DDIMSampler(LINEAR, 1, mixture=mixture("rand", 1, elements=16))],
        ValueError,
        r"samplers\[1\]: expected a mixture with K = 3 and D = 15 .*, got K = 3 and D = 16",
    ),
]


@pytest.mark.parametrize(("samplers", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_does_not_fit_is_refused(samplers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        stack_samplers(samplers)
