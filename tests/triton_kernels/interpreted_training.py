"""The Triton kernels of training under Triton's interpreter, on CPU tensors, against the compiled core.

Run by test_triton_interpreter.py in a process of its own, as interpreted.py is.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import DTYPES, assert_same_bits
from interpreted_backward import without_bfloat16_subnormals
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from losses import TrainingCase, random_case

from gmmkernel.backends import cpu, triton
from gmmkernel.backends.constants import TrainingColumn
from gmmkernel.backends.protocol import Backend, TrainingGradients, TrainingInputs


def results(backend: Backend, case: TrainingCase, *, pull: bool = True, noise: bool = True) -> list[Tensor]:
    """Return everything by a backend's own functions, in tensors full of nines."""

    def nines(like: Tensor) -> Tensor:
        return torch.full(like.shape, 9, dtype=like.dtype)

    def index(value: int | Tensor) -> int | Tensor:
        return value.reshape(-1) if isinstance(value, Tensor) else value

    row, step = index(case.row), index(case.step)
    made = [nines(case.data), *([nines(case.data)] if noise else [])]
    backend.add_noise(case.data, case.coefficients, case.seeds, row, step, *made)
    inputs = TrainingInputs(case.model_output, case.sample, case.coefficients, case.seeds, row, step)
    losses = [nines(case.grad)]
    if pull and case.model_output.dtype == case.coefficients.dtype:
        losses.append(nines(case.model_output))
    backend.skip_step_loss(inputs, *losses)
    if len(losses) > 1:
        losses.append(losses[1].clone())
        backend.scale_pull(losses[2], case.coefficients, row, step, case.grad)
    gradients = [nines(tensor) for tensor in (case.model_output, case.sample) if tensor is not None]
    backend.skip_step_loss_backward(inputs, case.grad, TrainingGradients(*gradients))
    return [*made, *losses, *gradients]


def assert_same(case: TrainingCase, **wanted: bool) -> list[Tensor]:
    made = results(triton, case, **wanted)
    for actual, expected in zip(made, results(cpu, case, **wanted), strict=True):
        assert_same_bits(actual, expected)
    return made


@pytest.mark.parametrize("seed", range(40))
def test_training_has_the_same_bits(seed: int) -> None:
    choose = random.Random(seed)
    assert_same(
        random_case(
            seed,
            batch=choose.randint(1, 4),
            shape=choose.choice([(1,), (3,), (63,), (1000,), (1024,), (4, 16, 16), (2049,)]),
            dtype=DTYPES[seed % len(DTYPES)],
            with_sample=choose.random() < 0.6,
        ),
        pull=choose.random() < 0.5,
        noise=choose.random() < 0.5,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan(dtype: torch.dtype) -> None:
    for seed in range(3):
        case = random_case(seed, shape=(70,), batch=6, dtype=dtype, special=True)
        assert_same(case.map_samples(without_bfloat16_subnormals))


def test_large_tiles() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(random_case(3, batch=8, shape=(4096,), dtype=dtype), noise=False)


def test_strided_tensors_empty_batches_and_samples_without_elements() -> None:
    case = random_case(5, shape=(4, 6, 8))
    assert_same(case.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last)))
    for batch, shape in ((0, (30,)), (3, (0,)), (3, (8, 0))):
        made = assert_same(random_case(6, batch=batch, shape=shape))
        assert bool(made[2].isnan().all())


def test_in_place() -> None:
    case = random_case(7, shape=(1500,), per_sample=False)
    expected = results(cpu, case)[0]
    triton.add_noise(case.data, case.coefficients, case.seeds, case.row, case.step, case.data)
    assert_same_bits(case.data, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_or_step_out_of_range_gives_nan(dtype: torch.dtype) -> None:
    case = random_case(8, batch=3, shape=(1030,), dtype=dtype, per_sample=True)
    case.coefficients[:, TrainingColumn.EPS_SAMPLE] = torch.tensor([0.5, 0, 0.5, 0, 0])
    row, step = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    good = results(triton, replace(case, row=row, step=step))
    row[0], step[2] = case.coefficients.shape[0], 2**32
    bad = results(triton, replace(case, row=row, step=step))
    for spoilt, whole in zip(bad, good, strict=True):
        assert bool(spoilt[0].isnan().all())
        assert bool(spoilt[2].isnan().all())
        assert_same_bits(spoilt[1], whole[1])


def test_a_row_that_reads_a_missing_sample_gives_nan() -> None:
    case = random_case(9, batch=3, shape=(1030,), with_sample=False)
    expected = results(cpu, replace(case, row=torch.tensor([0, 1, 2])))
    case.coefficients[2, TrainingColumn.EPS_SAMPLE] = 0.5
    made = results(triton, replace(case, row=torch.tensor([0, 1, 2])))
    for actual, whole in zip(made, expected, strict=True):
        assert_same_bits(actual[:2], whole[:2])
    for of_loss in made[2:]:
        assert bool(of_loss[2].isnan().all())
