"""Rows of flows that draw noise: the formulas in float64, what they keep of a law, windows, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import (
    Column,
    flow_coefficients,
    flow_sde_coefficients,
    flow_times,
    gmm_step,
    standard_normal,
    window_rows,
)
from gmmkernel.schedules import FLOW_DYNAMICS

SDES = ("flow-sde", "dance-sde")
SHARES = ("cps", "ddim")
TIMES = [
    *(flow_times(steps, shift=shift) for steps in (1, 2, 7, 50) for shift in (1.0, 3.0)),
    torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64),
]
X, V, Z = 0.7, -1.3, 0.4


def step(dynamics: str, a: float, t: float, s: float, held: float) -> tuple[float, float, float]:
    """Return the next sample from x, v and z, its standard deviation, and what projects call std_dev_t."""
    if dynamics == "ode":
        return X + (s - t) * V, 0.0, 0.0
    if dynamics in SDES:
        g = a if dynamics == "dance-sde" else a * math.sqrt(t / (1 - (held if t == 1 else t)))
        dt, score = s - t, -(X + (1 - t) * V) / t  # of the marginal at t
        mean = X + (V - g**2 / 2 * score) * dt
        std = g * math.sqrt(-dt)
        return mean + std * Z, std, g
    if dynamics == "cps":
        rho = s * math.sin(a * math.pi / 2)
    else:
        rho = a * s * math.sqrt(max(0.0, 1 - (s * (1 - t) / (t * (1 - s))) ** 2))
    mean = (1 - s) * (X - t * V) + math.sqrt(s**2 - rho**2) * (X + (1 - t) * V)
    return mean + rho * Z, rho, rho


def applied(row: Tensor, x: float = X) -> float:
    """Return what a row makes of x, v and z, as the docstring of `Column` reads."""
    c = {column: float(row[column]) for column in Column}
    x0 = c[Column.X0_SAMPLE] * x + c[Column.X0_OUTPUT] * V
    x0 = min(max(x0, c[Column.CLIP_MIN]), c[Column.CLIP_MAX])
    return c[Column.SAMPLE] * x + c[Column.OUTPUT] * V + c[Column.X0] * x0 + c[Column.SIGMA] * Z


@pytest.mark.parametrize("a", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("dynamics", FLOW_DYNAMICS)
def test_steps_are_the_formulas(dynamics: str, a: float) -> None:
    options: dict[str, Any] = {"dynamics": dynamics} | ({} if dynamics == "ode" else {"noise_level": a})
    for times in TIMES:
        made = flow_sde_coefficients(times, **options, dtype=torch.float64)
        pairs = list(zip(times[:-1].tolist(), times[1:].tolist(), strict=True))
        wanted = [step(dynamics, a, t, s, float(times[1])) for t, s in pairs]
        found = [
            (applied(row), std, diffusion)
            for row, std, diffusion in zip(
                made.coefficients, made.std.tolist(), made.diffusion.tolist(), strict=True
            )
        ]
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
        assert torch.equal(made.coefficients[:, Column.SIGMA], made.std)
        torch.testing.assert_close(made.sqrt_dt, (times[:-1] - times[1:]).sqrt(), rtol=1e-15, atol=0)
        given = flow_coefficients(times, dtype=torch.float64)
        shared = [c for c in Column if c not in (Column.SAMPLE, Column.OUTPUT, Column.X0, Column.SIGMA)]
        assert torch.equal(made.coefficients[:, shared], given[:, shared])
        rounded = flow_sde_coefficients(times, **options)
        assert torch.equal(rounded.coefficients, made.coefficients.float())
        assert torch.equal(rounded.std, made.std)


@pytest.mark.parametrize("a", [0.0, 0.1, 0.5, 0.7, 1.0])
def test_cps_is_an_eta(a: float) -> None:
    """And diffusers' stochastic sampling is cps at 1."""
    for times in TIMES:
        made = flow_sde_coefficients(times, dynamics="cps", noise_level=a, dtype=torch.float64)
        given = flow_coefficients(times, eta=math.sin(a * math.pi / 2), dtype=torch.float64)
        if a in (0, 1):
            assert torch.equal(made.coefficients, given)
        torch.testing.assert_close(made.coefficients, given, rtol=1e-15, atol=1e-15)


def test_steps_without_noise_are_those_of_diffusers_to_the_bit() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(9)
    times = scheduler.sigmas.double()
    ode = flow_sde_coefficients(times, dynamics="ode").coefficients
    seeds = torch.arange(3)
    x, v = (standard_normal(seeds, (5, 7), step=step) for step in (0, 1))
    for dynamics in (*SDES, *SHARES):
        rows = flow_sde_coefficients(times, dynamics=dynamics, sde_steps=[4]).coefficients
        others = [i for i in range(9) if i != 4]
        assert torch.equal(rows[others], ode[others])
        assert rows[4, Column.SIGMA] > 0
    for i, timestep in enumerate(scheduler.timesteps):
        made = gmm_step(x, v, ode, row=i, seeds=seeds).prev_sample
        assert_same_bits(made, scheduler.step(v, timestep, x).prev_sample)


@pytest.mark.parametrize("levels", [[0.0, 0.2, 1.0, 0.7], torch.tensor([0.0, 0.2, 1.0, 0.7])])
@pytest.mark.parametrize("dynamics", [*SDES, *SHARES])
def test_a_noise_level_for_each_step(dynamics: str, levels: Any) -> None:
    times = flow_times(4, shift=2.0)
    made = flow_sde_coefficients(times, dynamics=dynamics, noise_level=levels)
    for i, level in enumerate(levels.tolist() if isinstance(levels, Tensor) else levels):
        one = flow_sde_coefficients(times, dynamics=dynamics, noise_level=level)
        for found, wanted in zip(made, one, strict=True):
            assert torch.equal(found[i], wanted[i])
    if dynamics in SDES:
        assert torch.equal(made.coefficients[0], flow_sde_coefficients(times, dynamics="ode").coefficients[0])


def test_what_stands_for_a_time_of_one() -> None:
    times = torch.tensor([1.0, 1 - 5e-6, 0.999, 0.5, 0.0], dtype=torch.float64)
    given = flow_sde_coefficients(times, sigma_max=0.99).diffusion
    none = flow_sde_coefficients(times).diffusion
    for i, t in enumerate(times[:-1].tolist()):
        assert float(given[i]) == pytest.approx(0.7 * math.sqrt(t / (1 - (0.99 if i < 2 else t))), rel=1e-12)
        assert float(none[i]) == pytest.approx(
            0.7 * math.sqrt(t / (1 - (1 - 5e-6 if i < 2 else t))), rel=1e-9
        )


@pytest.mark.parametrize("dynamics", SHARES)
def test_clipping_is_that_of_the_predicted_data(dynamics: str) -> None:
    times, x = flow_times(4, shift=2.0), 3.0
    rows = flow_sde_coefficients(
        times,
        dynamics=dynamics,
        sde_steps=[1],
        clip_sample_range=0.5,
        guidance_scale=2.5,
        dtype=torch.float64,
    ).coefficients
    assert rows[:, Column.GUIDANCE].tolist() == [2.5] * 4
    for i, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        rho = float(rows[i, Column.SIGMA])
        assert (rho > 0) == (i == 1)
        assert x - t * V > 0.5
        expected = (1 - s) * 0.5 + math.sqrt(s * s - rho * rho) * (x + (1 - t) * V) + rho * Z
        assert applied(rows[i], x) == pytest.approx(expected, rel=1e-12)


def variance_after(times: Tensor, dynamics: str, a: float, data: float) -> float:
    """Return the variance at the end, from the right one at the start, of Gaussian data with its exact velocity."""
    rows = flow_sde_coefficients(times, dynamics=dynamics, noise_level=a, dtype=torch.float64).coefficients
    variance = marginal(float(times[0]), data)
    for row, t in zip(rows, times.tolist(), strict=False):
        slope = (t - (1 - t) * data) / marginal(t, data)  # v = slope x
        x0 = float(row[Column.X0_SAMPLE] + row[Column.X0_OUTPUT] * slope)
        kept = float(row[Column.SAMPLE] + row[Column.OUTPUT] * slope + row[Column.X0] * x0)
        variance = kept**2 * variance + float(row[Column.SIGMA]) ** 2
    return variance


def marginal(t: float, data: float) -> float:
    return (1 - t) ** 2 * data + t**2


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dynamics", SHARES)
def test_marginals_are_kept_where_the_data_is_known(dynamics: str, a: float) -> None:
    times = torch.linspace(1, 0.1, 6, dtype=torch.float64)
    assert variance_after(times, dynamics, a, 0.0) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("data", [0.0, 0.25])
@pytest.mark.parametrize("dynamics", SDES)
def test_sdes_keep_marginals_to_first_order(dynamics: str, data: float) -> None:
    errors = []
    for steps in (200, 400):
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        errors.append(variance_after(times, dynamics, 0.7, data) / marginal(0.1, data) - 1)
    assert abs(errors[1]) < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_samples_with_windows_of_their_own_have_the_bits_they_have_alone() -> None:
    """In one batch, one table, one launch a step; outside of its window a sample has no density."""
    steps, windows = 6, torch.tensor([[0, 2], [3, 5], [2, 2], [0, 6]])
    times, seeds = flow_times(steps, shift=3.0), torch.arange(4)
    sde, ode = (flow_sde_coefficients(times, dynamics=name).coefficients for name in ("flow-sde", "ode"))
    table = torch.cat([sde, ode])

    def run(coefficients: Tensor, of: slice, rows: Any) -> tuple[Tensor, list[Tensor]]:
        x, log_probs = standard_normal(seeds[of], (3, 4)), []
        for i in range(steps):
            made = gmm_step(
                x, torch.sin(x), coefficients, row=rows(i), step=i, seeds=seeds[of], return_log_prob=True
            )
            x = made.prev_sample
            log_probs.append(made.log_prob)
        return x, log_probs

    together, densities = run(table, slice(4), lambda i: window_rows(windows, i, steps))
    for b, (first, end) in enumerate(windows.tolist()):
        own = flow_sde_coefficients(times, sde_steps=range(first, end)).coefficients
        alone, own_densities = run(own, slice(b, b + 1), lambda i: i)
        assert_same_bits(together[b : b + 1], alone)
        for i in range(steps):
            assert_same_bits(densities[i][b : b + 1], own_densities[i])
            assert bool(densities[i][b].isfinite()) == (first <= i < end)


def test_rows_of_windows_are_read_nowhere() -> None:
    windows = torch.tensor([[0, 2], [1, 3], [2, 2]])
    assert window_rows(windows, 1, 4).tolist() == [1, 1, 5]
    each = torch.tensor([1, 4, -1])
    assert window_rows(windows, each, 4).tolist() == [1, -1, -1]
    assert window_rows(windows, torch.tensor(3), 4).tolist() == [7, 7, 7]
    assert torch.compile(window_rows, fullgraph=True, backend="eager")(windows, 1, 4).tolist() == [1, 1, 5]
    assert window_rows(windows.to("meta"), 1, 4).shape == (3,)
    assert window_rows(windows.to("meta"), each.to("meta"), 4).device.type == "meta"


TWO = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"times": TWO.float()}, TypeError, "times: expected a torch.float64 tensor, got torch.float32"),
        ({"dynamics": "sde"}, ValueError, "dynamics: expected one of 'flow-sde', 'dance-sde', 'cps', 'ddim', "),
        ({"noise_level": -1}, ValueError, "noise_level: expected finite numbers >= 0, got -1 at step 0"),
        ({"noise_level": [0.5, -0.5]}, ValueError, "noise_level: expected finite numbers >= 0, got -0.5 at step 1"),
        ({"noise_level": [0.5, math.inf]}, ValueError, "noise_level: expected finite numbers >= 0, got inf at step 1"),
        ({"noise_level": math.nan}, ValueError, "noise_level: expected a finite number, got nan"),
        ({"noise_level": [0.5] * 3}, ValueError, "noise_level: expected shape [2], got [3]"),
        ({"noise_level": torch.ones(2, 1)}, ValueError, "noise_level: expected shape [2], got [2, 1]"),
        ({"noise_level": "high"}, TypeError, "noise_level: expected 2 real numbers, got 'high'"),
        ({"noise_level": True}, TypeError, "noise_level: expected a finite number, got True"),
        ({"noise_level": 1e200}, ValueError, "noise_level: expected numbers that keep every row finite, got 1e+200 at"),
        ({"noise_level": 1e30}, ValueError, "dtype: expected one that holds every coefficient, got torch.float32"),
        ({"noise_level": 1.5, "dynamics": "cps"}, ValueError, "noise_level: expected numbers from 0 to 1 for"),
        ({"noise_level": 1.5, "dynamics": "ddim"}, ValueError, "noise_level: expected numbers from 0 to 1 for"),
        ({"noise_level": 0.7, "dynamics": "ode"}, ValueError, "noise_level: expected None with dynamics='ode', which "),
        ({"sde_steps": [2]}, ValueError, "sde_steps[0]: expected an integer from 0 to 1, got 2"),
        ({"sde_steps": [0, -1]}, ValueError, "sde_steps[1]: expected an integer from 0 to 1, got -1"),
        ({"sde_steps": [1, 1]}, ValueError, "sde_steps: expected each step once, got 1 twice"),
        ({"sde_steps": [0.0]}, TypeError, "sde_steps[0]: expected an integer from 0 to 1, got 0.0"),
        ({"sde_steps": 1}, TypeError, "sde_steps: expected a sequence of step indices or None, got int"),
        ({"sde_steps": "01"}, TypeError, "sde_steps: expected a sequence of step indices or None, got str"),
        ({"sde_steps": [0], "dynamics": "ode"}, ValueError, "sde_steps: expected None with dynamics='ode'"),
        ({"sigma_max": 1.0}, ValueError, "sigma_max: expected a number above 0 and below 1, got 1"),
        ({"sigma_max": 0}, ValueError, "sigma_max: expected a finite number > 0, got 0"),
        ({"sigma_max": 0.9, "dynamics": "cps"}, ValueError, "sigma_max: expected None with dynamics='cps', got 0.9"),
        ({"clip_sample_range": 1.0}, ValueError, "clip_sample_range: expected None with dynamics='flow-sde'"),
        ({"clip_sample_range": 1.0, "dynamics": "ode"}, ValueError, "clip_sample_range: expected None with "),
        ({"clip_sample_range": 0, "dynamics": "cps"}, ValueError, "clip_sample_range: expected a finite number > 0"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale: expected a finite number, got nan"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype: expected torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        flow_sde_coefficients(**{"times": TWO, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"windows": [(0, 1)]}, TypeError, "windows: expected an int64 tensor, got list"),
        ({"windows": torch.zeros(1, 2)}, TypeError, "windows: expected an int64 tensor, got torch.float32"),
        ({"windows": torch.tensor([0, 1])}, ValueError, "windows: expected shape [B, 2], got [2]"),
        ({"step": 4}, ValueError, "step: expected an integer from 0 to 3, got 4"),
        ({"step": 1.0}, TypeError, "step: expected an integer from 0 to 3, got 1.0"),
        ({"step": torch.tensor(1.0)}, TypeError, "step: expected an int or an int64 tensor, got torch.float32"),
        ({"step": torch.tensor([1, 2])}, ValueError, "step: expected shape [], [1] or [3], got [2]"),
        ({"step": torch.tensor(1, device="meta")}, ValueError, "step: expected a tensor on cpu like windows, got meta"),
        ({"num_steps": 0}, ValueError, "num_steps: expected an integer >= 1, got 0"),
        ({"windows": torch.tensor([[0, 1], [3, 2]])}, ValueError, "windows: expected 0 <= first <= after <= 4, got ["),
        ({"windows": torch.tensor([[-1, 2]])}, ValueError, "windows: expected 0 <= first <= after <= 4, got [-1, 2]"),
        ({"windows": torch.tensor([[1, 5]])}, ValueError, "windows: expected 0 <= first <= after <= 4, got [1, 5] of"),
    ],
)  # fmt: skip
def test_windows_that_are_none(options: dict[str, Any], error: type[Exception], message: str) -> None:
    windows = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(error, match="^" + re.escape(message)):
        window_rows(**{"windows": windows, "step": 0, "num_steps": 4, **options})
