"""Noise schedules and timestep spacings, against diffusers and against the equations in high precision."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from gmmkernel.schedules import SPACINGS, NoiseSchedule, noise_schedule, timesteps

NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def betas_in_high_precision(name: str, total: int, start: float, end: float) -> list[mpmath.mpf]:
    if name == "squaredcos_cap_v2":

        def kept(u: mpmath.mpf) -> mpmath.mpf:
            return mpmath.cos((u + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2) ** 2

        steps = [mpmath.mpf(i) / total for i in range(total + 1)]
        return [min(1 - kept(steps[i + 1]) / kept(steps[i]), mpmath.mpf("0.999")) for i in range(total)]
    start, end = mpmath.mpf(start), mpmath.mpf(end)
    if name == "scaled_linear":
        start, end = mpmath.sqrt(start), mpmath.sqrt(end)
    values = [start + (end - start) * i / max(total - 1, 1) for i in range(total)]
    return [value**2 for value in values] if name == "scaled_linear" else values


@pytest.mark.parametrize("total", [1, 2, 63, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_alphas_cumprod_are_the_product_of_one_minus_beta(name: str, total: int) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012} if name != "squaredcos_cap_v2" else {}
    schedule = noise_schedule(name, num_train_timesteps=total, **betas)
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.num_train_timesteps == total
    with mpmath.workdps(40):
        product = mpmath.mpf(1)
        for beta, got in zip(
            betas_in_high_precision(name, total, 0.00085, 0.012),
            schedule.alphas_cumprod.tolist(),
            strict=True,
        ):
            product *= 1 - beta
            assert abs(got / product - 1) < 1e-12


@pytest.mark.parametrize("as_tensor", [False, True])
def test_trained_betas_keep_their_precision(as_tensor: bool) -> None:
    betas = [0.1, 0.2, 1 / 3]
    given = torch.tensor(betas, dtype=torch.float64) if as_tensor else betas
    got = noise_schedule(num_train_timesteps=3, trained_betas=given).alphas_cumprod
    assert got.tolist() == [1 - 0.1, (1 - 0.1) * (1 - 0.2), (1 - 0.1) * (1 - 0.2) * (1 - 1 / 3)]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "trained"])
def test_alphas_cumprod_agree_with_diffusers(name: str, rescale: bool) -> None:
    trained = np.linspace(0.001, 0.03, 1000) ** 1.1 if name == "trained" else None
    options = {"rescale_betas_zero_snr": rescale, "trained_betas": trained}
    if "linear" in name:
        options |= {"beta_start": 0.0002, "beta_end": 0.015}
    schedule_name = "linear" if name == "trained" else name
    theirs = DDIMScheduler(beta_schedule=schedule_name, **options).alphas_cumprod
    ours = noise_schedule(schedule_name, **options).alphas_cumprod
    # theirs is a float32 product of 1000 factors
    torch.testing.assert_close(ours.float(), theirs, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rescaling_leaves_nothing_at_the_end_and_keeps_the_start(name: str) -> None:
    plain = noise_schedule(name).alphas_cumprod
    rescaled = noise_schedule(name, rescale_betas_zero_snr=True).alphas_cumprod
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], plain[0], rtol=1e-15, atol=0)
    roots, plain_roots = rescaled.sqrt(), plain.sqrt()
    slope = (roots[:-1] - roots[1:]) / (plain_roots[:-1] - plain_roots[1:])
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-9, atol=0)


def test_a_given_schedule_is_kept_as_it_is() -> None:
    alphas = torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    assert NoiseSchedule(alphas_cumprod=alphas).alphas_cumprod is alphas


@pytest.mark.parametrize(
    ("alphas", "error", "message"),
    [
        ([0.9, 0.5], TypeError, "expected a torch.float64 tensor, got list"),
        (torch.tensor([0.9, 0.5]), TypeError, "got torch.float32"),
        (torch.empty(0, dtype=torch.float64), ValueError, r"T >= 1, got \[0\]"),
        (torch.ones(2, 2, dtype=torch.float64), ValueError, r"got \[2, 2\]"),
        (torch.tensor([0.9, math.nan], dtype=torch.float64), ValueError, "got nan at timestep 1"),
        (torch.tensor([1.1, 0.9], dtype=torch.float64), ValueError, r"in \[0, 1\], got 1.1 at timestep 0"),
        (torch.tensor([0.9, 0.5, -0.1], dtype=torch.float64), ValueError, "got -0.1 at timestep 2"),
        (torch.tensor([0.5, 0.4, 0.9], dtype=torch.float64), ValueError, "got 0.9 at timestep 2 after 0.4"),
        (torch.tensor([0.5, 0.4, 0.4 + 1e-9], dtype=torch.float64), ValueError, "at timestep 2 after 0.4"),
        (torch.ones(2, dtype=torch.float64, device="meta"), ValueError, "on the CPU, got meta"),
    ],
)
def test_bad_alphas_cumprod(alphas: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"alphas_cumprod: .*{message}"):
        NoiseSchedule(alphas_cumprod=alphas)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "cosine"}, ValueError, "name: expected one of 'linear', 'scaled_linear', .* got 'cosine'"),
        ({"num_train_timesteps": 0}, ValueError, "num_train_timesteps: expected an integer >= 1, got 0"),
        ({"num_train_timesteps": True}, TypeError, "num_train_timesteps"),
        ({"num_train_timesteps": 10.0}, TypeError, "num_train_timesteps"),
        ({"beta_start": 0.0}, ValueError, "beta_start: expected a finite number > 0, got 0.0"),
        ({"beta_end": math.nan}, ValueError, "beta_end"),
        ({"beta_end": 1.5}, ValueError, r"beta_end: expected a number in \(0, 1\], got 1.5"),
        ({"beta_end": "0.02"}, TypeError, "beta_end"),
        (
            {"beta_start": 0.02, "beta_end": 1e-4},
            ValueError,
            "beta_start: expected at most beta_end = 0.0001, got 0.02",
        ),
        (
            {"name": "scaled_linear", "beta_start": 0.05},
            ValueError,
            "beta_start: expected at most beta_end = 0.02",
        ),
        (
            {"name": "squaredcos_cap_v2", "beta_start": 0.5},
            ValueError,
            "beta_start: expected 0.0001, its default, with name='squaredcos_cap_v2', which has no use for it, got 0.5",
        ),
        (
            {"trained_betas": [0.1, 0.2], "num_train_timesteps": 2, "beta_end": 0.01},
            ValueError,
            "beta_end: expected 0.02, its default, with trained_betas",
        ),
        (
            {"trained_betas": [0.1, 0.2]},
            ValueError,
            r"trained_betas: expected shape \[1000\] of num_train_timesteps, got \[2\]",
        ),
        ({"trained_betas": [0.1, 0.0], "num_train_timesteps": 2}, ValueError, "got 0.0 at index 1"),
        ({"trained_betas": [1.1, 0.1], "num_train_timesteps": 2}, ValueError, "got 1.1.* at index 0"),
        ({"trained_betas": [0.1, math.nan], "num_train_timesteps": 2}, ValueError, "got nan at index 1"),
        (
            {"trained_betas": ["a", "b"], "num_train_timesteps": 2},
            TypeError,
            r"trained_betas: .* got \['a', 'b'\]",
        ),
        (
            {"trained_betas": [True, True], "num_train_timesteps": 2},
            TypeError,
            "trained_betas: .* got torch.bool",
        ),
        ({"rescale_betas_zero_snr": 1}, TypeError, "rescale_betas_zero_snr: expected True or False, got 1"),
        (
            {"rescale_betas_zero_snr": True, "num_train_timesteps": 1},
            ValueError,
            "expected a schedule that decreases",
        ),
    ],
)
def test_bad_noise_schedule(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        noise_schedule(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [1, 2, 10, 63, 1000])
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("leading", 7), ("trailing", 0), ("linspace", 0)]
)
def test_timesteps_are_those_of_diffusers(spacing: str, offset: int, total: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=total, timestep_spacing=spacing, steps_offset=offset)
    compared = 0
    for count in range(2, total + 1):  # one step starts at the top, where theirs is at 0
        scheduler.set_timesteps(count)
        theirs = scheduler.timesteps
        if theirs[0] >= total:
            with pytest.raises(ValueError, match="steps_offset: expected an offset that keeps"):
                timesteps(count, num_train_timesteps=total, spacing=spacing, steps_offset=offset)
            continue
        # by rounding, diffusers' trailing timesteps can end with one too many, which is -1
        assert len(theirs) == count or theirs[count:].tolist() == [-1]
        ours = timesteps(count, num_train_timesteps=total, spacing=spacing, steps_offset=offset)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, theirs[:count])
        assert bool((ours[1:] < ours[:-1]).all())
        compared += 1
    assert compared >= (total > 10) * (total // 2 - 1)


@pytest.mark.parametrize("total", [1, 10, 100, 1000, 4000])
def test_quadratic_timesteps_are_those_of_the_ddim_code(total: int) -> None:
    most = 1 + math.floor(math.sqrt(0.8 * total))
    for count in range(2, most + 1):  # one step starts at the top, where theirs is at 0
        expected = [int(s) for s in np.linspace(0, np.sqrt(total * 0.8), count) ** 2]
        ours = timesteps(count, num_train_timesteps=total, spacing="quadratic")
        assert ours.tolist() == expected[::-1]
        assert len(set(expected)) == count
    if most > 1:
        offset = timesteps(min(5, most), num_train_timesteps=total, spacing="quadratic", steps_offset=1)
        plain = timesteps(min(5, most), num_train_timesteps=total, spacing="quadratic")
        assert torch.equal(offset, plain + 1)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_step_starts_at_the_noise(spacing: str) -> None:
    """Where the formulas of three spacings say 0, from where a step returns its noise."""
    assert timesteps(1, spacing=spacing).tolist() == [999]
    assert timesteps(1, num_train_timesteps=63, spacing=spacing).tolist() == [62]
    if spacing in ("leading", "quadratic"):
        assert timesteps(1, spacing=spacing, steps_offset=1).tolist() == [999]
        with pytest.raises(ValueError, match="steps_offset: expected an offset that keeps"):
            timesteps(1, num_train_timesteps=63, spacing=spacing, steps_offset=63)


def test_quadratic_timesteps_that_repeat_are_refused() -> None:
    assert len(set((np.linspace(0, np.sqrt(800), 30) ** 2).astype(int))) == 29
    with pytest.raises(ValueError, match=r"num_inference_steps: expected at most 29 .*, got 30"):
        timesteps(30, spacing="quadratic")


@pytest.mark.parametrize(
    ("count", "options", "error", "message"),
    [
        (0, {}, ValueError, "num_inference_steps: expected an integer from 1 to 1000, got 0"),
        (1001, {}, ValueError, "num_inference_steps: expected an integer from 1 to 1000, got 1001"),
        (10.0, {}, TypeError, "num_inference_steps"),
        (True, {}, TypeError, "num_inference_steps"),
        (1, {"num_train_timesteps": 0}, ValueError, "num_train_timesteps"),
        (
            10,
            {"spacing": "karras"},
            ValueError,
            "spacing: expected one of 'leading', .*'quadratic', got 'karras'",
        ),
        (10, {"steps_offset": -1}, ValueError, "steps_offset: expected an integer >= 0, got -1"),
        (
            10,
            {"steps_offset": 1, "spacing": "trailing"},
            ValueError,
            "steps_offset: expected 0 with spacing='trailing'",
        ),
        (
            10,
            {"steps_offset": 1, "spacing": "linspace"},
            ValueError,
            "steps_offset: expected 0 with spacing='linspace'",
        ),
        (1000, {"steps_offset": 1}, ValueError, r"0 \.\. 999, got 1, which makes the first one 1000"),
    ],
)
def test_bad_timesteps(count: int, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        timesteps(count, **options)  # type: ignore[arg-type]
