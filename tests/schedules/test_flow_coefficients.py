"""Rows of rectified flow and of noise levels: the equations in float64, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from gmmkernel import Column, flow_coefficients, flow_times, sigma_coefficients

SHAPE = (2, 5)


def apply(row: Tensor, x: Tensor, o: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next sample and eps of a row, as the docstring of `Column` reads."""
    x0 = (row[Column.X0_SAMPLE] * x + row[Column.X0_OUTPUT] * o).clamp(
        row[Column.CLIP_MIN], row[Column.CLIP_MAX]
    )
    mean = row[Column.SAMPLE] * x + row[Column.OUTPUT] * o + row[Column.X0] * x0
    return mean + row[Column.SIGMA] * z, row[Column.EPS_SAMPLE] * x + row[Column.EPS_OUTPUT] * o


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, o, z = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, o, z


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("limit", [None, 0.4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_steps(eta: float, limit: float | None, shift: float) -> None:
    times = flow_times(5, shift=shift)
    rows = flow_coefficients(times, eta=eta, clip_sample_range=limit, dtype=torch.float64)
    x, v, z = tensors()
    for row, t, s in zip(rows, times[:-1].tolist(), times[1:].tolist(), strict=True):
        x0 = x - t * v
        clipped = x0 if limit is None else x0.clamp(-limit, limit)
        noise = x + (1 - t) * v
        sigma = eta * s
        expected = (1 - s) * clipped + (s**2 - sigma**2) ** 0.5 * noise + sigma * z
        made, eps = apply(row, x, v, z)
        torch.testing.assert_close(made, expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(eps, noise, rtol=1e-13, atol=1e-13)
        if eta == 0 and limit is None:
            torch.testing.assert_close(made, x + (s - t) * v, rtol=1e-13, atol=1e-13)
        if limit is None:  # the equation of arXiv 2311.04938
            kept = (s**2 - sigma**2) ** 0.5
            mean = kept / t * x + ((1 - s) - (1 - t) * kept / t) * x0
            torch.testing.assert_close(made, mean + sigma * z, rtol=1e-12, atol=1e-12)


def test_times() -> None:
    assert flow_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = flow_times(4, shift=3.0)
    torch.testing.assert_close(
        shifted, torch.tensor([1, 3 * 0.75 / 2.5, 0.75, 0.5, 0], dtype=torch.float64), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_steps_between_noise_levels(eta: float) -> None:
    sigmas = torch.tensor([14.6, 3.0, 0.7, 0.0], dtype=torch.float64)
    rows = sigma_coefficients(sigmas, eta=eta, dtype=torch.float64)
    x, o, z = tensors()
    for row, here, after in zip(rows, sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        up = eta * after * (1 - after**2 / here**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        made, eps = apply(row, x, o, z)
        torch.testing.assert_close(made, o + down / here * (x - o) + up * z, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(eps, (x - o) / here, rtol=1e-13, atol=1e-13)
    weights = rows[:, Column.OFFSET]
    torch.testing.assert_close(weights[:-1], (1 + sigmas[1:-1] ** 2).sqrt(), rtol=1e-15, atol=0)
    assert weights[-1] == 0


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "name", "allowed"),
    [
        (flow_coefficients, "times", "values in [0, 1]"),
        (sigma_coefficients, "sigmas", "finite numbers >= 0"),
    ],
)
def test_what_is_refused(function: Any, name: str, allowed: str) -> None:
    def refused(given: Any, error: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(error, match="^" + re.escape(message)):
            function(given, **options)

    refused([1.0, 0.0], TypeError, f"{name}: expected a torch.float64 tensor, got list")
    refused(torch.ones(2), TypeError, f"{name}: expected a torch.float64 tensor, got torch.float32")
    refused(levels(1, 0).to("meta"), ValueError, f"{name}: expected a tensor on the CPU, got meta")
    refused(levels(1), ValueError, f"{name}: expected shape [S + 1] with S >= 1, got [1]")
    refused(levels(1, 0)[None], ValueError, f"{name}: expected shape [S + 1] with S >= 1, got [1, 2]")
    refused(levels(1, -0.5), ValueError, f"{name}: expected {allowed}, got -0.5 at index 1")
    refused(levels(float("nan"), 0), ValueError, f"{name}: expected {allowed}, got nan at index 0")
    refused(levels(float("inf"), 0), ValueError, f"{name}: expected {allowed}, got inf at index 0")
    descending = f"{name}: expected strictly descending values, got 0.5 at index 2 after 0.5"
    refused(levels(1, 0.5, 0.5, 0), ValueError, descending)
    refused(levels(1, 0), ValueError, "eta: expected a number from 0 to 1, got 1.5", eta=1.5)
    refused(levels(1, 0), ValueError, "eta: expected a number from 0 to 1, got -1", eta=-1)
    refused(levels(1, 0), TypeError, "eta: expected a number from 0 to 1, got 'all'", eta="all")
    refused(levels(1, 0), TypeError, "dtype: expected torch.float32 or", dtype=torch.float16)


def test_numbers_that_must_be_positive_say_so() -> None:
    with pytest.raises(ValueError, match=r"^shift: expected a finite number > 0, got 0\.0$"):
        flow_times(3, shift=0.0)


def test_times_of_a_flow_end_at_one() -> None:
    with pytest.raises(ValueError, match=re.escape("times: expected values in [0, 1], got 1.5 at index 0")):
        flow_coefficients(levels(1.5, 0))
