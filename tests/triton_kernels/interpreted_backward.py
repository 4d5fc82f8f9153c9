"""The Triton kernels of gradients under Triton's interpreter, on CPU tensors, against the compiled core.

Run by test_triton_interpreter.py in a process of its own, as interpreted.py is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DTYPES, StepCase, assert_same_bits, plant_special_values, random_case, random_mixture
from interpreted import KINDS
from torch import Tensor

from gmmkernel.backends import cpu, triton
from gmmkernel.backends.constants import Column
from gmmkernel.backends.protocol import Backend, StepGradients, StepInputs
from gmmkernel.backends.reference.sums import tree_sum
from gmmkernel.backends.triton import launch_sums

ALL = (True,) * 10


def inputs_of(case: StepCase) -> StepInputs:
    return StepInputs(
        case.sample,
        case.model_output,
        case.coefficients,
        case.seeds,
        case.row,
        case.row if case.step is None else case.step,
        case.model_output_uncond,
        case.history,
        *(case.mixture or (None, None, None))[:3],
    )


def without_bfloat16_subnormals(tensor: Tensor) -> Tensor:
    """Return the tensor with zeros for what the interpreter, though no device, takes to be 0."""
    lost = (tensor.dtype == torch.bfloat16) & (tensor.abs() < torch.finfo(torch.bfloat16).tiny)
    return torch.where(lost, 0, tensor)


def given(case: StepCase, special: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return random gradients of the next sample and of the prediction."""
    rng = np.random.default_rng(7)

    def random_gradient() -> Tensor:
        values = torch.from_numpy(rng.standard_normal(case.sample.shape)).to(case.sample.dtype)
        return without_bfloat16_subnormals(plant_special_values(rng, values)) if special else values

    return random_gradient(), None if case.prediction is None else random_gradient()


def back(
    backend: Backend,
    case: StepCase,
    grad: Tensor,
    grad_prediction: Tensor | None,
    wanted: Sequence[bool] = ALL,
) -> list[Tensor | None]:
    """Take a step's gradients by a backend's own function, into tensors full of nines."""
    inputs = inputs_of(case)
    of = [
        inputs.sample,
        inputs.model_output,
        inputs.model_output_uncond,
        inputs.coefficients,
        inputs.offsets,
        inputs.std,
        *inputs.history,
    ]
    made = [
        torch.full(tensor.shape, 9, dtype=tensor.dtype) if flag and tensor is not None else None
        for flag, tensor in zip(wanted, of, strict=False)
    ]
    gradients = StepGradients(*made[:6], history=made[6:])
    backend.gmm_step_backward(inputs, grad, grad_prediction, KINDS[case.prediction], gradients)
    return made


def assert_same(case: StepCase, *, special: bool = False, wanted: Sequence[bool] = ALL) -> None:
    grad, grad_prediction = given(case, special)
    actual = back(triton, case, grad, grad_prediction, wanted)
    for made, expected in zip(actual, back(cpu, case, grad, grad_prediction, wanted), strict=True):
        assert_same_bits(made, expected)


@pytest.mark.parametrize("seed", range(48))
def test_gradients_have_the_same_bits(seed: int) -> None:
    choose = random.Random(seed)
    case = random_case(
        seed,
        batch=choose.randint(1, 4),
        shape=choose.choice([(1,), (3,), (63,), (1000,), (1024,), (4, 16, 16), (2049,)]),
        dtype=DTYPES[seed % len(DTYPES)],
        components=choose.choice([0, 1, 2, 8, 66]),
        guidance=choose.random() < 0.5,
        history=choose.randint(0, 4),
        prediction=choose.choice(list(KINDS)),
        per_sample=choose.random() < 0.5,
    )
    wanted = ALL if seed % 2 else tuple(choose.random() < 0.5 for _ in ALL)
    assert_same(case, wanted=wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", KINDS)
def test_infinities_nan_and_subnormals(dtype: torch.dtype, prediction: Any) -> None:
    options: dict[str, Any] = {
        "components": 2,
        "rows": 2,
        "history": 4,
        "guidance": True,
        "prediction": prediction,
    }
    case = random_case(3, shape=(1040,), dtype=dtype, special=True, **options)
    assert_same(case.map_samples(without_bfloat16_subnormals), special=True)


@pytest.mark.parametrize("column", list(Column))
def test_infinite_and_absent_coefficients_stay_with_their_elements(column: Column) -> None:
    """What is read beyond the last element takes no part in a sum, whatever the coefficients make of it."""
    case = random_case(
        4,
        batch=1,
        shape=(1030,),
        dtype=torch.float32,
        components=2,
        history=4,
        guidance=True,
        prediction="epsilon",
    )
    for value in (-math.inf, -0.0):
        case.coefficients[:, column] = value
        assert_same(case, wanted=(True, True, True, True))


@pytest.mark.parametrize(("low", "high"), [(-math.inf, 0.1), (-0.1, math.inf), (0.2, -0.2), (0.0, 0.0)])
def test_bounds_of_one_side_and_bounds_that_cross(low: float, high: float) -> None:
    case = random_case(5, shape=(2048,), dtype=torch.float32, prediction="x0")
    case.coefficients[:, Column.CLIP_MIN], case.coefficients[:, Column.CLIP_MAX] = low, high
    case.coefficients[0, :2] = 0  # all on the bound, where it is 0
    assert_same(case)


@pytest.mark.parametrize(("number", "removed"), enumerate([0, 8, 1024, 1100, 2048]))
@pytest.mark.parametrize("shared_std", [True, False])
def test_tables_shared_and_own(number: int, removed: int, shared_std: bool) -> None:
    case = random_case(
        removed, batch=7, shape=(2048,), dtype=torch.float32, rows=2, components=0, history=0, per_sample=True
    )
    shared = [(True, True, True), (False, False, False), (True, False, True)][(number + shared_std) % 3]
    sizes = {"elements": 2048, "components": 3, "rows": 2, "removed": removed}
    mixture = random_mixture(np.random.default_rng(removed), **sizes, shared_std=shared_std, shared=shared)
    assert_same(replace(case, mixture=mixture), wanted=(False, False, False, number == 3, True, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiles", [1, 2, 1024, 1026])
def test_the_tree_has_as_many_levels_as_it_takes(tiles: int, dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.random.default_rng(tiles).standard_normal((2, tiles, 3))).to(dtype)
    counts = launch_sums.levels(tiles)
    assert len(counts) == {1: 1, 2: 2, 1024: 2, 1026: 3}[tiles]
    sums = torch.full((2, sum(counts), 3), math.nan, dtype=dtype)
    sums[:, :tiles] = values
    launch_sums.sum_levels(sums, tiles)
    expected = tree_sum(np.moveaxis(values.numpy(), 1, 2))
    assert_same_bits(sums[:, -1], torch.from_numpy(expected))


def test_strided_tensors_and_expanded_gradients() -> None:
    case = random_case(5, shape=(4, 6, 8), components=3, history=2, guidance=True, prediction="x0")
    assert_same(case.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last)))
    grad, grad_prediction = (
        torch.ones((), dtype=case.sample.dtype).expand(case.sample.shape) for _ in range(2)
    )
    for actual, expected in zip(
        back(triton, case, grad, grad_prediction), back(cpu, case, grad, grad_prediction), strict=True
    ):
        assert_same_bits(actual, expected)


def test_aligned_and_unaligned_tensors_have_the_same_bits() -> None:
    case = random_case(11, shape=(2048,), dtype=torch.float32, components=3, removed=2048, prediction="x0")
    memory = torch.empty(case.sample.numel() + 1)
    unaligned = memory[1:].view(case.sample.shape).copy_(case.sample)
    for each in (case, replace(case, sample=unaligned)):
        assert_same(each)


@pytest.mark.parametrize("shape", [(0,), (8, 0)])
def test_samples_without_elements_leave_tables_of_zeros(shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"dtype": torch.float32, "output_dtype": torch.float32, "components": 3}
    assert_same(random_case(6, shape=shape, **options))
    made = back(triton, case := random_case(6, batch=0, shape=(1030,), **options), *given(case))
    for table in made[3:6]:
        assert table is not None
        assert not table.any()


@pytest.mark.parametrize(("dtype", "prediction"), zip(DTYPES, KINDS, strict=True))
def test_a_row_or_step_out_of_range_gives_nan_and_adds_nothing(dtype: torch.dtype, prediction: Any) -> None:
    options: dict[str, Any] = {"components": 2, "history": 1, "guidance": True, "per_sample": True}
    case = random_case(8, batch=3, rows=3, shape=(1030,), dtype=dtype, prediction=prediction, **options)
    row, step = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    case = replace(case, row=row, step=step)
    grad, grad_prediction = given(case)
    alone = case.take(slice(1, 2))
    expected = back(cpu, alone, grad[1:2], None if grad_prediction is None else grad_prediction[1:2])
    for out_of_range in ([case.coefficients.shape[0], 2**32], [-1, -1], [2**62, -(2**62)]):
        row[0], step[2] = out_of_range
        made = back(triton, case, grad, grad_prediction)
        for place, (actual, one) in enumerate(zip(made, expected, strict=True)):
            assert actual is not None
            if place in (3, 4, 5):
                assert_same_bits(actual, one)
            else:
                assert bool(actual[0].isnan().all())
                assert bool(actual[2].isnan().all())
                assert_same_bits(actual[1:2], one)
