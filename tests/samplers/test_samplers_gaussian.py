"""Gaussian data, where the exact denoiser and the exact answers are known: no network, no other sampler.

For x0 ~ N(0, v) the best prediction of x0 from x_t is sqrt(a) v x_t / (a v + 1 - a). With sqrt(a) = cos(phi) and equal
steps of phi, every run is a product of the same few factors.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from denoisers import per_sample
from torch import Tensor

from gmmkernel import DDIMSampler, NoiseSchedule, gaussian_mixture, noise_schedule, standard_normal

TRAIN_STEPS = 512
LAST_ANGLE = 1.5
SHAPE = (4, 4)
ELEMENTS = 16


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    """The angle grows in equal steps from 0, the data, to 1.5: a from 1 to 0.005."""
    angles = [LAST_ANGLE * (t + 1) / TRAIN_STEPS for t in range(TRAIN_STEPS)]
    return NoiseSchedule(torch.tensor([math.cos(angle) ** 2 for angle in angles], dtype=torch.float64))


class ExactDenoiser:
    """Predict the noise in a sample of N(0, v) data."""

    def __init__(self, schedule: NoiseSchedule, variance: float) -> None:
        self.alphas = schedule.alphas_cumprod
        self.variance = variance

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        a = per_sample(self.alphas[timestep], x)
        return x * ((1 - a).sqrt() / (a * self.variance + 1 - a)).to(x.dtype)


@pytest.mark.parametrize("steps", [1, 2, 8, 64, 512])
def test_ddim_of_unit_variance_is_a_power_of_a_cosine(schedule: NoiseSchedule, steps: int) -> None:
    sampler = DDIMSampler(schedule, steps, spacing="trailing", dtype=torch.float64)
    seeds = torch.arange(3)
    result = sampler.sample(ExactDenoiser(schedule, 1.0), seeds, SHAPE, progress=False).sample
    noise = standard_normal(seeds, SHAPE, dtype=torch.float64)
    torch.testing.assert_close(result, noise * math.cos(LAST_ANGLE / steps) ** steps, rtol=1e-11, atol=0)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_ddim_converges_with_order_one(schedule: NoiseSchedule, variance: float) -> None:
    """To x_T sqrt(v / (a_T v + 1 - a_T)), the solution of the probability-flow ODE."""
    a_last = math.cos(LAST_ANGLE) ** 2
    exact = math.sqrt(variance / (a_last * variance + 1 - a_last))
    noise = standard_normal(torch.tensor([9]), (1,), dtype=torch.float64)
    errors = []
    for steps in (64, 128, 256, 512):
        sampler = DDIMSampler(schedule, steps, spacing="trailing", dtype=torch.float64)
        found = sampler.sample(
            ExactDenoiser(schedule, variance), torch.tensor([9]), (1,), progress=False
        ).sample
        errors.append(abs(float(found / noise) - exact))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.95 < order < 1.05 for order in orders), (orders, errors)
    assert errors[-1] < 0.01


def second_moment(
    schedule: NoiseSchedule, timesteps: Tensor, variance: float, eta: float, scale: float, removed: int
) -> float:
    """Follow E x^2, averaged over the elements, through a run that starts from N(0, 1).

    Offsets that are orthogonal, with K = 4 equal weights, add scale^2 (K - 1)/(K D) to it at every step but the last;
    `removed` elements lose what the upper bound scale^2 / K takes from their noise.
    """
    moment = 1.0
    visited = timesteps.tolist()
    for t, s in zip(visited, [*visited[1:], None], strict=True):
        a_t = float(schedule.alphas_cumprod[t])
        a_s = 1.0 if s is None else float(schedule.alphas_cumprod[s])
        sigma2 = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        to_x0 = math.sqrt(a_t) * variance / (a_t * variance + 1 - a_t)
        to_eps = (1 - math.sqrt(a_t) * to_x0) / math.sqrt(1 - a_t)
        factor = math.sqrt(a_s) * to_x0 + math.sqrt(1 - a_s - sigma2) * to_eps
        moment = factor**2 * moment + sigma2
        if s is not None:
            moment += scale**2 * 3 / 4 / ELEMENTS - removed / ELEMENTS * min(scale**2 / 4, sigma2)
    return moment


@pytest.mark.parametrize(
    ("variant", "eta", "scale"),
    [
        (None, 0.0, 0.0),
        (None, 0.5, 0.0),
        (None, 1.0, 0.0),
        ("ortho", 0.0, 0.5),
        ("ortho-vub", 0.0, 0.5),
        ("ortho-vub", 1.0, 0.6),
    ],
)
def test_variance_of_the_samples(variant: str | None, eta: float, scale: float) -> None:
    schedule, steps, variance, count = noise_schedule(), 40, 0.25, 4000
    mixture = None
    if variant is not None:
        mixture = gaussian_mixture(variant, elements=ELEMENTS, n_components=4, scale=scale, n_steps=steps)
    sampler = DDIMSampler(schedule, steps, eta=eta, mixture=mixture)
    denoiser = ExactDenoiser(schedule, variance)
    samples = sampler.sample(denoiser, torch.arange(count), SHAPE, progress=False).sample.double()
    removed = 4 if variant == "ortho-vub" and eta > 0 else 0
    expected = second_moment(schedule, sampler.timesteps, variance, eta, scale, removed)
    error = expected * math.sqrt(2 / (count * ELEMENTS))
    assert abs(float(samples.square().mean()) - expected) < 4 * error
    assert abs(float(samples.mean())) < 4 * math.sqrt(expected / (count * ELEMENTS))
    if scale:  # the test could not tell a mixture that is not there
        without = second_moment(schedule, sampler.timesteps, variance, eta, 0.0, 0)
        assert abs(expected - without) > 8 * error


def test_ddpm_keeps_the_variance_of_the_data(schedule: NoiseSchedule) -> None:
    """As the steps get finer: what is lost falls as 1 / S, 1.4% in 512 equal steps."""
    variance, count = 0.25, 4000
    kept = []
    for steps in (128, 256, 512):
        sampler = DDIMSampler(schedule, steps, eta=1.0, spacing="trailing")
        kept.append(second_moment(schedule, sampler.timesteps, variance, 1.0, 0.0, 0) / variance)
    samples = sampler.sample(
        ExactDenoiser(schedule, variance), torch.arange(count), SHAPE, progress=False
    ).sample
    error = math.sqrt(2 / (count * ELEMENTS))
    assert abs(float(samples.double().square().mean()) / variance - kept[-1]) < 4 * error
    lost = [1 - share for share in kept]
    assert 1.8 < lost[0] / lost[1] < 2.1
    assert 1.8 < lost[1] / lost[2] < 2.1
    assert 0.014 < lost[2] < 0.015
