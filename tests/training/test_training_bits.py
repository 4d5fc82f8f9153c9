"""Training ops: the reference's bits on every instruction set, thread count, layout and batch split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs
from helpers import DTYPE_PAIRS, DTYPES, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import TrainingCase, random_case
from torch import Tensor

from gmmkernel import noise_schedule, training_coefficients
from gmmkernel.backends import cpu

SIZES = (1, 3, 64, 65, 1000, 1024, 1025, 4097)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        try:
            assert_same_bits(actual[name], tensor)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def assert_backends_agree(case: TrainingCase) -> dict[str, Tensor]:
    expected = case.results(backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same(case.results(backend="cpu"), expected)
    return expected


def check_case(seed: int, types: tuple[torch.dtype, torch.dtype], **options: Any) -> None:
    assert_backends_agree(random_case(seed, dtype=types[0], sample_dtype=types[1], **options))


def test_every_option_and_size_has_the_same_bits() -> None:
    factors = {"types": DTYPE_PAIRS, "with_sample": [True, False], "per_sample": [True, False]}
    choices = [
        *pairs(shape=[(size,) for size in SIZES], **factors),
        *pairs(special=[True], **factors),
    ]
    check_all(check_case, numbered(choices))


def check_target(target: str, prediction_type: str, dtype: torch.dtype) -> None:
    case = random_case(1, batch=5, shape=(3, 7, 13), dtype=dtype)
    coefficients = training_coefficients(
        noise_schedule(),
        target=target,
        prediction_type=prediction_type,
        dtype=case.coefficients.dtype,
    )
    row = torch.tensor([0, 8, 9, 500, 999])
    made = assert_backends_agree(replace(case, coefficients=coefficients, row=row))
    assert made["loss"].isfinite().all()


def test_every_target_has_the_same_bits() -> None:
    choices = pairs(
        target=["independent", "same", "consistent"],
        prediction_type=["epsilon", "sample", "v_prediction"],
        dtype=DTYPES,
    )
    check_all(check_target, choices)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_configurations_have_the_same_bits(data: st.DataObject) -> None:
    dtype, sample_dtype = data.draw(st.sampled_from(DTYPE_PAIRS))
    options = {
        "batch": data.draw(st.integers(0, 4)),
        "shape": (data.draw(st.integers(1, 300)),),
        "dtype": dtype,
        "sample_dtype": sample_dtype,
        "rows": data.draw(st.integers(1, 4)),
        "with_sample": data.draw(st.booleans()),
        "special": data.draw(st.booleans()),
    }
    assert_backends_agree(random_case(data.draw(st.integers(0, 2**32 - 1)), **options))


@pytest.mark.slow
def test_sums_of_more_than_a_million_elements_have_the_same_bits() -> None:
    assert_backends_agree(random_case(4, batch=1, shape=(1024 * 1024 + 5,)))  # a third level of the tree


def test_the_number_of_threads_changes_nothing(set_threads: Callable[[int], None]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        case = random_case(8, shape=(40001,), dtype=dtype)
        set_threads(1)
        expected = case.results()
        for threads in (2, 3, 8):
            set_threads(threads)
            assert_same(case.results(), expected)


def check_parts(dtype: torch.dtype, backend: str) -> None:
    case = random_case(2, batch=5, shape=(1100,), dtype=dtype, per_sample=True)
    together = case.results(backend=backend)
    for index in ([3], [4, 0], [1, 1, 2]):
        part = case.take(torch.tensor(index)).results(backend=backend)
        assert_same(part, {name: tensor[index] for name, tensor in together.items()})


def test_a_sample_does_not_depend_on_the_batch() -> None:
    check_all(check_parts, pairs(dtype=DTYPES, backend=["cpu", "reference"]))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "a batch with gaps": lambda tensor: tensor.repeat_interleave(3, 0)[::3],
    "reversed strides": lambda tensor: tensor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing(layout: str, backend: str) -> None:
    case = random_case(3, batch=4, shape=(3, 8, 11))
    strided = case.map_samples(LAYOUTS[layout])
    assert not strided.data.is_contiguous()
    assert_same(strided.results(backend=backend), case.results(backend=backend))


def test_the_result_may_take_the_data_s_place(backend: str) -> None:
    case = random_case(5, shape=(1027,))
    expected = case.noised(backend=backend)
    data = case.data.clone()
    assert replace(case, data=data).noised(out=data, backend=backend) is data
    assert_same_bits(data, expected)
    strided = torch.zeros(3, 1027, 2)[..., 0]
    assert case.noised(out=strided, backend=backend) is strided
    assert_same_bits(strided, expected)


def test_indices_may_be_one_number_or_one_for_each(backend: str) -> None:
    case = random_case(6, per_sample=False)
    expected = case.results(backend=backend)
    for shape in ((), (1,), (3,)):
        same = replace(case, row=torch.full(shape, case.row), step=torch.full(shape, case.step))
        assert_same(same.results(backend=backend), expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_and_samples(shape: tuple[int, ...], backend: str) -> None:
    case = random_case(7, batch=shape[0], shape=shape[1:])
    made = case.results(backend=backend)
    assert made["noised"].shape == made["grad_model_output"].shape == shape
    assert made["loss"].shape == shape[:1]
    assert made["loss"].isnan().all()  # as the mean of nothing is
