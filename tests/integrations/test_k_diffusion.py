"""`sample_gmm` against k-diffusion's equations and against DDIMSampler, whose samples are these times sqrt(a)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import DDIMSampler, Mixture, Stream, gaussian_mixture, noise_schedule, standard_normal
from gmmkernel.integrations.k_diffusion import sample_gmm

SHAPE = (3, 5)
SEEDS = torch.tensor([5, -1, 77])
SCHEDULE = noise_schedule("scaled_linear")
STEPS = 6


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """A bounded function of the sample and the noise level."""
    scale = (1 + sigma**2).sqrt().view(-1, 1, 1)
    return torch.tanh(1.5 * x / scale + 0.1 * scale.log())


def levels(steps: int = STEPS) -> tuple[DDIMSampler, Tensor]:
    sampler = DDIMSampler(SCHEDULE, steps, spacing="trailing", dtype=torch.float64)
    a = SCHEDULE.alphas_cumprod[sampler.timesteps]
    return sampler, torch.cat([((1 - a) / a).sqrt(), torch.zeros(1, dtype=torch.float64)])


def start(sigmas: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(SEEDS, SHAPE, dtype=dtype) * sigmas[0].to(dtype)


def ancestral(x: Tensor, sigmas: Tensor, eta: float) -> Tensor:
    """k-diffusion's ancestral Euler step, from its description, with the package's noise."""
    for i in range(len(sigmas) - 1):
        here, after = float(sigmas[i]), float(sigmas[i + 1])
        up = min(after, eta * (after**2 * (here**2 - after**2) / here**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        slope = (x - denoise(x, sigmas[i].expand(len(x)))) / here
        x = x + slope * (down - here)
        if after > 0:
            x = x + up * standard_normal(SEEDS, SHAPE, step=i, stream=Stream.TRANSITION, dtype=torch.float64)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_without_a_mixture_it_is_the_ancestral_euler_sampler(eta: float) -> None:
    _, sigmas = levels()
    ours = sample_gmm(denoise, start(sigmas), sigmas, disable=True, seeds=SEEDS, eta=eta, first_step=0)
    torch.testing.assert_close(ours, ancestral(start(sigmas), sigmas, eta), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("variant", ["ortho", "ortho-vub", "rand", "exact", "rand-exact"])
def test_a_mixture_means_what_it_means_for_ddim(variant: str, eta: float) -> None:
    plain, sigmas = levels()
    scale = {"rho": 0.9} if variant.endswith("exact") else {"scale": 0.4}
    mixture = gaussian_mixture(variant, elements=15, n_components=3, **scale, n_steps=STEPS)

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        """The same denoiser for samples of constant variance; it predicts the data."""
        a = SCHEDULE.alphas_cumprod[timestep]
        return denoise(x / a.sqrt().view(-1, 1, 1), ((1 - a) / a).sqrt())

    ddim = DDIMSampler(
        SCHEDULE,
        STEPS,
        eta=eta,
        mixture=mixture,
        spacing="trailing",
        prediction_type="sample",
        dtype=torch.float64,
    )
    begin = start(sigmas) * SCHEDULE.alphas_cumprod[plain.timesteps[0]].sqrt()
    expected = ddim.sample(model, SEEDS, SHAPE, initial=begin, progress=False).sample
    options: dict[str, Any] = {"disable": True, "seeds": SEEDS, "eta": eta, "first_step": 0}
    ours = sample_gmm(denoise, start(sigmas), sigmas, mixture=mixture, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    plain = sample_gmm(denoise, start(sigmas), sigmas, **options)
    assert torch.allclose(ours, plain, atol=1e-2) == (eta == 0 and "rho" in scale)  # no noise to shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mixture", [None, gaussian_mixture("rand", elements=15, n_components=3, scale=0.4)])
def test_a_schedule_in_parts_has_the_bits_of_the_whole(dtype: torch.dtype, mixture: Mixture | None) -> None:
    """Whether a step's noise goes with its level or is counted."""
    _, sigmas = levels()
    options: dict[str, Any] = {"disable": True, "seeds": SEEDS, "mixture": mixture}
    whole = sample_gmm(denoise, start(sigmas, dtype), sigmas, **options)
    for at in range(1, STEPS):
        half_way = sample_gmm(denoise, start(sigmas, dtype), sigmas[: at + 1], **options)
        assert_same_bits(sample_gmm(denoise, half_way, sigmas[at:], **options), whole)
        half_way = sample_gmm(denoise, start(sigmas, dtype), sigmas[: at + 1], first_step=7, **options)
        counted = sample_gmm(denoise, half_way, sigmas[at:], first_step=7 + at, **options)
        expected = sample_gmm(denoise, start(sigmas, dtype), sigmas, first_step=7, **options)
        assert_same_bits(counted, expected)
    assert not torch.equal(expected, whole)


def test_parts_of_a_schedule_draw_independent_noise() -> None:
    """The samples of standard normal data keep their variance: noise that came twice would add up."""
    seeds = torch.arange(20_000)
    sigmas = torch.tensor([14.6, 9.0, 6.0, 4.0, 2.5, 1.6, 1.0, 0.6, 0.4, 0.1, 0.0])

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)

    def run(x: Tensor, part: Tensor) -> Tensor:
        return sample_gmm(exact, x, part, seeds=seeds, disable=True)

    x = standard_normal(seeds, (1,)) * sigmas[0]
    parts, whole = run(run(x, sigmas[:6]), sigmas[5:]), run(x, sigmas)
    assert float(parts.std() / whole.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_any_batch(dtype: torch.dtype) -> None:
    _, sigmas = levels()
    x = start(sigmas, dtype)
    whole = sample_gmm(denoise, x, sigmas.to(dtype), disable=True, seeds=SEEDS)
    assert whole.dtype == dtype
    assert bool(whole.isfinite().all())
    parts = [
        sample_gmm(denoise, x[i : i + 1], sigmas.to(dtype), disable=True, seeds=SEEDS[i : i + 1])
        for i in range(3)
    ]
    assert_same_bits(torch.cat(parts), whole)


def test_the_model_and_the_callback_see_what_k_diffusion_shows() -> None:
    _, sigmas = levels()
    seen: list[dict[str, Any]] = []
    asked: list[tuple[Tensor, float]] = []

    def model(x: Tensor, sigma: Tensor, *, strength: float) -> Tensor:
        asked.append((sigma, strength))
        return denoise(x, sigma)

    sample_gmm(model, start(sigmas), sigmas, {"strength": 2.0}, seen.append, True, seeds=SEEDS)
    assert [state["i"] for state in seen] == list(range(STEPS))
    assert [float(state["sigma"]) for state in seen] == sigmas[:-1].tolist()
    assert all(
        torch.equal(state["denoised"], denoise(state["x"], state["sigma"].expand(3))) for state in seen
    )
    assert [strength for _, strength in asked] == [2.0] * STEPS
    assert all(sigma.shape == (3,) for sigma, _ in asked)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigmas": [1.0, 0.0]}, TypeError, "sigmas: expected a floating-point tensor, got list"),
        (
            {"sigmas": torch.tensor([1, 0])},
            TypeError,
            "sigmas: expected a floating-point tensor, got torch.int64",
        ),
        ({"sigmas": torch.tensor([1.0])}, ValueError, "sigmas: expected shape [S + 1] with S >= 1, got [1]"),
        (
            {"sigmas": torch.tensor([1.0, 2.0, 0.0])},
            ValueError,
            "sigmas: expected strictly descending values, got 2.0 at index 1 after 1.0",
        ),
        (
            {"sigmas": torch.tensor([1.0, -1.0])},
            ValueError,
            "sigmas: expected finite numbers >= 0, got -1.0 at index 1",
        ),
        ({"eta": 1.5}, ValueError, "eta: expected a number from 0 to 1, got 1.5"),
        ({"eta": -0.5}, ValueError, "eta: expected a number from 0 to 1, got -0.5"),
        ({"seeds": torch.arange(2)}, ValueError, "seeds: expected one for each of 3 samples, got 2"),
        ({"mixture": 3}, TypeError, "mixture: expected a Mixture or None, got int"),
        (
            {"mixture": gaussian_mixture("ortho", elements=15, n_components=3, n_steps=2)},
            ValueError,
            "mixture: expected one made for 6 steps or shared by all, got one made for 2",
        ),
        (
            {"mixture": gaussian_mixture("ortho", elements=16, n_components=3)},
            ValueError,
            "mixture: made for D = 16",
        ),
        ({"first_step": -1}, ValueError, "first_step: expected an integer from 0 to 4294967290, got -1"),
        ({"first_step": 1.0}, TypeError, "first_step: expected an integer from 0 to 4294967290, got 1.0"),
        (
            {"sigmas": torch.tensor([1.0 + 1e-12, 1.0, 0.0], dtype=torch.float64)},
            ValueError,
            "sigmas: expected levels that float32 tells apart, or first_step, got [1.000000000001, 1.0, 0.0]",
        ),
        ({"x": torch.zeros(3, 3, 5, dtype=torch.int64)}, TypeError, "sample: expected"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    _, sigmas = levels()
    given = {"x": start(sigmas), "sigmas": sigmas, "seeds": SEEDS, "disable": True} | options
    with pytest.raises(error, match=re.escape(message)):
        sample_gmm(denoise, given.pop("x"), given.pop("sigmas"), **given)
