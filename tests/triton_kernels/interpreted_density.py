"""The Triton kernels of log-densities under Triton's interpreter, on CPU tensors, against the compiled core.

Run by test_triton_interpreter.py in a process of its own, as interpreted.py is.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DTYPES, assert_same_bits
from interpreted_backward import inputs_of, without_bfloat16_subnormals
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gradients"))
from differentiable import Density, random_density

from gmmkernel.backends import cpu, triton
from gmmkernel.backends.constants import Column
from gmmkernel.backends.protocol import Backend, LogProbGradients, StepGradients


def weights_of(density: Density) -> Tensor | None:
    return None if density.case.mixture is None else density.case.mixture.weights


def density_by(backend: Backend, density: Density) -> list[Tensor | None]:
    """Return the log-densities by a backend's own function, and the responsibilities, in tensors full of nines."""
    weights, of = weights_of(density), density.case
    result = torch.full((len(of.sample),), 9, dtype=of.coefficients.dtype)
    shares = None if weights is None else result[:, None].expand(-1, weights.shape[1]).clone()
    backend.log_prob(inputs_of(of), density.prev_sample, weights, result, shares)
    return [result, shares]


def gradients_by(
    backend: Backend, density: Density, shares: Tensor | None, wanted: bool = True
) -> list[Tensor | None]:
    """Return all gradients by a backend's own function, or those of samples alone, in tensors full of nines."""
    inputs, weights = inputs_of(density.case), weights_of(density)
    of_samples = [inputs.sample, inputs.model_output, inputs.model_output_uncond, density.prev_sample]
    tables = [inputs.coefficients, inputs.offsets, inputs.std, weights]
    grad = torch.randn(len(inputs.sample), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad[1::3] = 0  # samples that have no part in the loss, whatever their density is
    made = [
        None if tensor is None else torch.full(tensor.shape, 9, dtype=tensor.dtype)
        for tensor in (*of_samples, *(tables if wanted else [None] * 4), *inputs.history)
    ]
    gradients = LogProbGradients(made[3], made[7], StepGradients(*made[:3], *made[4:7], history=made[8:]))
    grad = grad.to(inputs.coefficients.dtype)
    backend.log_prob_backward(inputs, density.prev_sample, weights, shares, grad, gradients)
    return made


def assert_same(density: Density) -> list[Tensor | None]:
    """Compare log-densities, and gradients from the same responsibilities."""
    made, expected = density_by(triton, density), density_by(cpu, density)
    for actual, one in zip(made, expected, strict=True):
        assert_same_bits(actual, one)
    for wanted in (True, False):
        of_expected = gradients_by(cpu, density, expected[1], wanted)
        for actual, one in zip(gradients_by(triton, density, expected[1], wanted), of_expected, strict=True):
            assert_same_bits(actual, one)
    return made


@pytest.mark.parametrize("seed", range(32))
def test_log_densities_have_the_same_bits(seed: int) -> None:
    choose = random.Random(seed)
    made = assert_same(
        random_density(
            seed,
            batch=choose.randint(1, 4),
            shape=choose.choice([(1,), (3,), (63,), (1000,), (1024,), (4, 16, 16), (2049,)]),
            dtype=DTYPES[seed % len(DTYPES)],
            components=choose.choice([0, 1, 2, 8]),
            guidance=choose.random() < 0.5,
            history=choose.randint(0, 4),
            per_sample=choose.random() < 0.5,
        )
    )
    assert bool(made[0].isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("components", [0, 3])
def test_infinities_nan_and_deviations_of_zero(dtype: torch.dtype, components: int) -> None:
    for special in (False, True):
        density = random_density(
            5, shape=(70,), batch=6, dtype=dtype, components=components, special=special, positive=False
        )
        case = density.case.map_samples(without_bfloat16_subnormals)
        assert_same(Density(case, density.prev_sample))


def test_many_components_of_which_one_is_undefined() -> None:
    density = random_density(6, shape=(5,), dtype=torch.float32, components=200)
    assert_same(density)
    assert density.case.mixture is not None
    density.case.mixture.weights[:, 77] = float("nan")  # type: ignore[index]
    assert_same(density)


@pytest.mark.parametrize("shape", [(0,), (8, 0)])
def test_samples_without_elements_and_empty_batches(shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"dtype": torch.float32, "output_dtype": torch.float32, "components": 3}
    assert_same(random_density(6, shape=shape, **options))
    assert_same(random_density(6, batch=0, shape=(30,), **options))


def test_a_row_out_of_range_gives_nan() -> None:
    density = random_density(8, batch=3, shape=(1030,), dtype=torch.float32, components=2, per_sample=True)
    row = torch.tensor([0, 1, 2])
    good = density_by(triton, replace(density, case=replace(density.case, row=row)))
    row[0], row[2] = density.case.coefficients.shape[0], -1
    bad = density_by(triton, replace(density, case=replace(density.case, row=row)))
    for spoilt, whole in zip(bad, good, strict=True):
        assert spoilt is not None
        assert whole is not None
        assert bool(spoilt[0].isnan().all())
        assert bool(spoilt[2].isnan().all())
        assert_same_bits(spoilt[1], whole[1])


def test_an_offset_that_the_row_switches_off() -> None:
    density = random_density(9, shape=(40,), dtype=torch.float32, components=2)
    density.case.coefficients[:, Column.OFFSET] = 0
    assert density.case.mixture is not None
    density.case.mixture.offsets[:] = float(np.inf)
    made = assert_same(density)
    assert bool(made[0].isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("components", [0, 3])
def test_a_sample_without_a_part_in_the_loss_gives_nothing(components: int) -> None:
    """The second, whose gradient is 0: the third's row is the same, and so are entries of tables."""
    density = random_density(
        10, batch=3, shape=(70,), dtype=torch.float32, components=components, removed=30, history=2
    )
    density.case.sample[1], density.prev_sample[1] = float("nan"), float("inf")
    density = replace(density, case=replace(density.case, row=torch.tensor([0, 1, 1])))
    made = assert_same(density)
    assert made[0] is not None
    assert made[0].isfinite().tolist() == [True, False, True]
    for gradient in gradients_by(triton, density, made[1]):
        assert gradient is None or bool(gradient.isfinite().all())
