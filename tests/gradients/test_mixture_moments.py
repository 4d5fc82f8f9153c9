"""Mean and variance of a mixture: what matching promises, what steps draw, and the errors."""

from __future__ import annotations

import math

import pytest
import torch
from covering import check_all, pairs
from helpers import coefficient_row, random_mixture
from numpy.random import default_rng
from torch.autograd import gradcheck

from gmmkernel import (
    Column,
    MixtureTables,
    ddim_coefficients,
    gaussian_mixture,
    gmm_step,
    mixture_moments,
    noise_schedule,
    timesteps,
)

ROWS = ddim_coefficients(noise_schedule("linear"), timesteps(4), eta=1.0, dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("variant", ["rand", "ortho"])
def test_matched_mixtures_keep_mean_and_variance(variant: str, weights: list[float] | None) -> None:
    """Element by element, where nothing is clipped: to float64's last bits (RAND's mean to its known error)."""
    mixture = gaussian_mixture(
        variant, elements=40, scale=1e-3, n_components=4, n_steps=4, weights=weights
    ).bind(ROWS)
    for row in range(3):
        moments = mixture_moments(mixture, ROWS, row=row)
        sigma = ROWS[row, Column.SIGMA]
        exact = variant == "ortho"
        assert float(moments.mean.norm()) < (1e-15 if exact else 0.2) * 1e-3
        tolerance = 1e-13 if exact else 5e-5
        torch.testing.assert_close(moments.variance, (sigma**2).expand(40), rtol=tolerance, atol=0)


def check_exact(variant: str, scheme: str, weights: list[float] | None) -> None:
    mixture = gaussian_mixture(variant, elements=9, n_components=4, rho=0.9, scheme=scheme, weights=weights)
    rows = mixture.scaled(ROWS)
    rows[2, Column.OFFSET] = 0
    for row in range(4):
        moments = mixture_moments(mixture.bind(rows), rows, row=row)
        assert float(moments.mean.norm()) < 1e-15
        expected = (rows[row, Column.SIGMA] ** 2).expand(9)
        torch.testing.assert_close(moments.variance, expected, rtol=1e-13, atol=0)


def test_moments_matched_exactly() -> None:
    weights = [None, [0.1, 0.2, 0.3, 0.4]]
    choices = pairs(variant=["exact", "rand-exact"], scheme=["a", "b"], weights=weights)
    check_all(check_exact, choices)


def test_they_are_the_moments_of_what_steps_draw() -> None:
    mixture = random_mixture(default_rng(0), elements=6, components=3, rows=1, removed=4, shared_std=False)
    weights = torch.diff(mixture.cdf[0] / 2**32, prepend=torch.zeros(1), append=torch.ones(1))
    mixture = mixture._replace(weights=weights[None])
    row = coefficient_row(sigma=0.7, offset=0.5)
    count = 200_000
    zeros = torch.zeros(count, 6)
    drawn = gmm_step(
        zeros, zeros, row, row=0, seeds=torch.arange(count), mixture=mixture
    ).prev_sample.double()
    moments = mixture_moments(mixture, row, row=0)
    errors = moments.variance.double().sqrt() / math.sqrt(count)
    assert bool(((drawn.mean(0) - moments.mean).abs() < 5 * errors).all())
    assert bool(((drawn.var(0) - moments.variance).abs() < 10 * errors * moments.variance.sqrt()).all())


def test_they_have_gradients() -> None:
    def moments(offsets, std, weights, coefficients):
        tables = MixtureTables(torch.zeros(1, 2, dtype=torch.int64), offsets, std, weights)
        return tuple(mixture_moments(tables, coefficients, row=1))

    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 3, 5), (1, 1, 2), (1, 3), (2, 16))
    inputs = [
        torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]
    assert gradcheck(moments, inputs)


def test_bad_input_is_named() -> None:
    mixture = gaussian_mixture("ortho", elements=4, scale=0.1, n_components=2, n_steps=4).bind(ROWS)
    for arguments, row, error, message in (
        ((None, ROWS), 0, TypeError, "mixture: expected MixtureTables, got NoneType"),
        (
            (mixture, ROWS.float()),
            0,
            TypeError,
            r"mixture.offsets: expected torch\.float32, got torch\.float64",
        ),
        ((mixture, ROWS[:3]), 0, ValueError, r"mixture\.offsets: expected 1 entry or one for each of 3"),
        ((mixture._replace(weights=None), ROWS), 0, ValueError, r"mixture\.weights: expected a tensor"),
        ((mixture, ROWS), 4, IndexError, "row: expected 0 to 3, got 4"),
        ((mixture, ROWS), True, TypeError, "row: expected an int, got bool"),
    ):
        with pytest.raises(error, match=message):
            mixture_moments(*arguments, row=row)
