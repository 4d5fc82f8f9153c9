"""The specification's step against the equations in extended precision, within a derived bound; and its rules."""

from __future__ import annotations

import numpy as np
import pytest
import truth
from numpy.typing import NDArray

from gmmkernel import Column, Stream
from gmmkernel.backends.reference.normal import standard_normal
from gmmkernel.backends.reference.transition import Step, choose_component, transition

Array = NDArray[np.generic]


def random_row(rng: np.random.Generator, dtype: type) -> Array:
    row = rng.standard_normal(len(Column))
    row[[Column.CLIP_MIN, Column.CLIP_MAX]] = (-0.7, 0.8) if rng.integers(2) else (-np.inf, np.inf)
    row[Column.SIGMA] = abs(row[Column.SIGMA])
    return row.astype(dtype)


def plain_row(dtype: type = np.float32, **columns: float) -> Array:
    row = np.zeros(len(Column), dtype)
    row[[Column.CLIP_MIN, Column.CLIP_MAX]] = -np.inf, np.inf
    for name, value in columns.items():
        row[Column[name.upper()]] = value
    return row


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("trial", range(40))
def test_step_follows_the_equations_within_the_derived_bound(trial: int, dtype: type) -> None:
    rng = np.random.default_rng(trial)
    elements = int(rng.choice([1, 3, 63, 130]))

    def numbers() -> Array:
        return rng.standard_normal(elements).astype(dtype)

    x, output = numbers(), numbers()
    uncond = numbers() if trial % 2 else None
    history = [numbers() for _ in range(trial % 5)]
    offset = numbers() if trial % 3 else None
    std = rng.random(int(rng.choice([0, 1, elements]))).astype(dtype)
    row, seed, step = random_row(rng, dtype), int(rng.integers(-(2**63), 2**63)), int(rng.integers(2**32))
    made = transition(x, output, uncond, history, row, offset, std, seed, step)

    if dtype == np.float32:
        value = truth.standard_normal(seed, step, truth.TRANSITION, elements)
        noise = truth.Bounded(value, abs(value) * truth.NORMAL_RELATIVE_ERROR)
    else:  # the same float32-valued noise, so that float64 arithmetic shows
        noise = truth.Bounded.exactly(standard_normal(seed, step, Stream.TRANSITION, elements))
    form = truth.FORMATS[np.dtype(dtype).name]
    true = truth.step(x, output, uncond, history, row, offset, std, noise, form)
    for name, computed in {
        "prev_sample": made.sample,
        "x0": made.x0,
        "epsilon": made.epsilon,
        "model_output": made.model_output,
    }.items():
        assert computed.dtype == dtype
        assert (abs(computed - true[name].value) <= true[name].error).all(), name
        assert true[name].error.max() < 1000 * form.roundoff  # the bound itself says something


def step_of(row: Array, **changes: object) -> Step:
    one = np.ones(5, np.float32)
    arguments = {"x": one, "output": one, "output_uncond": None, "history": [], "offset": None}
    return transition(**(arguments | {"row": row, "std": one[:0], "seed": 1, "step": 2} | changes))


def test_history_with_coefficient_zero_is_absent() -> None:
    bad = np.full(5, np.nan, np.float32)
    good = np.full(5, 3, np.float32)
    made = step_of(plain_row(sample=2, history_1=4), history=[bad, good, bad])
    assert made.sample.tolist() == [14.0] * 5
    assert np.isnan(step_of(plain_row(history_0=1e-30), history=[bad]).sample).all()


def test_offset_with_coefficient_zero_is_absent_and_other_coefficients_scale_it() -> None:
    bad = np.full(5, np.nan, np.float32)
    assert step_of(plain_row(sample=2), offset=bad).sample.tolist() == [2.0] * 5
    offset = np.float32([1, 2, 3, 4, 5])
    assert step_of(plain_row(offset=0.5), offset=offset).sample.tolist() == [0.5, 1, 1.5, 2, 2.5]


def test_noise_is_absent_only_where_sigma_is_zero_and_nothing_is_tabulated() -> None:
    zero = np.float32([-0.0] * 5)
    still = step_of(plain_row(sample=1), x=zero, output=zero).sample
    assert (still == 0).all()
    assert np.signbit(still).all()  # 0 * z - 0 would be +0 wherever z > 0
    std = np.float32([2, 0])
    z = standard_normal(1, 2, Stream.TRANSITION, 5)
    moved = step_of(plain_row(sigma=3), std=std).sample
    assert np.array_equal(moved, np.concatenate([2 * z[:1], [0], 3 * z[2:]]).astype(np.float32))
    assert np.array_equal(step_of(plain_row(), std=std[:1]).sample, np.float32([2 * z[0], 0, 0, 0, 0]))


def test_the_words_decide_components_as_a_sorted_search_does() -> None:
    rng = np.random.default_rng(5)
    for trial in range(300):
        cdf = np.sort(rng.integers(0, 2**32 + 1, int(rng.choice([0, 1, 7, 1023]))))
        seed, step = int(rng.integers(-(2**63), 2**63)), int(rng.integers(2**32))
        word = truth.random_words(seed, step, truth.COMPONENT, 1)[0]
        expected = int(np.searchsorted(cdf, word, side="right"))
        assert choose_component(seed, step, cdf) == expected, trial


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_a_component_begins_exactly_at_its_threshold(seed: int) -> None:
    word = truth.random_words(seed, 9, truth.COMPONENT, 1)[0]
    for threshold, expected in ((word - 1, 1), (word, 1), (word + 1, 0), (0, 1), (2**32, 0)):
        assert choose_component(seed, 9, np.array([threshold])) == expected


def test_component_frequencies_follow_the_weights() -> None:
    weights = np.array([0.05, 0.5, 0.15, 0.3])
    cdf = np.floor(2.0**32 * np.cumsum(weights)[:-1]).astype(np.int64)
    count = 4000
    drawn = np.bincount([choose_component(seed, 3, cdf) for seed in range(count)], minlength=4)
    chi_squared = ((drawn - count * weights) ** 2 / (count * weights)).sum()
    assert chi_squared < 16.27  # the 99.9% quantile with three degrees of freedom
