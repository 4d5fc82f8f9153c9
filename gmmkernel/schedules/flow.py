"""Rectified flow: the times a sampler visits, and the coefficient rows of its steps, from the ODE to full noise."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_integer, check_number, check_share
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.rows import check_levels, empty_rows, rounded


def flow_times(num_inference_steps: int, *, shift: float = 1.0) -> Tensor:
    """Return the times of a rectified-flow sampler, from the noise at 1 to the data at 0.

        t = shift u / (1 + (shift - 1) u),   u = 1, 1 - 1/S, ..., 0

    which is what pipelines of Stable Diffusion 3 and Flux give FlowMatchEulerDiscreteScheduler (Esser et al. 2024,
    arXiv 2403.03206, eq. 23).

    Args:
        num_inference_steps: number of steps S, at least 1.
        shift: above 1 spends more of the steps near the noise; > 0.

    Returns:
        float64 [S + 1] on the CPU, strictly descending from 1 to 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.
    """
    steps = check_integer("num_inference_steps", num_inference_steps, 1)
    shift = check_number("shift", shift, above=0)
    equal = torch.arange(steps, -1, -1, dtype=torch.float64, device="cpu") / steps
    return shift * equal / (1 + (shift - 1) * equal)


def flow_coefficients(
    times: Tensor,
    *,
    eta: float = 0.0,
    clip_sample_range: float | None = None,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one coefficient row for each step t -> s of rectified flow (arXiv 2311.04938, section on flows).

    A model of x_t = (1 - t) x0 + t x1, with x1 standard normal, predicts the velocity v = x1 - x0. With the data and
    the noise it implies:

        x0 = x_t - t v,   x1 = x_t + (1 - t) v
        x_s = (1 - s) x0 + sqrt(s^2 - sigma^2) x1 + sigma z,   sigma = eta s

    eta = 0 is the Euler step x_t + (s - t) v of the ODE; eta = 1 draws all of the noise anew. x0 is clipped, x1 is not
    derived from the clipped x0. Computed in float64 and rounded to `dtype` once.

    Args:
        times: float64 [S + 1] on the CPU, strictly descending, in [0, 1]: step i goes from times[i] to times[i + 1].
        eta: share of the noise that each step draws anew, 0 to 1.
        clip_sample_range: clip x0 to [-clip_sample_range, clip_sample_range]; None: do not clip.
        guidance_scale: weight of the conditional output where a step gets a pair: o = o_u + scale (o_c - o_u).
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [S, 16] on the CPU, columns in the order of `Column`; "epsilon" is x1. A mixture's offset has the weight
        1, and 0 in the last row.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    check_levels("times", times, high=1)
    eta = check_share("eta", eta)
    shares = torch.full_like(times[1:], eta)
    return rounded(
        rows_of_shares(times, shares, clip_sample_range=clip_sample_range, guidance_scale=guidance_scale),
        dtype,
    )


def rows_of_shares(
    times: Tensor, shares: Tensor, *, clip_sample_range: float | None, guidance_scale: float
) -> Tensor:
    """Return float64 rows [S, 16] of steps that draw a share of their noise anew, as `flow_coefficients` has them.

    Args:
        times: float64 [S + 1], which have been checked.
        shares: float64 [S], eta of each step, 0 to 1.
        clip_sample_range: as `flow_coefficients` has it.
        guidance_scale: the same.

    Raises:
        TypeError: `clip_sample_range` or `guidance_scale` is not a number.
        ValueError: one of them is out of range.
    """
    t, s = times[:-1], times[1:]
    kept = s * square_root(1 - shares * shares)
    rows = empty_rows(len(t), clip_sample_range=clip_sample_range, guidance_scale=guidance_scale)
    rows[:, Column.X0_SAMPLE], rows[:, Column.X0_OUTPUT] = 1, -t
    rows[:, Column.EPS_SAMPLE], rows[:, Column.EPS_OUTPUT] = 1, 1 - t
    rows[:, Column.SAMPLE], rows[:, Column.OUTPUT] = kept, kept * (1 - t)
    rows[:, Column.X0] = 1 - s
    rows[:, Column.SIGMA] = shares * s
    rows[:-1, Column.OFFSET] = 1
    return rows
