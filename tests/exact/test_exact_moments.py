"""Exactly matched moments: by algebra, by Monte Carlo, and of the marginal after ten steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact_cases import KINDS, WEIGHTS, bound, covariances, kind_name, moments, rows
from helpers import PUBLISHED_VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmmkernel import Column, ddim_coefficients, gmm_step, moment_report, noise_schedule
from gmmkernel.mixtures import Mixture, gaussian_mixture
from gmmkernel.mixtures.exact import directions_of, directions_of_equal, eigenpairs, gram_of_orthogonal
from gmmkernel.schedules import timesteps

EXACTLY = 1e-14
by_kind = pytest.mark.parametrize("kind", KINDS, ids=kind_name)


@by_kind
@pytest.mark.parametrize("rho", [0.1, 0.9, 0.999])
def test_mean_and_covariance_are_kept(kind: dict[str, Any], rho: float) -> None:
    mixture, coefficients, tables = bound(kind, rows(0.9, 0.3, 1e-3), elements=6, rho=rho)
    for row, sigma in enumerate((0.9, 0.3, 1e-3)):
        mean, covariance = moments(mixture, tables, coefficients, row)
        assert float(mean.abs().max()) < EXACTLY * sigma
        expected = sigma**2 * torch.eye(6, dtype=torch.float64)
        assert float((covariance - expected).abs().max()) < EXACTLY * sigma**2
        # The components are not all of one covariance, or the matching would be in vain.
        assert (
            float((covariances(tables, coefficients, row) - expected).abs().max()) > 1e-4 * rho**2 * sigma**2
        )
    assert bool(moment_report(mixture, coefficients).matched.all())


@given(
    components=st.integers(2, 9),
    elements=st.integers(9, 24),
    weights=st.none() | st.lists(st.floats(0.05, 5), min_size=9, max_size=9),
    variant=st.sampled_from(["exact", "rand-exact"]),
    scheme=st.sampled_from(["a", "b"]),
    rho=st.floats(0.01, 0.99),
    n_steps=st.sampled_from([None, 2]),
)
@settings(max_examples=30, deadline=None)
def test_any_mixture_keeps_them(
    components: int,
    elements: int,
    weights: list[float] | None,
    variant: str,
    scheme: str,
    rho: float,
    n_steps: int | None,
) -> None:
    mixture = gaussian_mixture(
        variant,
        elements=elements,
        n_components=components,
        weights=None if weights is None else weights[:components],
        scheme=scheme,
        rho=rho,
        n_steps=n_steps,
    )
    coefficients = mixture.scaled(rows(0.8, 0.2))
    tables = mixture.bind(coefficients)
    for row, sigma in enumerate((0.8, 0.2)):
        mean, covariance = moments(mixture, tables, coefficients, row)
        expected = sigma**2 * torch.eye(elements, dtype=torch.float64)
        assert float(mean.abs().max()) < 1e-13 * sigma
        assert float((covariance - expected).abs().max()) < 1e-12 * sigma**2


def test_more_components_than_elements() -> None:
    """Offsets at random may then lie in fewer dimensions than there are of them."""
    mixture, coefficients, tables = bound({"variant": "rand-exact"}, rows(0.5), elements=3, components=7)
    assert tables.basis is not None
    assert tables.basis.shape == (1, 3, 7)
    mean, covariance = moments(mixture, tables, coefficients, 0)
    assert float(mean.abs().max()) < EXACTLY
    assert float((covariance - 0.25 * torch.eye(3, dtype=torch.float64)).abs().max()) < EXACTLY


@by_kind
def test_samples_have_them(kind: dict[str, Any]) -> None:
    """200,000 steps: each covariance within six standard errors, those of components apart included."""
    count, sigma, elements = 200_000, 0.5, 3
    mixture, coefficients, tables = bound(kind, rows(sigma, dtype=torch.float32), elements=elements + 1)
    nothing = torch.zeros(count, elements + 1)
    made = gmm_step(
        nothing,
        nothing,
        coefficients,
        row=0,
        seeds=torch.arange(count),
        mixture=tables,
        return_components=True,
    )
    assert made.components is not None
    drawn = made.prev_sample.double()
    error = 6 * sigma / math.sqrt(count)
    assert float(drawn.mean(0).abs().max()) < error
    expected = sigma**2 * torch.eye(elements + 1, dtype=torch.float64)
    assert float((torch.cov(drawn.T) - expected).abs().max()) < 6 * sigma**2 * math.sqrt(2 / count)
    of_components = covariances(mixture.bind(coefficients.double()), coefficients.double(), 0)
    for k, covariance in enumerate(of_components):
        own = drawn[made.components == k]
        assert abs(len(own) / count - float(mixture.weights[k])) < 6 * 0.5 / math.sqrt(count)
        apart = (torch.cov(own.T) - covariance).abs().max()
        assert float(apart) < 6 * sigma**2 * math.sqrt(2 / len(own))


@pytest.mark.parametrize(
    ("variant", "eta"), [*((name, eta) for name in PUBLISHED_VARIANTS for eta in (0.0, 1.0)), ("exact", 1.0)]
)
def test_the_marginal_after_ten_steps_is_as_the_report_predicts(variant: str, eta: float) -> None:
    """Gaussian data, whose exact denoiser is linear: the covariance of a whole run against that of DDPM or DDIM."""
    elements, variance, steps = 12, 0.6, 10
    schedule = noise_schedule("linear")
    visited = timesteps(steps)
    plain = ddim_coefficients(schedule, visited, eta=eta, dtype=torch.float64)
    options: dict[str, Any] = {"rho": 0.9} if variant == "exact" else {"scale": 0.3}
    mixture = gaussian_mixture(variant, elements=elements, n_components=4, **options)
    coefficients = mixture.scaled(plain)
    added = [covariance_of_step(mixture, coefficients, row) for row in range(steps)]
    report = moment_report(mixture, coefficients)
    with_mixture = without = torch.eye(elements, dtype=torch.float64)
    predicted = 0.0
    for row, timestep in enumerate(visited.tolist()):
        a = float(schedule.alphas_cumprod[timestep])
        gain = mean_gain(plain[row], a, variance)
        square = float(plain[row, Column.SIGMA]) ** 2
        with_mixture = gain**2 * with_mixture + added[row]
        without = gain**2 * without + square * torch.eye(elements, dtype=torch.float64)
        predicted = gain**2 * predicted + float(report.excess_variance[row])
    excess = with_mixture - without
    if variant == "exact":
        assert float(excess.abs().max()) < EXACTLY
        return
    assert float(excess.trace() / elements) == pytest.approx(predicted, rel=1e-9, abs=1e-13)
    assert float(excess.abs().max()) > 1e-5


def covariance_of_step(mixture: Mixture, coefficients: Tensor, row: int) -> Tensor:
    tables = mixture.bind(coefficients)
    if mixture.directions is not None:
        if coefficients[row, Column.OFFSET] != 0:
            return moments(mixture, tables, coefficients, row)[1]
        return coefficients[row, Column.SIGMA] ** 2 * torch.eye(mixture.elements, dtype=torch.float64)
    std = coefficients[row, Column.SIGMA].repeat(mixture.n_components, mixture.elements)
    std[:, : tables.std.shape[2]] = tables.std[row % len(tables.std)]
    delta = coefficients[row, Column.OFFSET] * mixture.offsets[0]
    mean = mixture.weights @ delta
    spread = torch.einsum("k,kd,ke->de", mixture.weights, delta - mean, delta - mean)
    return spread + torch.diag(mixture.weights @ std.square())


def mean_gain(row: Tensor, a: float, variance: float) -> float:
    """What a step's mean multiplies the sample with, for the noise predicted of data N(0, v I)."""
    output = math.sqrt(1 - a) / (a * variance + 1 - a)
    x0 = float(row[Column.X0_SAMPLE]) + float(row[Column.X0_OUTPUT]) * output
    return float(row[Column.SAMPLE]) + float(row[Column.OUTPUT]) * output + float(row[Column.X0]) * x0


@given(size=st.integers(1, 20), seed=st.integers(0, 1000), degenerate=st.booleans())
@settings(max_examples=30, deadline=None)
def test_eigenpairs_are_numpy_s(size: int, seed: int, degenerate: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = torch.eye(size, dtype=torch.float64) * 2 if degenerate else factor @ factor.T
    values, vectors = (torch.from_numpy(found) for found in eigenpairs(matrix.numpy()))
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    assert torch.allclose(values, expected, rtol=0, atol=1e-13 * float(expected[0]))
    assert torch.allclose(vectors @ vectors.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.allclose(vectors.T * values @ vectors, matrix, rtol=0, atol=1e-13 * float(expected[0]))


@pytest.mark.parametrize("count", [2, 3, 8, 33])
def test_the_short_way_for_equal_weights_spans_the_same(count: int) -> None:
    """Helmert's directions and the general ones may be turned against each other; their projections may not."""
    pi = torch.full((count,), 1 / count, dtype=torch.float64).numpy()
    short = directions_of_equal(1.5, count)
    general = directions_of(gram_of_orthogonal(1.5, pi), pi, "b")
    assert short.eigenvalues.shape == general.eigenvalues.shape == (1, 1, count - 1)
    for name in ("eigenvalues", "norms"):
        assert torch.allclose(getattr(short, name), getattr(general, name), rtol=1e-13, atol=0)
    for one in (short, general):
        assert float(one.basis.sum(2).abs().max()) < 1e-14
    projections = [one.basis[0].T @ one.basis[0] for one in (short, general)]
    assert torch.allclose(*projections, rtol=0, atol=1e-13)
    overlaps = [one.overlaps[0].T @ one.overlaps[0] for one in (short, general)]
    assert torch.allclose(*overlaps, rtol=0, atol=1e-13)


def test_rho_gives_each_step_its_scale() -> None:
    """It is rho sigma sqrt(K) with equal weights and orthogonal offsets; nothing where there is no noise."""
    _, coefficients, tables = bound({"variant": "exact"}, rows(0.9, 0.0, 0.3), elements=6, rho=0.8)
    expected = torch.tensor([0.8 * 0.9 * 2, 0, 0.8 * 0.3 * 2], dtype=torch.float64)
    assert torch.allclose(coefficients[:, Column.OFFSET], expected, rtol=1e-14, atol=0)
    assert tables.std_delta is not None
    assert tables.std_delta[1].abs().max() == 0
    assert torch.allclose(tables.std_delta[0], torch.full((1, 3), 0.9 * (0.6 - 1), dtype=torch.float64))
    unequal = gaussian_mixture("exact", elements=6, n_components=4, weights=WEIGHTS, rho=0.8)
    coefficients = unequal.scaled(rows(0.9))
    assert unequal.directions is not None
    largest = float(unequal.directions.eigenvalues.max())
    assert float(coefficients[0, Column.OFFSET]) ** 2 * largest == pytest.approx((0.8 * 0.9) ** 2, rel=1e-14)


def test_without_noise_it_is_plain_ddim() -> None:
    coefficients = ddim_coefficients(noise_schedule("linear"), timesteps(4), eta=0.0)
    _, scaled, tables = bound({"variant": "exact"}, coefficients, elements=20)
    sample, output = torch.randn(3, 20), torch.randn(3, 20)
    for row in range(4):
        options: dict[str, Any] = {"row": row, "seeds": torch.arange(3)}
        with_mixture = gmm_step(sample, output, scaled, mixture=tables, **options).prev_sample
        assert torch.equal(with_mixture, gmm_step(sample, output, coefficients, **options).prev_sample)
