"""The reference and the core give the same bits, on every instruction set and with any number of threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs
from helpers import (
    DTYPE_PAIRS,
    DTYPES,
    StepCase,
    assert_same_bits,
    assert_same_output,
    every_option,
    random_case,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmmkernel import Stream, draw_components, orthonormalize, standard_normal
from gmmkernel.backends import cpu
from gmmkernel.ops import GMMStepOutput

SIZES = (1, 3, 4, 63, 64, 65, 1000, 4097)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def assert_backends_agree(case: StepCase) -> None:
    expected = case.run(backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same_output(case.run(backend="cpu"), expected)


def check_step(seed: int, **options: Any) -> None:
    assert_backends_agree(random_case(seed, **options))


def test_every_option_and_size_gives_the_same_bits() -> None:
    choices = [
        *every_option(sizes=SIZES, types=DTYPE_PAIRS, batch=[2]),
        *every_option(types=DTYPE_PAIRS, batch=[2], special=[True]),
        # A table of standard deviations may end anywhere.
        *({"shape": (130,), "components": 4, "removed": removed} for removed in range(0, 131, 13)),
    ]
    check_all(check_step, numbered(choices))


def check_components(components: int, **options: Any) -> None:
    case = random_case(components, batch=9, shape=(9,), rows=3, components=components, **options)
    assert_backends_agree(case)
    assert int(case.run().components.max()) > 500


def test_many_components_give_the_same_bits() -> None:
    check_all(check_components, pairs(components=[1023, 1024], dtype=DTYPES))


def check_extremes(dtype: torch.dtype, step: int | torch.Tensor) -> None:
    seeds = torch.tensor([0, -1, 1, INT64_MIN, INT64_MAX, 2**32])
    case = random_case(3, batch=6, dtype=dtype, components=8)
    assert_backends_agree(replace(case, seeds=seeds, step=step))


def test_extreme_seeds_and_steps_give_the_same_bits() -> None:
    steps = torch.tensor([2**32 - 1, 0, 2**31, 2**32 - 1, 2**31 - 1, 1])
    check_all(check_extremes, pairs(dtype=DTYPES, step=[steps, 2**32 - 1]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_configurations_give_the_same_bits(data: st.DataObject) -> None:
    dtype, output_dtype = data.draw(st.sampled_from(DTYPE_PAIRS))
    elements = data.draw(st.integers(1, 300))
    components = data.draw(st.sampled_from([0, 1, 2, 3, 8, 100]))
    assert_backends_agree(
        random_case(
            data.draw(st.integers(0, 2**32 - 1)),
            batch=data.draw(st.integers(0, 4)),
            shape=(elements,),
            dtype=dtype,
            output_dtype=output_dtype,
            rows=data.draw(st.integers(1, 4)),
            components=components,
            removed=data.draw(st.integers(0, elements)),
            guidance=data.draw(st.booleans()),
            history=data.draw(st.integers(0, 4)),
            prediction=data.draw(st.sampled_from([None, "x0", "epsilon", "model_output"])),
            per_sample=data.draw(st.booleans()),
            special=data.draw(st.booleans()),
        )
    )


@pytest.mark.slow
@settings(max_examples=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 5),
    shape=st.lists(st.integers(1, 12), min_size=0, max_size=3),
    pair=st.sampled_from(DTYPE_PAIRS),
    special=st.booleans(),
)
def test_many_random_configurations_give_the_same_bits(seed, batch, shape, pair, special) -> None:
    assert_backends_agree(
        random_case(seed, batch=batch, shape=shape, dtype=pair[0], output_dtype=pair[1], special=special)
    )


@functools.cache
def long_case(dtype: torch.dtype) -> tuple[StepCase, GMMStepOutput, torch.Tensor]:
    """Return a step that threads share, and the reference's result and noise."""
    case = random_case(8, batch=3, shape=(17001,), dtype=dtype, components=3, prediction="epsilon")
    noise = standard_normal(case.seeds, (17001,), dtype=dtype, backend="reference")
    return case, case.run(backend="reference"), noise


def test_the_number_of_threads_changes_nothing(set_threads: Callable[[int], None]) -> None:
    def check(dtype: torch.dtype, name: str, threads: int) -> None:
        case, expected, noise = long_case(dtype)
        set_threads(threads)
        with cpu.use_instruction_set(name):
            assert_same_output(case.run(), expected)
            assert_same_bits(standard_normal(case.seeds, (17001,), dtype=dtype), noise)

    check_all(check, pairs(dtype=DTYPES, name=cpu.instruction_sets(), threads=[1, 2, 3, 8]))


def check_noise(elements: int, dtype: torch.dtype, stream: Stream) -> None:
    seeds, steps = torch.tensor([INT64_MIN, -5, 0, INT64_MAX]), torch.tensor([0, 2**32 - 1, 7, 2**31])
    options = {"step": steps, "stream": stream, "dtype": dtype}
    expected = standard_normal(seeds, (elements,), backend="reference", **options)
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            made = standard_normal(seeds, (elements,), backend="cpu", **options)
            assert_same_bits(made, expected)


def test_noise_has_the_same_bits() -> None:
    check_all(check_noise, pairs(elements=SIZES, dtype=DTYPES, stream=Stream))


@pytest.mark.slow
def test_sixteen_million_normals_have_the_same_bits() -> None:
    seeds = torch.arange(-8, 8)
    expected = standard_normal(seeds, (2**20,), backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same_bits(standard_normal(seeds, (2**20,)), expected)


def check_drawn(components: int, step: int | None, shared: bool) -> None:
    options = {"batch": 300, "shape": (1,), "rows": 3, "per_sample": True}
    case = random_case(components, components=components, **options)
    cdf = case.mixture.cdf[: 1 if shared else 3]
    drawn = (
        draw_components(case.seeds, cdf, row=case.row, step=step, backend=backend)
        for backend in ("cpu", "reference")
    )
    assert_same_bits(*drawn)


def test_components_are_the_same() -> None:
    choices = pairs(components=[1, 2, 8, 1024], step=[None, 2**32 - 1], shared=[False, True])
    check_all(check_drawn, choices)


@pytest.mark.parametrize(("rows", "elements"), [(1, 1), (3, 3), (8, 63), (9, 1000), (17, 1024), (33, 4097)])
def test_orthonormal_rows_have_the_same_bits(
    rows: int, elements: int, set_threads: Callable[[int], None]
) -> None:
    generator = torch.Generator().manual_seed(rows)
    given_rows = torch.randn(rows, elements, dtype=torch.float64, generator=generator)
    expected = orthonormalize(given_rows, backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            for threads in (1, 3):
                set_threads(threads)
                assert_same_bits(orthonormalize(given_rows, backend="cpu"), expected)
