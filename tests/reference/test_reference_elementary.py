"""Logarithm and exponential of the specification: rules, errors in ulp, and the bits of the compiled headers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elementary_inputs
import fit_elementary
import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from gmmkernel.backends.reference.elementary import FLOAT32, FLOAT64, exp, log

Floats = NDArray[np.floating[Any]]
ROOT = Path(__file__).resolve().parents[2]
DTYPES = (np.float32, np.float64)
INPUTS = {np.float32: elementary_inputs.floats, np.float64: elementary_inputs.doubles}
TRUTHS: dict[Callable[[Floats], Floats], Callable[[mpmath.mpf], mpmath.mpf]] = {
    log: mpmath.log,
    exp: mpmath.exp,
}
# Measured by csrc/tools/elementary_accuracy.cpp: docs/exactness.md.
BOUNDS = {(log, np.float32): 0.876, (log, np.float64): 1.0, (exp, np.float32): 1.013, (exp, np.float64): 1.0}

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_function = pytest.mark.parametrize("function", [log, exp])


def same(actual: Floats, expected: Floats) -> bool:
    """Compare bits, NaN as NaN."""
    integers = f"u{actual.itemsize}"
    bits = actual.view(integers) == expected.view(integers)
    return actual.dtype == expected.dtype and bool((bits | (np.isnan(actual) & np.isnan(expected))).all())


def spread(dtype: type, count: int) -> Floats:
    """Some of the common arguments, from all their parts, and the neighbours of where exp's result changes kind."""
    x = INPUTS[dtype]()
    edges = np.array(
        [88.72284, -87.33655, -103.97208, -103.27893]
        if dtype is np.float32
        else [709.782712893384, -708.3964185322641, -745.1332191019412, -744.4400719213812],
        dtype,
    )
    around = np.concatenate([np.nextafter(edges, side) for side in dtype([-np.inf, np.inf])])
    return np.concatenate([x[:: len(x) // count + 1], edges, around])


def errors(function: Callable[[Floats], Floats], x: Floats) -> Floats:
    """Return errors in ulp of the exact result, where that is finite."""
    form = np.finfo(x.dtype)
    made, found = function(x).tolist(), []
    with mpmath.workdps(40):
        # What rounds to infinity: half an ulp above the largest number.
        beyond = mpmath.mpf(float(form.max)) + mpmath.ldexp(1, int(form.maxexp) - form.nmant - 2)
        for argument, value in zip(x.tolist(), made, strict=True):
            truth = TRUTHS[function](mpmath.mpf(argument))
            if truth >= beyond:
                assert value == np.inf
                continue
            exponent = int(mpmath.frexp(truth)[1]) - 1 if truth else int(form.minexp)
            ulp = mpmath.ldexp(1, max(exponent, int(form.minexp)) - form.nmant)
            found.append(float(abs(value - truth) / ulp))
    return np.array(found)


@each_dtype
def test_log_of_special_values(dtype: type) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([0, -0.0, 1, np.inf, -np.inf, np.nan, -1, -tiny], dtype)
    inf, nan = np.inf, np.nan
    assert same(log(x), np.array([-inf, -inf, 0, inf, nan, nan, nan, nan], dtype))


@each_dtype
def test_exp_of_special_values(dtype: type) -> None:
    big, tiny = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    x = np.array([0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, big, -big], dtype)
    assert same(exp(x), np.array([1, 1, 1, 1, np.inf, 0, np.nan, np.inf, 0], dtype))


@each_dtype
def test_exp_overflows_and_vanishes_where_it_should(dtype: type) -> None:
    """Numbers next to ln(largest) and ln(half the smallest)."""
    form = np.finfo(dtype)
    with mpmath.workdps(40):
        top = dtype(float(mpmath.log(float(form.max))))
        end = dtype(float(mpmath.log(float(form.smallest_subnormal)) - mpmath.log(2)))
    x = np.array([np.nextafter(top, dtype(0)), np.nextafter(top, dtype(np.inf))])
    assert np.isfinite(exp(x)).tolist() == [True, False]
    x = np.array([np.nextafter(end, dtype(0)), np.nextafter(end, dtype(-np.inf))])
    assert exp(x).tolist() == [float(form.smallest_subnormal), 0]


@each_function
@each_dtype
def test_shapes_stay(function: Callable[[Floats], Floats], dtype: type) -> None:
    x = np.linspace(0.1, 3, 24).astype(dtype).reshape(4, 6)
    whole = function(x)
    assert whole.dtype == dtype
    assert same(function(x.T), whole.T)
    assert same(function(x[:, ::2]), whole[:, ::2])
    assert same(function(x[1, 2]), whole[1, 2])
    assert function(x[:0]).shape == (0, 6)


@each_function
@each_dtype
def test_errors_are_below_the_bounds(function: Callable[[Floats], Floats], dtype: type) -> None:
    x = spread(dtype, 20000)
    x = x[(x > 0) & (x < np.inf)] if function is log else x[np.abs(x) < 800]
    found = errors(function, x)
    assert len(found) > 5000
    assert found.max() < BOUNDS[function, dtype]


@each_dtype
def test_log_keeps_its_precision_next_to_1(dtype: type) -> None:
    """From 1/2 to the neighbours of 1, on both sides, at every scale."""
    scales = 2.0 ** -np.arange(1, np.finfo(dtype).nmant + 1)
    distance = (scales[:, None] * np.random.default_rng(0).uniform(0.5, 1, (1, 40))).reshape(-1)
    x = np.concatenate([1 + distance, 1 - distance]).astype(dtype)
    assert errors(log, x).max() < BOUNDS[log, dtype]


@each_function
@each_dtype
def test_compiled_headers_give_the_same_bits(function: Callable[[Floats], Floats], dtype: type) -> None:
    """The C++ test holds every instruction set to these digests of the same arguments."""
    source = (ROOT / "csrc/tests/test_elementary.cpp").read_text(encoding="utf-8")
    name = f"{function.__name__}_{dtype.__name__}".upper()
    (known,) = re.findall(rf"{name} = 0x(\w+);", source)
    assert elementary_inputs.digest(function(INPUTS[dtype]())) == int(known, 16)


@pytest.mark.slow
@pytest.mark.parametrize("problem", fit_elementary.PROBLEMS, ids=lambda problem: problem.name)
def test_the_fit_gives_these_coefficients(problem: fit_elementary.Problem) -> None:
    name = problem.name.lower()
    assert fit_elementary.fit_float64(problem) == list(getattr(FLOAT64, name))
    assert fit_elementary.fit_float32(problem, fit_elementary.make_grid(problem)) == list(
        getattr(FLOAT32, name)
    )
