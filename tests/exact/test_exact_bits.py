"""Steps and log-densities of exactly matched moments: the same bits from every backend, instruction set and batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from covering import check_all, pairs
from exact_cases import KINDS, WEIGHTS, bound, covariances, factors, kind_name, rows
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmmkernel import Column, MixtureTables, draw_components, gmm_step, gmm_step_log_prob, standard_normal
from gmmkernel.backends.constants import Stream
from gmmkernel.backends.cpu import instruction_sets, use_instruction_set
from gmmkernel.mixtures import gaussian_mixture

by_kind = pytest.mark.parametrize("kind", KINDS, ids=kind_name)


def exact_case(seed: int, kind: dict[str, Any], components: int = 4, **options: Any) -> StepCase:
    """Return a random step with such a mixture; of its four rows one has no offset, and one no noise."""
    case = random_case(seed, components=0, **options)
    coefficients = case.coefficients.clone()
    coefficients[:, Column.SIGMA] = torch.tensor([0.9, 0.0, 0.7, 0.4])
    coefficients[:, Column.OFFSET] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    elements = math.prod(case.sample.shape[1:])
    _, coefficients, tables = bound(kind, coefficients, elements=elements, components=components)
    return replace(case, coefficients=coefficients, mixture=tables)


def check_step(kind: dict[str, Any], elements: int, dtype: torch.dtype) -> None:
    case = exact_case(elements, kind, shape=(elements,), dtype=dtype, batch=3, per_sample=True)
    expected = case.run(backend="reference")
    for name in instruction_sets():
        with use_instruction_set(name):
            assert_same_output(case.run(backend="cpu"), expected)


SIZES = [4, 63, 1000, 1024, 4097]


def test_sizes_and_types() -> None:
    check_all(check_step, pairs(kind=KINDS, elements=SIZES, dtype=DTYPES))
    check_step(KINDS[1], 20000, torch.float32)


def check_components(
    components: int, scheme: str, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    kind = {"variant": "exact", "scheme": scheme}
    case = exact_case(components, kind, components, shape=(3000,), batch=2, history=0, dtype=dtype)
    expected = case.run(backend="reference")
    for threads in (1, 3):
        set_threads(threads)
        assert_same_output(case.run(backend="cpu"), expected)


def test_numbers_of_components(set_threads: Callable[[int], None]) -> None:
    dtypes = [torch.float32, torch.float64]
    choices = pairs(components=[2, 3, 5, 8, 17, 64], scheme=["a", "b"], dtype=dtypes)
    check_all(partial(check_components, set_threads=set_threads), choices)


@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    special=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_option(seed: int, dtype: torch.dtype, kind: dict[str, Any], special: bool) -> None:
    case = exact_case(seed, kind, dtype=dtype, shape=(5, 7), batch=seed % 6, special=special)
    assert_same_output(case.run(backend="cpu"), case.run(backend="reference"))


def test_samples_without_elements() -> None:
    tables = MixtureTables(
        torch.tensor([[2**31]]), torch.ones(1, 2, 0), torch.ones(1, 1, 0), None, torch.ones(1, 1, 2),
        torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 2, 1), torch.ones(1, 1),
    )  # fmt: skip
    empty = torch.ones(3, 0)
    given = empty, empty, rows(0.9, dtype=torch.float32)
    made = gmm_step(*given, row=0, seeds=torch.arange(3), mixture=tables, return_components=True)
    assert made.prev_sample.shape == (3, 0)
    drawn = draw_components(torch.arange(3), tables.cdf)
    assert made.components is not None
    assert torch.equal(made.components, drawn)


def test_a_batch_splits_anywhere() -> None:
    """Blocks of samples are worked on together; 21 are more than one, and no whole number of fours."""
    case = exact_case(5, KINDS[1], shape=(5000,), batch=21, per_sample=True)
    whole = case.run()
    for sample in range(21):
        alone = case.take(slice(sample, sample + 1)).run()
        assert_same_bits(alone.prev_sample[0], whole.prev_sample[sample])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(dtype: torch.dtype) -> None:
    """What waits for the offsets does so in the result's memory, which may be an input's."""
    case = exact_case(
        6, KINDS[0], shape=(3000,), batch=3, dtype=dtype, output_dtype=dtype, history=1, per_sample=True
    )
    expected = case.run().prev_sample
    for name in ("sample", "model_output"):
        moved = replace(case, **{name: getattr(case, name).clone()})
        moved.run(out=getattr(moved, name))
        assert_same_bits(getattr(moved, name), expected)


def test_tables_of_their_own_for_each_step() -> None:
    mixture = gaussian_mixture("rand-exact", elements=50, n_components=4, weights=WEIGHTS, n_steps=4, rho=0.5)
    case = exact_case(8, KINDS[0], shape=(50,), batch=5, per_sample=True)
    coefficients = mixture.scaled(replace_offset(case.coefficients))
    case = replace(case, coefficients=coefficients, mixture=mixture.bind(coefficients))
    assert_same_output(case.run(backend="cpu"), case.run(backend="reference"))


def replace_offset(coefficients: Tensor) -> Tensor:
    table = coefficients.clone()
    table[:, Column.OFFSET] = 1
    return table


@by_kind
def test_the_step_is_what_the_equation_says(kind: dict[str, Any]) -> None:
    """In float64: mean + w delta_k + (sigma I + sum_r std_delta_r q_r q_r^T) z."""
    mixture, coefficients, tables = bound(kind, rows(0.9, 0.5), elements=7)
    seeds = torch.arange(40)
    generator = torch.Generator().manual_seed(0)
    sample, output = torch.randn(2, 40, 7, generator=generator, dtype=torch.float64)
    made = gmm_step(
        sample, output, coefficients, row=1, seeds=seeds, mixture=tables, return_components=True, step=9
    )
    assert made.components is not None
    noise = standard_normal(seeds, (7,), step=9, stream=Stream.TRANSITION, dtype=torch.float64)
    maps = 0.5 * torch.eye(7, dtype=torch.float64) + factors(tables, 1)[made.components]
    shift = coefficients[1, Column.OFFSET] * mixture.offsets[0, made.components]
    expected = 0.7 * sample + 0.3 * output + shift + torch.einsum("bde,be->bd", maps, noise)
    assert torch.allclose(made.prev_sample, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stored", [0, 1, 4])
@pytest.mark.parametrize("components", [3, 5, 8, 14])
def test_more_offsets_than_one_step_adds(components: int, stored: int) -> None:
    """Those that do not fit beside a history are added before, to noise that is multiplied with sigma once."""
    kind = {"variant": "exact"}
    coefficients = rows(0.9, 0.5)
    coefficients[:, Column.HISTORY_0 : Column.HISTORY_0 + stored] = 0.25
    mixture, coefficients, tables = bound(kind, coefficients, elements=20, components=components)
    seeds, generator = torch.arange(12), torch.Generator().manual_seed(1)
    sample, output, *history = torch.randn(2 + stored, 12, 20, generator=generator, dtype=torch.float64)
    made = gmm_step(
        sample,
        output,
        coefficients,
        row=1,
        seeds=seeds,
        mixture=tables,
        history=history,
        return_components=True,
    )
    noise = standard_normal(seeds, (20,), step=1, stream=Stream.TRANSITION, dtype=torch.float64)
    maps = 0.5 * torch.eye(20, dtype=torch.float64) + factors(tables, 1)[made.components]
    shift = coefficients[1, Column.OFFSET] * mixture.offsets[0, made.components]
    mean = 0.7 * sample + 0.3 * output + 0.25 * sum(history, torch.zeros_like(sample))
    expected = mean + shift + torch.einsum("bde,be->bd", maps, noise)
    assert torch.allclose(made.prev_sample, expected, rtol=0, atol=1e-14)


@by_kind
def test_the_log_density_is_the_mixture_s(kind: dict[str, Any]) -> None:
    """Against PyTorch's normal distributions with full covariances, in float64."""
    mixture, coefficients, tables = bound(kind, rows(0.9, 0.5), elements=7)
    generator = torch.Generator().manual_seed(1)
    prev, sample, output = torch.randn(3, 30, 7, generator=generator, dtype=torch.float64)
    made = gmm_step_log_prob(prev, sample, output, coefficients, row=1, mixture=tables)
    delta = coefficients[1, Column.OFFSET] * mixture.offsets[0]
    levels = [
        torch.distributions.MultivariateNormal(0.7 * sample + 0.3 * output + delta[k], covariance).log_prob(
            prev
        )
        + mixture.weights[k].log()
        for k, covariance in enumerate(covariances(tables, coefficients, 1))
    ]
    assert torch.allclose(made, torch.logsumexp(torch.stack(levels), 0), rtol=1e-13, atol=0)


def check_density(kind: dict[str, Any], elements: int, dtype: torch.dtype) -> None:
    case = exact_case(elements, kind, shape=(elements,), dtype=dtype, batch=4, per_sample=True)
    prev = case.run().prev_sample
    options: dict[str, Any] = {
        "row": case.row,
        "mixture": case.mixture,
        "model_output_uncond": case.model_output_uncond,
        "history": case.history,
    }
    given = (prev, case.sample, case.model_output, case.coefficients)
    expected = gmm_step_log_prob(*given, **options, backend="reference")
    for name in instruction_sets():
        with use_instruction_set(name):
            assert_same_bits(gmm_step_log_prob(*given, **options, backend="cpu"), expected)


def test_log_densities_have_the_same_bits() -> None:
    check_all(check_density, pairs(kind=KINDS, elements=[5, 1025, 3000], dtype=DTYPES))
