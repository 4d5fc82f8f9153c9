"""Rectified flow with noise in its steps, as reinforcement learning draws it: the rows, and windows of such steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_integer, check_number, check_numbers, plain
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.flow import rows_of_shares
from gmmkernel.schedules.noise import quarter_cosine
from gmmkernel.schedules.rows import check_levels, rounded

FLOW_DYNAMICS = ("flow-sde", "dance-sde", "cps", "ddim", "ode")
"""Kinds of steps that `flow_sde_coefficients` has rows for."""

_DRAW_SHARES = ("cps", "ddim")  # of the noise at the step's end; the others add noise to a drift

_NOISE_LEVEL = 0.7  # of Flow-GRPO
_AT_NOISE = 1 - 1e-5
"""Above this a time counts as 1, where g of Flow-GRPO is not finite."""


class FlowTransitions(NamedTuple):
    """The transitions N(mean, std^2) of the steps t -> s of a rectified flow.

    Attributes:
        coefficients: [S, 16] on the CPU, columns in the order of `Column`; SIGMA is `std`.
        std: float64 [S], standard deviation of each transition; 0 where a step draws nothing.
        diffusion: float64 [S], what the code of each method calls std_dev_t: g of "flow-sde" and noise_level of
            "dance-sde", of which `std` is sqrt(t - s) times as much; `std` itself of "cps" and "ddim".
        sqrt_dt: float64 [S], sqrt(t - s).
    """

    coefficients: Tensor
    std: Tensor
    diffusion: Tensor
    sqrt_dt: Tensor


def flow_sde_coefficients(
    times: Tensor,
    *,
    dynamics: str = "flow-sde",
    noise_level: float | Sequence[float] | Tensor | None = None,
    sde_steps: Sequence[int] | None = None,
    sigma_max: float | None = None,
    clip_sample_range: float | None = None,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> FlowTransitions:
    """Return the rows of steps t -> s of rectified flow that draw noise, so that each has a density to train with.

    With the velocity v that a model of x_t = (1 - t) x0 + t x1 predicts, x0 = x_t - t v, x1 = x_t + (1 - t) v, and
    a = noise_level:

        flow-sde   x_s = x_t (1 - h) + v (s - t - h (1 - t)) + g sqrt(t - s) z,   h = g^2 (t - s) / 2t
                   g = a sqrt(t / (1 - t')),   t' = t, but sigma_max where t is 1
        dance-sde  the same with g = a
        cps        x_s = (1 - s) x0 + sqrt(s^2 - rho^2) x1 + rho z,   rho = s sin(a pi/2)
        ddim       the same with rho = a s sqrt(1 - (s (1 - t))^2 / (t (1 - s))^2)
        ode        x_s = x_t + (s - t) v

    flow-sde is that of Flow-GRPO (arXiv 2505.05470), dance-sde that of DanceGRPO (arXiv 2505.07818), cps the
    coefficients-preserving sampling of arXiv 2509.05952, which is `flow_coefficients` with eta = sin(a pi/2), and ddim
    that of Song et al. 2021 (arXiv 2010.02502) for flows. Steps left out of `sde_steps` are those of ode, as in MixGRPO
    (arXiv 2507.21802), and have no density. cps and ddim keep the marginals of x_s as far as x0 is right, whatever a;
    the SDEs keep them to first order in t - s. Computed in float64, with square roots and sines that are the same on
    every machine, and rounded to `dtype` once.

    Args:
        times: float64 [S + 1] on the CPU, strictly descending, in [0, 1]: step i goes from times[i] to times[i + 1].
        dynamics: which of the five.
        noise_level: a, at least 0, and at most 1 for cps and ddim: a number, or one for each of the S steps; None: 0.7.
            Not for ode, which draws nothing.
        sde_steps: indices of the steps that draw noise, in any order; None: all.
        sigma_max: t' of flow-sde where t > 1 - 1e-5, above 0 and below 1; None: times[1].
        clip_sample_range: clip x0 to [-clip_sample_range, clip_sample_range], in cps and ddim, where the mean is made
            of it; also in those of their steps that draw nothing, which are then (1 - s) x0 + s x1. None: do not clip.
        guidance_scale: weight of the conditional output where a step gets a pair: o = o_u + scale (o_c - o_u).
        dtype: torch.float32, or torch.float64 for float64 samples; of the rows alone.

    Returns:
        FlowTransitions on the CPU. A mixture's offset has the weight 1, and 0 in the last row.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, unknown, or has no part in these dynamics; or a row is not finite.
    """
    check_levels("times", times, high=1)
    check_choice("dynamics", dynamics, FLOW_DYNAMICS)
    t, s = times[:-1], times[1:]
    draws = _check_sde_steps(sde_steps, dynamics, len(t))
    level = _check_noise_level(noise_level, dynamics, len(t)) * draws
    held = _check_sigma_max(sigma_max, dynamics, times)
    if clip_sample_range is not None and dynamics not in _DRAW_SHARES:
        raise ValueError(
            f"clip_sample_range: expected None with dynamics={dynamics!r}, whose mean is not made of the predicted "
            f"data, got {clip_sample_range!r}"
        )
    share, g = torch.zeros_like(t), torch.zeros_like(t)
    if dynamics == "flow-sde":
        g = level * square_root(t / (1 - torch.where(t > _AT_NOISE, held, t)))
    elif dynamics == "dance-sde":
        g = level
    elif dynamics == "cps":
        sines = [quarter_cosine(math.pi / 2 * (1 - a), math.pi / 2 * a) for a in level.tolist()]
        share = torch.tensor(sines, dtype=torch.float64, device="cpu")
    elif dynamics == "ddim":  # 1 - r^2 as (1 - r)(1 + r), without cancellation
        r = s * (1 - t) / (t * (1 - s))
        share = level * square_root((t - s) / (t * (1 - s)) * (1 + r)).clamp(max=1)
    rows = rows_of_shares(times, share, clip_sample_range=clip_sample_range, guidance_scale=guidance_scale)
    sqrt_dt = square_root(t - s)
    std = share * s + g * sqrt_dt  # one of which is 0
    h = g * g * (t - s) / (2 * t)
    infinite = ~(std.isfinite() & h.isfinite())
    if bool(infinite.any()):
        i = int(infinite.nonzero()[0])
        raise ValueError(
            f"noise_level: expected numbers that keep every row finite, got {float(level[i]):g} at step {i}"
        )
    drifts = ~draws if dynamics in _DRAW_SHARES else torch.ones_like(draws)
    if clip_sample_range is None:
        rows[drifts, Column.SAMPLE] = (1 - h)[drifts]
        rows[drifts, Column.OUTPUT] = (s - t - h * (1 - t))[drifts]
        rows[drifts, Column.X0] = 0
        rows[drifts, Column.SIGMA] = std[drifts]
    return FlowTransitions(rounded(rows, dtype), std, std if dynamics in _DRAW_SHARES else g, sqrt_dt)


def window_rows(windows: Tensor, step: int | Tensor, num_steps: int) -> Tensor:
    """Return the row of each sample where every sample has a window of its own of steps that draw noise.

    The table is [2 S, 16]: S rows that draw noise, then S that do not, for example

        torch.cat([flow_sde_coefficients(times).coefficients,
                   flow_sde_coefficients(times, dynamics="ode").coefficients])

    and the step `gmm_step(..., table, row=window_rows(windows, i, S), step=i)`: a sample takes row i while i is in its
    window, and row S + i outside of it (MixGRPO, arXiv 2507.21802). On a device no value is read.

    Args:
        windows: int64 [B, 2], the first step of each sample's window and the one after its last, 0 <= first <= after
            <= S: empty where they are equal. On a device that is not checked: a window that ends before it begins is
            empty, and one that leaves the schedule is cut there.
        step: index of the step, int in 0 .. S - 1, or int64 tensor [], [1] or [B] beside `windows`.
        num_steps: S.

    Returns:
        int64 [B] on the device of `windows`; -1 where a tensor's step is out of range, which `gmm_step` refuses on the
        CPU, and fills the sample with NaN elsewhere.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape or device does not fit, or a number is out of range, a window's on the CPU included.
    """
    count = check_integer("num_steps", num_steps, 1)
    if not isinstance(windows, Tensor) or windows.dtype != torch.int64:
        raise TypeError(f"windows: expected an int64 tensor, got {_kind(windows)}")
    if windows.dim() != 2 or windows.shape[1] != 2:
        raise ValueError(f"windows: expected shape [B, 2], got {list(windows.shape)}")
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if windows.device.type == "cpu" and not traced:
        wrong = (windows[:, 0] < 0) | (windows[:, 0] > windows[:, 1]) | (windows[:, 1] > count)
        if bool(wrong.any()):
            sample = int(wrong.nonzero()[0])
            raise ValueError(
                f"windows: expected 0 <= first <= after <= {count}, got {windows[sample].tolist()} of sample {sample}"
            )
    if not isinstance(step, Tensor):
        index: int | Tensor = check_integer("step", step, 0, count - 1)
    elif step.dtype != torch.int64:
        raise TypeError(f"step: expected an int or an int64 tensor, got {step.dtype}")
    elif step.dim() > 1 or step.numel() not in (1, windows.shape[0]):
        raise ValueError(f"step: expected shape [], [1] or [{windows.shape[0]}], got {list(step.shape)}")
    elif step.device != windows.device:
        raise ValueError(f"step: expected a tensor on {windows.device} like windows, got {step.device}")
    else:
        index = torch.where((step >= 0) & (step < count), step, -1 - count)  # -1 outside of every window
    outside = (windows[:, 0] > index) | (windows[:, 1] <= index)
    return index + count * outside


def dynamics_options(
    dynamics: str | None, *, eta: float, noise_level: object, sde_steps: object, sigma_max: object
) -> dict[str, Any] | None:
    """Return the arguments of `flow_sde_coefficients` that a sampler was given; None for the steps of `eta`.

    Raises:
        ValueError: `dynamics` is unknown, or stands beside an `eta`; or another argument stands without it.
    """
    given = {"noise_level": noise_level, "sde_steps": sde_steps, "sigma_max": sigma_max}
    options = {name: value for name, value in given.items() if value is not None}
    if dynamics is None:
        for name, value in options.items():
            raise ValueError(f"{name}: expected None without dynamics, got {value!r}")
        return None
    check_choice("dynamics", dynamics, FLOW_DYNAMICS)
    if eta != 0:
        raise ValueError(
            f"eta: expected 0 beside dynamics={dynamics!r}, which has a noise level, got {eta!r}"
        )
    return {"dynamics": dynamics, **options}


def _check_noise_level(noise_level: object, dynamics: str, steps: int) -> Tensor:
    """Return the noise level of each step, float64 [S]."""
    if noise_level is None:
        noise_level = _NOISE_LEVEL
    elif dynamics == "ode":
        raise ValueError(
            f"noise_level: expected None with dynamics='ode', which draws nothing, got {noise_level!r}"
        )
    number = plain(noise_level)
    if isinstance(number, int | float):
        level = torch.full((steps,), check_number("noise_level", number), dtype=torch.float64, device="cpu")
    else:
        level = check_numbers("noise_level", noise_level, steps)
    high = 1.0 if dynamics in _DRAW_SHARES else math.inf
    outside = ~((level >= 0) & (level <= high) & level.isfinite())
    if bool(outside.any()):
        i = int(outside.nonzero()[0])
        allowed = (
            "finite numbers >= 0" if high == math.inf else f"numbers from 0 to 1 for dynamics={dynamics!r}"
        )
        raise ValueError(f"noise_level: expected {allowed}, got {float(level[i]):g} at step {i}")
    return level


def _check_sde_steps(sde_steps: object, dynamics: str, steps: int) -> Tensor:
    """Return whether each step draws noise, bool [S]."""
    if sde_steps is None:
        return torch.full((steps,), dynamics != "ode", device="cpu")
    if dynamics == "ode":
        raise ValueError(
            f"sde_steps: expected None with dynamics='ode', which draws nothing, got {sde_steps!r}"
        )
    if not isinstance(sde_steps, Sequence) or isinstance(sde_steps, str):
        raise TypeError(f"sde_steps: expected a sequence of step indices or None, got {_kind(sde_steps)}")
    draws = torch.zeros(steps, dtype=torch.bool, device="cpu")
    for place, given in enumerate(sde_steps):
        step = check_integer(f"sde_steps[{place}]", given, 0, steps - 1)
        if draws[step]:
            raise ValueError(f"sde_steps: expected each step once, got {step} twice")
        draws[step] = True
    return draws


def _check_sigma_max(sigma_max: object, dynamics: str, times: Tensor) -> Tensor:
    """Return what stands for a time of 1 in g of Flow-GRPO, float64 []."""
    if sigma_max is None:
        return times[1]
    if dynamics != "flow-sde":
        raise ValueError(f"sigma_max: expected None with dynamics={dynamics!r}, got {sigma_max!r}")
    held = check_number("sigma_max", sigma_max, above=0)
    if held >= 1:
        raise ValueError(f"sigma_max: expected a number above 0 and below 1, got {held:g}")
    return times.new_tensor(held)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
