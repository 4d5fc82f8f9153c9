"""Coefficient rows over noise levels: the variance-exploding form that k-diffusion's samplers use."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_share
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.rows import check_levels, empty_rows, rounded


def sigma_coefficients(sigmas: Tensor, *, eta: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one coefficient row for each step between noise levels, x = x0 + sigma_t eps (Karras et al. 2022).

    The model predicts the data, o = x0. DDIM in these units, t -> s:

        up = eta sigma_s sqrt(1 - sigma_s^2/sigma_t^2),   down = sqrt(sigma_s^2 - up^2)
        x_s = o + (down/sigma_t) (x_t - o) + up z

    eta = 0 is the Euler step of the probability-flow ODE, eta = 1 the ancestral step (DDPM's posterior). The samples of
    `DDIMSampler` are these times sqrt(a); a mixture's offset is weighted by sqrt(1 + sigma_s^2) = 1/sqrt(a_s) here, so
    that a scale means the same in both. Computed in float64 and rounded to `dtype` once.

    Args:
        sigmas: float64 [S + 1] on the CPU, strictly descending, the last one >= 0.
        eta: share of the ancestral noise, 0 to 1.
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [S, 16] on the CPU, columns in the order of `Column`. The offset's weight is 0 in a step to
        the data, sigma_s = 0: the last step of a whole schedule, but not of a part of one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    check_levels("sigmas", sigmas)
    eta = check_share("eta", eta)
    sigma_t, sigma_s = sigmas[:-1], sigmas[1:]
    ratio = sigma_s / sigma_t
    fresh = eta * eta * (1 - ratio * ratio)  # share of sigma_s^2 that is drawn anew
    kept = ratio * square_root(1 - fresh)
    rows = empty_rows(len(sigma_t))
    rows[:, Column.X0_OUTPUT] = 1
    rows[:, Column.EPS_SAMPLE], rows[:, Column.EPS_OUTPUT] = 1 / sigma_t, -1 / sigma_t
    rows[:, Column.SAMPLE], rows[:, Column.X0] = kept, 1 - kept
    rows[:, Column.SIGMA] = sigma_s * square_root(fresh)
    rows[:, Column.OFFSET] = torch.where(sigma_s == 0, 0.0, square_root(1 + sigma_s * sigma_s))
    return rounded(rows, dtype)
