"""Moment reports against dense covariances, closed forms, and the moments of samples drawn by `gmm_step`."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import PUBLISHED_VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.mixtures import Mixture, gaussian_mixture
from gmmkernel.moments import MomentReport, moment_report
from gmmkernel.ops import gmm_step
from gmmkernel.schedules import ddim_coefficients, noise_schedule, timesteps

FLOAT_FIELDS = [
    field.name
    for field in dataclasses.fields(MomentReport)
    if field.name not in ("variant", "scale", "elements")
]


def rows(eta: float, count: int = 5) -> Tensor:
    return ddim_coefficients(noise_schedule(), timesteps(count), eta=eta, dtype=torch.float64)


def dense_moments(mixture: Mixture, coefficients: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of the transition, written out."""
    sigma, w = coefficients[s, Column.SIGMA], coefficients[s, Column.OFFSET]
    delta = w * mixture.offsets[s % len(mixture.offsets)]
    removed = mixture.reductions[s % len(mixture.reductions)].expand(mixture.n_components, -1)
    second = torch.zeros(mixture.elements, mixture.elements, dtype=torch.float64)
    for k, pi in enumerate(mixture.weights):
        variance = torch.full((mixture.elements,), float(sigma) ** 2, dtype=torch.float64)
        variance[: removed.shape[1]] = (sigma**2 - w**2 * removed[k]).clamp(min=0)
        second += pi * (torch.diag(variance) + torch.outer(delta[k], delta[k]))
    mean = mixture.weights @ delta
    return mean, second - torch.outer(mean, mean)


def relative(error: float, reference: float) -> float:
    return 0.0 if error == 0 else (math.inf if reference == 0 else error / reference)


@given(
    variant=st.sampled_from(PUBLISHED_VARIANTS),
    n_steps=st.sampled_from([None, 5]),
    weights=st.none() | st.lists(st.floats(0.1, 5), min_size=2, max_size=7),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([0.05, 1.0, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_report_is_what_the_dense_covariance_says(
    variant: str, n_steps: int | None, weights: list[float] | None, eta: float, scale: float
) -> None:
    mixture = gaussian_mixture(
        variant,
        elements=7,
        n_components=len(weights) if weights else 4,
        scale=scale,
        n_steps=n_steps,
        weights=weights,
    )
    coefficients = rows(eta)
    coefficients[1, Column.OFFSET] = 0.6
    report = moment_report(mixture, coefficients)
    for name in FLOAT_FIELDS:
        assert getattr(report, name).dtype == torch.float64
        assert getattr(report, name).shape == (5,)
    for s in range(5):
        sigma, w = float(coefficients[s, Column.SIGMA]), float(coefficients[s, Column.OFFSET])
        assert (float(report.sigma[s]), float(report.offset_weight[s])) == (sigma, w)
        mean, covariance = dense_moments(mixture, coefficients, s)
        error = covariance.diagonal() - sigma**2
        off_diagonal = float((covariance - torch.diag(covariance.diagonal())).norm())
        removed = mixture.reductions[s % len(mixture.reductions)]
        close = {"rel": 1e-9, "abs": 1e-14}
        assert float(report.mean_error[s]) == pytest.approx(relative(float(mean.norm()), w * scale), **close)
        assert float(report.variance_error[s]) == pytest.approx(float(error.abs().max()), **close)
        assert float(report.variance_error_mean[s]) == pytest.approx(float(error.abs().mean()), **close)
        assert float(report.excess_variance[s]) == pytest.approx(float(error.mean()), **close)
        assert float(report.clipped[s]) == pytest.approx(float((sigma**2 < w**2 * removed).double().mean()))
        assert float(report.off_diagonal[s]) == pytest.approx(off_diagonal, rel=1e-6, abs=1e-7 * scale**2)
        if sigma > 0:
            for name in ("variance_error", "variance_error_mean"):
                ratio = float(getattr(report, name)[s]) / sigma**2
                assert float(getattr(report, f"{name}_relative")[s]) == pytest.approx(ratio)
            ratio = float(report.off_diagonal[s]) / (sigma**2 * math.sqrt(7))
            assert float(report.off_diagonal_relative[s]) == pytest.approx(ratio)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("elements", [63, 1000])
def test_variance_added_without_noise(count: int, elements: int) -> None:
    """At eta = 0 all of the offsets' variance is added: s^2 (K-1)/(K D) an element (ortho), s^2/D (rand)."""
    for variant, added in (("ortho", (count - 1) / count), ("ortho-vub", (count - 1) / count), ("rand", 1.0)):
        mixture = gaussian_mixture(variant, elements=elements, n_components=count, scale=3.0, n_steps=5)
        report = moment_report(mixture, rows(0.0))
        mean = report.mean_error * 3.0  # rand: the mean it misses is no variance
        expected = (9 * added - mean[:4].square()) / elements
        torch.testing.assert_close(report.excess_variance[:4], expected, rtol=1e-12, atol=0)
        assert report.excess_variance[4] == 0
        assert report.clipped.tolist() == [1.0] * 4 + [0.0]
        assert report.variance_error_relative.tolist() == [math.inf] * 4 + [0.0]
        assert report.matched.tolist() == [False] * 4 + [True]


def test_vub_removes_more_in_total_than_the_offsets_add() -> None:
    mixture = gaussian_mixture("ortho-vub", elements=50, n_components=4, scale=0.01)
    report = moment_report(mixture, rows(1.0))
    expected = torch.full((4,), -(0.01**2) / 4 / 50, dtype=torch.float64)  # s^2 (K-1)/K - s^2
    torch.testing.assert_close(report.excess_variance[:4], expected, rtol=1e-9, atol=0)
    assert not report.clipped.any()


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_samples_have_the_moments_of_the_report(variant: str, eta: float) -> None:
    elements, count = 5, 200_000
    mixture = gaussian_mixture(
        variant, elements=elements, n_components=3, scale=0.9, n_steps=5, weights=[1.0, 2.0, 4.0], seed=1
    )
    coefficients = rows(eta)
    report = moment_report(mixture, coefficients)
    s = 2
    zeros = torch.zeros(count, elements, dtype=torch.float64)
    seeds = torch.arange(count) + 77
    drawn = gmm_step(
        zeros, zeros, coefficients, row=s, seeds=seeds, mixture=mixture.bind(coefficients)
    ).prev_sample
    mean, covariance = dense_moments(mixture, coefficients, s)
    standard_errors = 5
    error = (covariance.diagonal() / count).sqrt()
    assert bool(((drawn.mean(0) - mean).abs() < standard_errors * error).all())
    products = (drawn - mean)[:, :, None] * (drawn - mean)[:, None, :]
    error = products.std(0) / math.sqrt(count)
    assert bool(((products.mean(0) - covariance).abs() < standard_errors * error).all())
    # and the report's own figures, from the samples alone
    sigma = float(coefficients[s, Column.SIGMA])
    trace = products.diagonal(dim1=1, dim2=2).mean(1)
    excess_error = float(trace.std()) / math.sqrt(count)
    assert (
        abs(float(trace.mean()) - sigma**2 - float(report.excess_variance[s]))
        < standard_errors * excess_error
    )
    assert float(report.excess_variance[s]) > standard_errors * excess_error or eta > 0
    off_diagonal = products.mean(0)
    off_diagonal.fill_diagonal_(0)
    assert float(off_diagonal.norm()) == pytest.approx(
        float(report.off_diagonal[s]), abs=5 * float(error.norm())
    )


def test_gaussian_steps_are_matched_in_full() -> None:
    for mixture in (
        gaussian_mixture("ortho", elements=9, n_components=1, scale=4.0),
        gaussian_mixture("rand", elements=9, scale=0),
    ):
        for eta in (0.0, 1.0):
            report = moment_report(mixture, rows(eta))
            assert bool(report.matched.all())
            assert not report.off_diagonal.any()
            assert not report.clipped.any()
            assert report.verdict == "mean and variance of every element matched at all steps"


def test_the_verdict_says_where_there_is_no_mixture() -> None:
    """At eta = 0 a scale that follows the noise is 0; so it is where the rows switch every offset off."""
    follows = gaussian_mixture("exact", elements=12, n_components=3, rho=0.9)
    made = [moment_report(follows, follows.scaled(rows(0.0)))]
    off = rows(1.0)
    off[:, Column.OFFSET] = 0
    made.append(moment_report(gaussian_mixture("ortho", elements=12, n_components=3), off))
    assert {report.verdict for report in made} == {"no offset at any step: the Gaussian step"}


def test_verdicts() -> None:
    ortho = gaussian_mixture("ortho", elements=64, scale=0.01, n_steps=5)
    kept = moment_report(ortho, rows(1.0))
    assert bool(kept.matched.all())
    assert kept.verdict.startswith(
        "mean and variance of every element matched at all steps; correlations up to "
    )
    assert kept.verdict.endswith(" remain at steps 0-3")

    deterministic = moment_report(ortho, rows(0.0)).verdict
    assert deterministic == (
        "not moment matched at steps 0-3: sigma^2 too small for the offsets at steps 0-3, "
        f"excess variance up to {0.01**2 * 7 / 8 / 64:.2g} per element"
    )

    coefficients = rows(1.0)
    coefficients[[1, 3], Column.SIGMA] = 1e-4
    some = moment_report(ortho, coefficients)
    assert some.matched.tolist() == [True, False, True, False, True]
    assert some.verdict.startswith(
        "not moment matched at steps 1, 3: sigma^2 too small for the offsets at steps 1, 3"
    )

    rand = moment_report(gaussian_mixture("rand", elements=64, scale=0.01), rows(1.0)).verdict
    assert rand.startswith("not moment matched at steps 0-3: mean off by up to ")
    recentred = moment_report(gaussian_mixture("rand", elements=64, scale=0.01, recentre=True), rows(1.0))
    assert recentred.verdict.startswith("mean and variance of every element matched at all steps")

    vub = moment_report(gaussian_mixture("ortho-vub", elements=64, scale=0.01), rows(1.0)).verdict
    assert "variance of single elements off by up to " in vub
    assert "sigma^2 too small" not in vub


def test_print() -> None:
    report = moment_report(gaussian_mixture("ortho", elements=64, scale=2.0), rows(0.2, count=12))
    lines = str(report).splitlines()
    assert lines[0] == "ortho mixture, D = 64, scale 2 = 0.25 sqrt(D)"
    assert len(lines) == 2 + 12 + 1
    assert [int(line.split()[0]) for line in lines[2:-1]] == list(range(12))
    assert {len(line.split()) for line in lines[2:-1]} == {12}
    assert {len(line) for line in lines[1:-1]} == {len(lines[1])}
    assert lines[-1] == report.verdict


def test_reports_take_float32_rows_and_gradients() -> None:
    mixture = gaussian_mixture("rand", elements=9, n_steps=5)
    learned = dataclasses.replace(mixture, offsets=mixture.offsets.clone().requires_grad_())
    single = rows(0.5).float().requires_grad_()
    report = moment_report(learned, single)
    assert not report.excess_variance.requires_grad
    expected = moment_report(mixture, single.detach().double())
    for name in FLOAT_FIELDS:
        assert torch.equal(getattr(report, name), getattr(expected, name))


def test_memory_stays_far_below_a_covariance() -> None:
    """D = 196,608: the covariance would take 309 GB."""
    mixture = gaussian_mixture("ortho", elements=196_608, n_components=4, scale=10.0)
    report = moment_report(mixture, rows(0.0, count=2))
    # the offsets' covariance has K - 1 eigenvalues s^2/K; its diagonal is known
    diagonal = (mixture.weights @ mixture.offsets[0].square()).square().sum()
    expected = math.sqrt(3 * (100 / 4) ** 2 - float(diagonal))
    assert float(report.off_diagonal[0]) == pytest.approx(expected, rel=1e-9)


def test_a_report_stays_as_it_was_made() -> None:
    coefficients = rows(0.5)
    sigma = coefficients[:, Column.SIGMA].tolist()
    report = moment_report(gaussian_mixture("ortho", elements=9), coefficients)
    coefficients.zero_()
    assert report.sigma.tolist() == sigma


@pytest.mark.parametrize(
    ("coefficients", "error", "message"),
    [
        (torch.zeros(3, 16), ValueError, "expected 5 rows, one for each step of the mixture, got 3"),
        (torch.zeros(5, 12), ValueError, r"expected shape \[S, 16\]"),
        (torch.zeros(5, 16, dtype=torch.int64), TypeError, "got torch.int64"),
    ],
)
def test_bad_coefficients(coefficients: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"coefficients: .*{message}"):
        moment_report(gaussian_mixture("rand", elements=3, n_steps=5), coefficients)


def test_reports_are_of_mixtures() -> None:
    with pytest.raises(TypeError, match="mixture: expected a Mixture, got str"):
        moment_report("ortho", rows(1.0))  # type: ignore[arg-type]
