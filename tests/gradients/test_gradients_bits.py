"""Gradients and log-densities: the reference's bits on every instruction set, thread count and batch split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs, without
from differentiable import Density, cotangent, random_density, step_gradients
from helpers import DTYPE_PAIRS, StepCase, assert_same_bits, every_option, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from gmmkernel.backends import cpu

SIZES = (1, 3, 64, 65, 1000, 1024, 1025, 4097)

Gradients = dict[str, torch.Tensor]


def assert_same(actual: Gradients, expected: Gradients) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        try:
            assert_same_bits(actual[name], tensor)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def assert_backends_agree(of: Callable[[str], Gradients]) -> None:
    expected = of("reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same(of("cpu"), expected)


def assert_steps_agree(case: StepCase) -> None:
    assert_backends_agree(lambda backend: step_gradients(case, backend=backend))


def assert_densities_agree(density: Density) -> None:
    assert_backends_agree(lambda backend: density.gradients(backend=backend))


def check_step(seed: int, **options: Any) -> None:
    assert_steps_agree(random_case(seed, **options))


def check_density(seed: int, special: bool = False, **options: Any) -> None:
    assert_densities_agree(random_density(seed, special=special, positive=not special, **options))


CHOICES = [
    *every_option(sizes=SIZES, types=DTYPE_PAIRS, batch=[2]),
    *every_option(types=DTYPE_PAIRS, batch=[2], special=[True]),
    *pairs(components=[1023, 1024], dtype=[torch.float32, torch.float64], shape=[(9,)], batch=[9]),
]


def test_every_option_and_size_has_the_same_gradients() -> None:
    check_all(check_step, numbered(CHOICES))


def test_every_option_and_size_has_the_same_log_density() -> None:
    check_all(check_density, numbered(without(CHOICES, "prediction")))


@pytest.mark.slow
def test_sums_of_more_than_a_million_elements_have_the_same_bits() -> None:
    shape = (1024 * 1024 + 5,)  # a third level of the tree
    case = random_case(4, batch=1, shape=shape, dtype=torch.float32, components=2, history=1)
    assert_steps_agree(case)
    assert_densities_agree(random_density(4, batch=1, shape=shape, dtype=torch.float32, components=2))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_configurations_have_the_same_gradients(data: st.DataObject) -> None:
    dtype, output_dtype = data.draw(st.sampled_from(DTYPE_PAIRS))
    elements = data.draw(st.integers(1, 300))
    options = {
        "batch": data.draw(st.integers(0, 4)),
        "shape": (elements,),
        "dtype": dtype,
        "output_dtype": output_dtype,
        "rows": data.draw(st.integers(1, 4)),
        "components": data.draw(st.sampled_from([0, 1, 2, 3, 8, 100])),
        "removed": data.draw(st.integers(0, elements)),
        "special": data.draw(st.booleans()),
    }
    seed = data.draw(st.integers(0, 2**32 - 1))
    assert_steps_agree(random_case(seed, **options))
    assert_densities_agree(random_density(seed, **options))


def test_the_number_of_threads_changes_no_gradient(set_threads: Callable[[int], None]) -> None:
    def check(dtype: torch.dtype) -> None:
        options = {"batch": 3, "shape": (17001,), "dtype": dtype, "components": 3}
        case = random_case(8, prediction="epsilon", **options)
        density = random_density(8, **options)
        set_threads(1)
        of_step, of_density = step_gradients(case), density.gradients()
        for threads in (2, 3, 8):
            set_threads(threads)
            assert_same(step_gradients(case), of_step)
            assert_same(density.gradients(), of_density)

    check_all(check, pairs(dtype=[torch.float32, torch.bfloat16, torch.float64]))


def alone(case: StepCase, b: int) -> Gradients:
    """Return the gradients of one sample of a batch, sent back by its part of the batch's gradients."""
    one = case.take(torch.tensor([b]))
    return step_gradients(one, grads=[cotangent(case.sample, 1 + i)[b : b + 1] for i in range(2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sample_s_gradients_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    batch = 5
    options = {"shape": (1100,), "dtype": dtype, "components": 3, "rows": batch, "removed": 700}
    own_rows = torch.arange(batch)
    case = replace(random_case(2, batch=batch, prediction="x0", **options), row=own_rows)
    density = random_density(2, batch=batch, **options)
    density = replace(density, case=replace(density.case, row=own_rows))
    of_steps = step_gradients(case)
    of_densities = density.gradients(grad=torch.ones(batch))
    for b in range(batch):
        index = torch.tensor([b])
        one = Density(density.case.take(index), density.prev_sample[index])
        for made, together in (
            (alone(case, b), of_steps),
            (one.gradients(grad=torch.ones(1)), of_densities),
        ):
            for name in set(together) - {"coefficients", "offsets", "std", "weights"}:
                assert_same_bits(made[name][0], together[name][b])
            assert_same_bits(made["coefficients"][b], together["coefficients"][b])


def test_sums_over_the_batch_are_taken_in_its_order() -> None:
    """Adding up the gradients of each sample alone gives the same bits."""
    case = random_case(5, batch=6, shape=(40,), dtype=torch.float32, components=2, per_sample=False)
    together = step_gradients(case)["coefficients"]
    total = torch.zeros_like(together)
    for b in range(6):
        total += alone(case, b)["coefficients"]
    assert_same_bits(together, total)
