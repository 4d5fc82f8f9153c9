"""What the study of quality rests on, against independent truth: denoisers, distances, the variance that steps lose."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from gmmkernel import Column, DDIMSampler, gmm_step, moment_report, noise_schedule, standard_normal
from gmmkernel.digits import frechet_distance
from studies.quality.choices import Choice, Losses, control_of, lost_variance, make_sampler
from studies.quality.closed_form import VARIANCE, ClosedForm
from studies.quality.distances import PROJECTIONS, Reference
from studies.quality.settings import Cell

ALPHAS = noise_schedule("linear").alphas_cumprod


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed-form data with few points to compare with."""
    monkeypatch.setattr("studies.quality.closed_form.REFERENCE", 5000)


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_covariances(task: ClosedForm) -> Tensor:
    """C_k [n, D, D]."""
    along = task.directions * task.variances
    return along @ task.directions.mT + task.floor * torch.eye(task.elements, dtype=torch.float64)


@pytest.mark.parametrize("elements", [1, 2, 12])
@pytest.mark.parametrize("alpha", [0.001, 0.4, 0.999])
def test_denoiser_of_gaussians_is_the_conditional_mean(elements: int, alpha: float) -> None:
    task = ClosedForm("gaussians", elements)
    cov = dense_covariances(task)
    noisy = alpha * cov + (1 - alpha) * torch.eye(elements, dtype=torch.float64)
    sample = normal(20, elements)
    of_component = MultivariateNormal(math.sqrt(alpha) * task.means, noisy)
    shares = (of_component.log_prob(sample[:, None]) + task.weights.log()).softmax(1)
    gains = math.sqrt(alpha) * cov @ torch.linalg.inv(noisy)
    each = task.means + torch.einsum("kde,nke->nkd", gains, sample[:, None] - math.sqrt(alpha) * task.means)
    torch.testing.assert_close(
        task.denoise(sample, alpha), (shares[:, :, None] * each).sum(1), rtol=1e-9, atol=1e-9
    )


def test_denoiser_of_points_is_their_mean_by_likelihood() -> None:
    task, sample, alpha = ClosedForm("points", 5), normal(20, 5), 0.3
    squares = (sample[:, None] - math.sqrt(alpha) * task.means).square().sum(2)
    shares = (task.weights.log() - squares / (2 * (1 - alpha))).softmax(1)
    torch.testing.assert_close(task.denoise(sample, alpha), shares @ task.means)
    timestep = torch.full((20,), 300)
    a = float(ALPHAS[300])
    noise = (sample - math.sqrt(a) * task.denoise(sample, a)) / math.sqrt(1 - a)
    torch.testing.assert_close(task.predict(sample.float(), timestep), noise.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gaussians", "points"])
def test_data_has_the_moments_and_density_that_it_says(kind: str) -> None:
    task = ClosedForm(kind, 6)
    drawn, cov = task.draw(100_000, 9), task.covariance()
    assert float(cov.trace()) == pytest.approx(6 * VARIANCE)
    assert float(drawn.mean(0).abs().max()) < 5 * math.sqrt(float(cov.diagonal().max()) / len(drawn))
    torch.testing.assert_close(torch.cov(drawn.T), cov, rtol=0, atol=0.006)
    assert torch.equal(task.draw(10, 3), task.draw(10, 3))
    if kind == "gaussians":
        truth = MixtureSameFamily(
            Categorical(task.weights), MultivariateNormal(task.means, dense_covariances(task))
        )
        logits, _ = task.posterior(drawn[:50], 1.0)
        expected = truth.log_prob(drawn[:50])
        difference = logits.logsumexp(1) - expected
        torch.testing.assert_close(difference, difference[:1].expand(50), rtol=1e-9, atol=1e-9)
    else:
        assert float(torch.cdist(drawn[:100], task.means).min(1).values.max()) < 1e-7


def test_frechet_is_that_of_the_package() -> None:
    data, samples = normal(400, 7, seed=1) @ normal(7, 7, seed=2), 0.5 + normal(300, 7)
    moments = [moment for points in (samples, data) for moment in (points.mean(0), torch.cov(points.T))]
    assert Reference(data).frechet(samples) == pytest.approx(frechet_distance(*moments) / 7, rel=1e-9)
    exact = Reference(data, torch.zeros(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64))
    truth = (torch.zeros(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64))
    assert exact.frechet(samples) == pytest.approx(frechet_distance(*moments[:2], *truth) / 7, rel=1e-9)


def test_sliced_wasserstein_of_what_is_moved_or_stretched() -> None:
    data = normal(1000, 5)
    reference = Reference(data)
    assert reference.sliced_wasserstein(data.flip(0)) == 0
    assert reference.sliced_wasserstein(data[::2]) < 0.2
    shift = torch.tensor([3.0, 0.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    # A shift moves every projection by shift . direction, whose mean square is |shift|^2 / D.
    expected = float(shift.norm()) / math.sqrt(5)
    assert reference.sliced_wasserstein(data + shift) == pytest.approx(
        expected, rel=4 / math.sqrt(PROJECTIONS)
    )
    longer = reference.sliced_wasserstein(torch.cat([data, data]))
    assert longer < 0.05
    root = float((data @ reference._directions).square().mean().sqrt())
    assert reference.sliced_wasserstein(2 * data) == pytest.approx(root, rel=1e-9)


def test_mmd_is_unbiased_and_sees_what_moments_do_not() -> None:
    data = normal(1500, 2, seed=1)
    reference = Reference(data)
    equal = [reference.maximum_mean_discrepancy(normal(500, 2, seed=seed)) for seed in range(10, 30)]
    error = torch.tensor(equal).std() / math.sqrt(len(equal))
    assert abs(sum(equal) / len(equal)) < 4 * float(error) + 1.0  # and what the reference's own points have
    signs = normal(500, 2, seed=5).sign()
    assert reference.maximum_mean_discrepancy(signs) > 20
    # By its definition, with the width from the data.
    few, width = normal(30, 2, seed=8), reference._width
    kernel = [
        [math.exp(-float((a - b).square().sum()) / width) for b in points]
        for points in (few, data)
        for a in few
    ]
    own = sum(sum(row) for row in kernel[:30]) - 30
    cross = sum(sum(row) for row in kernel[30:]) / (30 * 1500)
    among = torch.exp(torch.cdist(data, data).square() / -width)
    theirs = (float(among.sum()) - 1500) / (1500 * 1499)
    assert reference.maximum_mean_discrepancy(few) == pytest.approx(
        1000 * (own / (30 * 29) + theirs - 2 * cross), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["gaussians", "points"])
def test_modes_that_are_missing_count_with_their_share(kind: str) -> None:
    task = ClosedForm(kind, 64)
    drawn = task.draw(5000, 2)  # the points that samples are compared with
    assert task.modes(drawn) < 1e-9
    nearest = (
        torch.cdist(drawn, task.means).argmin(1)
        if kind == "points"
        else task.posterior(drawn, 1.0)[0].argmax(1)
    )
    share = float((nearest == 3).double().mean())
    assert task.modes(drawn[nearest != 3]) == pytest.approx(share, rel=1e-6)
    weight = float(task.weights[3])
    assert share == pytest.approx(weight, abs=5 * math.sqrt(weight / len(drawn)))


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_a_step_loses_the_variance_that_its_loss_says(eta: float) -> None:
    """From the true law of x_t, what one step lacks of the true variance of x_s."""
    task, count = ClosedForm("gaussians", 8), 40_000
    sampler = DDIMSampler(noise_schedule("linear"), 5, eta=eta, spacing="trailing")
    lost = lost_variance("loss", sampler, Losses(task, 20_000))
    assert lost[-1] == 0
    for row in (1, 2, 3):
        a_t, a_s = (float(ALPHAS[sampler.timesteps[at]]) for at in (row, row + 1))
        seeds = torch.arange(count)
        noise = standard_normal(seeds, (8,), step=99)
        sample = (math.sqrt(a_t) * task.draw(count, 4) + math.sqrt(1 - a_t) * noise).float()
        output = task.predict(sample, sampler.timesteps[row].expand(count))
        stepped = gmm_step(sample, output, sampler.coefficients, row=row, seeds=seeds).prev_sample.double()
        truth = a_s * VARIANCE + 1 - a_s
        assert float(stepped.var(0).mean()) + float(lost[row]) == pytest.approx(truth, rel=0.005)
    assert float(lost[3]) > 0.02 * truth


def test_rule_by_variance_is_that_of_gaussian_data() -> None:
    task = ClosedForm("points", 3)
    losses = Losses(task, 100)
    sampler = DDIMSampler(noise_schedule("linear"), 6, spacing="trailing")
    lost = lost_variance("variance", sampler, losses)
    angles = [math.acos(math.sqrt(float(ALPHAS[timestep]))) for timestep in sampler.timesteps]
    v = losses.variance()
    for row in range(5):
        a = float(ALPHAS[sampler.timesteps[row]])
        expected = v * math.sin(angles[row] - angles[row + 1]) ** 2 / (a * v + 1 - a)
        assert float(lost[row]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["RAND", "ORTHO", "VUB*"])
@pytest.mark.parametrize("rule", ["variance", "loss", 0.1])
def test_mixtures_controls_and_isotropic_noise_add_the_same(kind: str, rule: float | str) -> None:
    task = ClosedForm("gaussians", 64)
    losses = Losses(task, 200)
    plain = DDIMSampler(noise_schedule("linear"), 6, spacing="trailing")
    if isinstance(rule, str):
        expected = lost_variance(rule, plain, losses)
    else:
        expected = torch.full((6,), rule**2 * (1.0 if kind == "RAND" else 7 / 8), dtype=torch.float64)
        expected[-1] = 0
    control = make_sampler(task, Cell(task.name, 6, 0.0), control_of(Choice(kind, rule)), 3, losses)
    # The offsets of RAND have a mean that is not quite 0, which adds no variance.
    control_variance = control.coefficients[:, Column.SIGMA].double().square()
    torch.testing.assert_close(control_variance, expected, rtol=5e-3 if kind == "RAND" else 1e-5, atol=1e-12)
    mixed = make_sampler(task, Cell(task.name, 6, 0.0), Choice(kind, rule), 3, losses)
    assert mixed.tables is not None
    assert mixed.tables.offsets.shape == (1 if kind == "VUB*" else 6, 8, 64)
    added = (mixed.tables.offsets * mixed.coefficients[:, Column.OFFSET, None, None]).double()
    torch.testing.assert_close(added.square().mean(1).mean(1), expected, rtol=1e-5, atol=1e-12)
    isotropic = make_sampler(task, Cell(task.name, 6, 0.0), Choice("isotropic noise", rule), 3, losses)
    level = expected if isinstance(rule, str) else (expected > 0).double() * rule**2
    torch.testing.assert_close(
        isotropic.coefficients[:, Column.SIGMA].double().square(), level, rtol=1e-5, atol=1e-12
    )


def test_exact_mixtures_keep_the_moments_of_each_step() -> None:
    task = ClosedForm("gaussians", 64)
    sampler = make_sampler(task, Cell(task.name, 6, 1.0), Choice("EXACT", 0.8), 3, Losses(task, 20))
    assert sampler.tables is not None
    assert sampler.tables.basis is not None
    plain = make_sampler(task, Cell(task.name, 6, 1.0), Choice("DDIM"), 3, Losses(task, 20))
    assert torch.equal(sampler.coefficients[:, Column.SIGMA], plain.coefficients[:, Column.SIGMA])
    assert float(sampler.coefficients[:-1, Column.OFFSET].min()) > 0


def test_control_has_the_variance_of_the_report() -> None:
    task = ClosedForm("gaussians", 64)
    from studies.quality.choices import _mixture

    plain = DDIMSampler(noise_schedule("linear"), 6, eta=0.2, spacing="trailing")
    mixture, rows = _mixture(task, plain, Choice("VUB", 0.2), 3, Losses(task, 20))
    report = moment_report(mixture, rows)
    control = make_sampler(task, Cell(task.name, 6, 0.2), control_of(Choice("VUB", 0.2)), 3, Losses(task, 20))
    expected = (report.sigma.square() + report.excess_variance).clamp_min(0)
    torch.testing.assert_close(
        control.coefficients[:, Column.SIGMA].double().square(), expected, rtol=1e-5, atol=1e-12
    )
    assert float(report.excess_variance.abs().max()) > 1e-3
