"""Fit the polynomials of the natural logarithm and exponential (run by hand; prints coefficients to paste).

    log     m in [sqrt(1/2), sqrt(2)), f = m - 1      log(1 + f) = f + f^2 P(f)
    exp     |r| <= ln(2) / 2                          exp(r) = 1 + (r + r^2 P(r))

float32: the polynomial of least largest error relative to the result, by Lawson's algorithm, its coefficients rounded
one after another from the lowest degree up; after each rounding the others are fitted again and make up for it.
float64: Chebyshev interpolation in 50 digits, its coefficients rounded; a coefficient more than the minimax polynomial
would need keeps its error far below an ulp.

    python tools/fit_elementary.py

prints the coefficients, lowest degree first, and the largest error of each polynomial in 2^-24 or 2^-53 of the
result. Reference: C. L. Lawson, "Contributions to the theory of linear least maximum approximation", 1961.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
from fit_normal import Float64s, Grid, c99_hex

GRID_POINTS = 2000
LAWSON_STEPS = 300
DIGITS = 50


@dataclass(frozen=True)
class Problem:
    """One polynomial P.

    Attributes:
        name: what it is called in the reference, but for the type.
        low: where its argument begins.
        high: where it ends.
        target: the function that it approximates, in mpmath numbers, as a series without cancellation at 0.
        result: the function that is computed with it, to which errors are relative: dresult / dP = x^2.
        pinned: first coefficients, lowest degree first, that are given.
        counts: coefficients in float32 and in float64.
    """

    name: str
    low: float
    high: float
    target: Callable[[mpmath.mpf], mpmath.mpf]
    result: Callable[[Float64s], Float64s]
    pinned: tuple[float, ...]
    counts: tuple[int, int]


HALF_LN_2 = float(np.log(2) / 2) * 1.0001  # the multiple of ln 2 nearest to x is chosen by a rounded product
PROBLEMS = (
    Problem(
        "LOG_P",
        0.5**0.5 - 1,
        2**0.5 - 1,
        lambda f: -mpmath.hyp2f1(1, 2, 3, -f) / 2,
        np.log1p,
        (-0.5,),
        (9, 21),
    ),
    Problem("EXP_P", -HALF_LN_2, HALF_LN_2, lambda r: mpmath.hyp1f1(1, 3, r) / 2, np.exp, (), (5, 11)),
)


def make_grid(problem: Problem) -> Grid:
    """Tabulate the target and the weight 1 / result, denser towards both ends."""
    cosines = np.cos(np.pi * (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS)
    x = (problem.low + problem.high) / 2 - (problem.high - problem.low) / 2 * cosines
    with mpmath.workdps(DIGITS):
        target = np.array([float(problem.target(mpmath.mpf(v))) for v in x.tolist()])
    return Grid(x, target, x * x / np.abs(problem.result(x)))


def errors(grid: Grid, coefficients: list[float]) -> Float64s:
    """Return the relative errors that the polynomial gives the results."""
    return grid.weight * np.abs(np.polynomial.polynomial.polyval(grid.x, coefficients) - grid.target)


def minimax(grid: Grid, fixed: list[float], count: int) -> list[float]:
    """Return `fixed` and the coefficients after it that make the largest error smallest.

    Least squares again and again, each abscissa weighted by the product of the errors that it had so far. Unlike an
    exchange of extrema this does not mind that the weight is 0 within the interval.
    """
    powers = grid.weight[:, None] * grid.x[:, None] ** np.arange(len(fixed), count)
    wanted = grid.weight * (grid.target - np.polynomial.polynomial.polyval(grid.x, [*fixed, 0.0]))
    emphasis = np.ones_like(grid.x)
    best, best_size = fixed, np.inf
    for _ in range(LAWSON_STEPS):
        root = np.sqrt(emphasis)
        solution = np.linalg.lstsq(root[:, None] * powers, root * wanted, rcond=None)[0]
        candidate = [*fixed, *solution.tolist()]
        size = errors(grid, candidate)
        if size.max() < best_size:
            best, best_size = candidate, size.max()
        emphasis *= size / size.max()
        emphasis = np.maximum(emphasis / emphasis.max(), 1e-30)
    return best


def fit_float32(problem: Problem, grid: Grid) -> list[float]:
    """Return float32 coefficients."""
    rounded = list(problem.pinned)
    while len(rounded) < problem.counts[0]:
        rounded.append(float(np.float32(minimax(grid, rounded, problem.counts[0])[len(rounded)])))
    return rounded


def fit_float64(problem: Problem) -> list[float]:
    """Return float64 coefficients."""

    def rest(x: mpmath.mpf) -> mpmath.mpf:
        return (problem.target(x) - problem.pinned[0]) / x if problem.pinned else problem.target(x)

    free = problem.counts[1] - len(problem.pinned)
    with mpmath.workdps(DIGITS):
        highest_first = mpmath.chebyfit(rest, [problem.low, problem.high], free)
        return [*problem.pinned, *(float(c) for c in reversed(highest_first))]


def float64_error(problem: Problem, coefficients: list[float]) -> float:
    """Return the largest relative error that a float64 polynomial gives the results, in 50 digits."""
    worst = mpmath.mpf(0)
    with mpmath.workdps(DIGITS):
        for x in np.linspace(problem.low, problem.high, GRID_POINTS):
            value = mpmath.polyval(coefficients[::-1], mpmath.mpf(float(x)))
            error = (value - problem.target(mpmath.mpf(float(x)))) * float(x * x / problem.result(x))
            worst = max(worst, abs(error))
    return float(worst)


def main() -> None:
    """Fit every polynomial in both types and print it."""
    for problem in PROBLEMS:
        grid = make_grid(problem)
        single, double = fit_float32(problem, grid), fit_float64(problem)
        error = float(errors(grid, single).max())
        print(f"{problem.name} in float32, largest error {error * 2**24:.4f} x 2^-24 of the result:")
        print("   ", ", ".join(c99_hex(c) for c in single))
        error = float64_error(problem, double)
        print(f"{problem.name} in float64, largest error {error * 2**53:.4f} x 2^-53 of the result:")
        print("   ", ", ".join(c99_hex(c) for c in double))


if __name__ == "__main__":
    main()
