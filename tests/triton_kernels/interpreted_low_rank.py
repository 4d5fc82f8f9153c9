"""The Triton kernels of exact moment matching under Triton's interpreter, on CPU tensors, against the compiled core.

Run by test_triton_interpreter.py, as `interpreted` is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DTYPES, StepCase, assert_same_bits, random_case
from torch import Tensor

from gmmkernel import Column, MixtureTables
from gmmkernel.backends import cpu, triton
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import PenaltyInputs, StepInputs
from gmmkernel.mixtures import gaussian_mixture

WEIGHTS = [0.5, 0.2, 0.1, 0.15, 0.05]
KINDS: tuple[dict[str, Any], ...] = (
    {"variant": "exact", "n_components": 2},
    {"variant": "exact", "weights": WEIGHTS, "n_components": 5},
    {"variant": "rand-exact", "scheme": "a", "weights": WEIGHTS, "n_components": 5},
    {"variant": "exact", "n_components": 17},
)


def exact_case(seed: int, kind: dict[str, Any], *, special: bool = False, **options: Any) -> StepCase:
    """Return a random step with such a mixture; of its four rows one has no offset, and one no noise."""
    case = random_case(seed, components=0, special=special, **options)
    coefficients = case.coefficients.clone()
    coefficients[:, Column.SIGMA] = torch.tensor([0.9, 0.0, 0.7, 0.4])
    coefficients[:, Column.OFFSET] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    mixture = gaussian_mixture(elements=math.prod(case.sample.shape[1:]), rho=0.9, **kind)
    coefficients = mixture.scaled(coefficients)
    return replace(case, coefficients=coefficients, mixture=mixture.bind(coefficients))


def inputs_of(case: StepCase) -> tuple[StepInputs, MixtureTables]:
    def index(value: int | Tensor) -> int | Tensor:
        return value.reshape(-1) if isinstance(value, Tensor) else value

    tables = case.mixture
    assert tables is not None
    inputs = StepInputs(
        case.sample,
        case.model_output,
        case.coefficients,
        case.seeds,
        index(case.row),
        index(case.row if case.step is None else case.step),
        case.model_output_uncond,
        case.history,
        tables.thresholds,
        tables.offsets,
        tables.std,
        tables.basis,
        tables.shrinkage,
    )
    return inputs, tables


def step(backend: Any, inputs: StepInputs, kind: int) -> list[Tensor]:
    """Take a step into tensors full of nines."""
    made = [torch.full(inputs.sample.shape, 9, dtype=inputs.sample.dtype) for _ in range(2)]
    components = torch.full_like(inputs.seeds, -9)
    backend.gmm_step(inputs, made[0], made[1] if kind else None, kind, components)
    return [*made, components]


def density(backend: Any, inputs: StepInputs, tables: MixtureTables, prev: Tensor) -> list[Tensor]:
    """Find the log-density, the shares and the energies, into tensors full of nines."""
    assert tables.basis is not None
    assert tables.slopes is not None
    assert tables.shifts is not None
    assert tables.log_volumes is not None
    assert tables.weights is not None
    penalties = PenaltyInputs(tables.basis, tables.slopes, tables.shifts, tables.log_volumes)
    batch, count = len(prev), tables.weights.shape[1]
    shapes = [(batch,), (batch, count), (batch, count)]
    made = [torch.full(shape, 9, dtype=inputs.coefficients.dtype) for shape in shapes]
    without = inputs._replace(shrinkage=None)
    backend.log_prob(without, prev, tables.weights, made[0], made[1], penalties, made[2])
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [17, 63, 1025])
def test_steps_and_densities(elements: int, dtype: torch.dtype) -> None:
    for number, kind in enumerate(KINDS):
        if elements > 63 and number != 2:  # the interpreter is slow
            continue
        case = exact_case(7 * elements + number, kind, shape=(elements,), dtype=dtype, batch=3)
        inputs, tables = inputs_of(case)
        prediction = Prediction(number % 4)
        made = step(cpu, inputs, prediction)
        for one, other in zip(step(triton, inputs, prediction), made, strict=True):
            assert_same_bits(one, other)
        densities = density(cpu, inputs, tables, made[0])
        for one, other in zip(density(triton, inputs, tables, made[0]), densities, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("seed", range(30))
def test_random_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = KINDS[rng.integers(len(KINDS))]
    dtype = DTYPES[rng.integers(len(DTYPES))]
    case = exact_case(
        seed, kind, shape=(3, 41), dtype=dtype, batch=int(rng.integers(5)), special=bool(seed % 2)
    )
    inputs, _ = inputs_of(case)
    for one, other in zip(step(triton, inputs, 0), step(cpu, inputs, 0), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("bad", ["row", "step"])
def test_indices_out_of_range_give_nan(bad: str) -> None:
    case = exact_case(4, KINDS[1], shape=(1030,), batch=3, per_sample=True)
    inputs, tables = inputs_of(replace(case, row=torch.tensor([2, 3, 2]), step=torch.tensor([4, 5, 6])))
    expected = step(cpu, inputs, 0)[0]
    wrong = inputs._replace(**{bad: torch.tensor([2, 2**40, -1])})
    made = step(triton, wrong, 0)[0]
    if bad == "row":
        assert_same_bits(made[0], expected[0])
        shares = density(triton, wrong, tables, expected)
        assert bool(shares[0][1:].isnan().all())
        assert not bool(shares[0][0].isnan())
    assert bool(made[1:].isnan().all())


def test_penalties_are_not_looked_at_without_an_offset() -> None:
    case = exact_case(5, KINDS[1], shape=(33,), batch=4, per_sample=True)
    inputs, tables = inputs_of(replace(case, row=torch.arange(4), step=torch.arange(4)))
    assert tables.log_volumes is not None
    assert tables.log_volumes.shape[0] == len(case.coefficients)
    # What a mixture puts where there is no offset changes nothing: here it would.
    changed = tables.log_volumes + torch.arange(tables.log_volumes.shape[1]) + 1
    tables = tables._replace(log_volumes=changed)
    expected = density(cpu, inputs, tables, case.sample)
    for one, other in zip(density(triton, inputs, tables, case.sample), expected, strict=True):
        assert_same_bits(one, other)
