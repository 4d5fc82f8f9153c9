"""The reference and the core give the same bits, on every instruction set and with any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
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

SIZES = (1, 3, 4, 63, 64, 65, 1000, 4097)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
pair_name = "{0[0]}-{0[1]}".format


def assert_backends_agree(case: StepCase) -> None:
    expected = case.run(backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same_output(case.run(backend="cpu"), expected)


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=pair_name)
@pytest.mark.parametrize("special", [False, True])
def test_every_option_gives_the_same_bits(pair: tuple[torch.dtype, torch.dtype], special: bool) -> None:
    for seed, options in enumerate(every_option()):
        case = random_case(seed, batch=2, dtype=pair[0], output_dtype=pair[1], special=special, **options)
        assert_backends_agree(case)


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=pair_name)
@pytest.mark.parametrize("elements", SIZES)
def test_awkward_sizes_give_the_same_bits(elements: int, pair: tuple[torch.dtype, torch.dtype]) -> None:
    for seed in range(3):
        assert_backends_agree(
            random_case(seed, shape=(elements,), dtype=pair[0], output_dtype=pair[1], special=seed == 2)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("components", [1, 1023, 1024])
def test_many_components_give_the_same_bits(components: int, dtype: torch.dtype) -> None:
    for seed in range(2):
        case = random_case(seed, batch=9, dtype=dtype, rows=3, components=components)
        assert_backends_agree(case)
    assert components == 1 or int(case.run().components.max()) > 500


@pytest.mark.parametrize("removed", range(0, 131, 13))
def test_a_std_table_may_end_anywhere(removed: int) -> None:
    for dtype in (torch.float32, torch.float64):
        assert_backends_agree(random_case(removed, shape=(130,), dtype=dtype, components=4, removed=removed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_seeds_and_steps_give_the_same_bits(dtype: torch.dtype) -> None:
    case = random_case(3, batch=6, dtype=dtype, components=8)
    seeds = torch.tensor([0, -1, 1, INT64_MIN, INT64_MAX, 2**32])
    steps = torch.tensor([2**32 - 1, 0, 2**31, 2**32 - 1, 2**31 - 1, 1])
    for step in (steps, 2**32 - 1):
        changed = StepCase(**(case.__dict__ | {"seeds": seeds, "step": step}))
        assert_backends_agree(changed)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(
    dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    case = random_case(8, batch=3, shape=(17001,), dtype=dtype, components=3, prediction="epsilon")
    expected = case.run(backend="reference")
    noise = standard_normal(case.seeds, (17001,), dtype=dtype, backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            for threads in (1, 2, 3, 8):
                set_threads(threads)
                assert_same_output(case.run(), expected)
                assert_same_bits(standard_normal(case.seeds, (17001,), dtype=dtype), noise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", SIZES)
def test_noise_has_the_same_bits(elements: int, dtype: torch.dtype) -> None:
    seeds, steps = torch.tensor([INT64_MIN, -5, 0, INT64_MAX]), torch.tensor([0, 2**32 - 1, 7, 2**31])
    for stream in Stream:
        options = {"step": steps, "stream": stream, "dtype": dtype}
        expected = standard_normal(seeds, (elements,), backend="reference", **options)
        for name in cpu.instruction_sets():
            with cpu.use_instruction_set(name):
                assert_same_bits(standard_normal(seeds, (elements,), backend="cpu", **options), expected)


@pytest.mark.slow
def test_sixteen_million_normals_have_the_same_bits() -> None:
    seeds = torch.arange(-8, 8)
    expected = standard_normal(seeds, (2**20,), backend="reference")
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same_bits(standard_normal(seeds, (2**20,)), expected)


@pytest.mark.parametrize("components", [1, 2, 8, 1024])
def test_components_are_the_same(components: int) -> None:
    case = random_case(components, batch=500, components=components, removed=0, rows=3, per_sample=True)
    for thresholds in (case.mixture.thresholds, case.mixture.thresholds[:1]):
        for step in (None, 2**32 - 1):
            options = {"row": case.row, "step": step}
            assert_same_bits(
                draw_components(case.seeds, thresholds, backend="cpu", **options),
                draw_components(case.seeds, thresholds, backend="reference", **options),
            )


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
