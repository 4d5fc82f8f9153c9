"""Coefficient rows of DDIM, from the deterministic sampler (eta = 0) to the DDPM posterior (eta = 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_flag, check_number
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.noise import NoiseSchedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
"""What a model may predict, by diffusers' names."""

BEFORE_SCHEDULE = -1
"""The timestep before the first of the schedule, where a step to the data ends."""

_ROUNDING = 2.0**-48


def ddim_coefficients(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    *,
    prev_timesteps: Tensor | None = None,
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    clip_sample_range: float | None = None,
    use_clipped_model_output: bool = False,
    set_alpha_to_one: bool = True,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one coefficient row for each DDIM step t -> s (Song et al. 2021, eq. 12 and 16).

    With a = alphas_cumprod, and x0 and eps the model's prediction of the data and of the noise:

        x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) eps + sigma z
        sigma = eta sqrt((1 - a_s)/(1 - a_t) (1 - a_t/a_s))

    x0 is clipped; eps is not derived from the clipped x0 unless `use_clipped_model_output` says so.
    Everything is computed in float64 and rounded to `dtype` once.

    Args:
        schedule: the noise schedule of T timesteps.
        timesteps: int64 [S] on the CPU, t of each step, strictly descending, in 0 .. T - 1.
        prev_timesteps: int64 [S] on the CPU, s of each step, -1 <= s < t, where -1 stands for the end of the
            schedule. None: the next entry of `timesteps`, and -1 after the last.
        eta: share of the DDPM noise, >= 0; above 1 only where 1 - a_s - sigma^2 stays >= 0.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        clip_sample_range: clip x0 to [-clip_sample_range, clip_sample_range]; None: do not clip.
        use_clipped_model_output: derive eps from the clipped x0 (as GLIDE does).
        set_alpha_to_one: a at the end of the schedule is 1 (no noise is left) if True, else
            alphas_cumprod[0].
        guidance_scale: weight of the conditional output where a step gets a pair: o = o_u + scale (o_c -
            o_u).
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [S, 16] on the CPU, columns in the order of `Column`. A mixture's offset has the weight 1, and 0
        in the last row: the transition of DDIM-GMM is defined for t > 1 only.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown; a step starts where epsilon does not determine the
            data (a_t = 0) or where there is no noise to remove (a_t = 1); or sigma is too large.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule, got {type(schedule).__name__}")
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    eta = check_number("eta", eta, low=0)
    guidance_scale = check_number("guidance_scale", guidance_scale)
    limit = math.inf
    if clip_sample_range is not None:
        limit = check_number("clip_sample_range", clip_sample_range, above=0)
    check_flag("use_clipped_model_output", use_clipped_model_output)
    check_flag("set_alpha_to_one", set_alpha_to_one)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    _check_timesteps(timesteps, schedule.num_train_timesteps)
    if prev_timesteps is None:
        prev_timesteps = torch.cat([timesteps[1:], torch.tensor([BEFORE_SCHEDULE])])
    else:
        _check_prev_timesteps(prev_timesteps, timesteps)

    alphas = schedule.alphas_cumprod
    end = alphas.new_ones(1) if set_alpha_to_one else alphas[:1]
    a_t = alphas[timesteps]
    a_s = torch.where(prev_timesteps == BEFORE_SCHEDULE, end, alphas[prev_timesteps.clamp(min=0)])
    _check_alphas(a_t, a_s, timesteps, prediction_type)
    variance, direction = _split_noise(a_t, a_s, eta, timesteps)

    signal_t, noise_t = square_root(a_t), square_root(1 - a_t)
    signal_s = square_root(a_s)
    zero, one = torch.zeros_like(a_t), torch.ones_like(a_t)
    if prediction_type == "epsilon":
        x0_sample, x0_output = 1 / signal_t, -noise_t / signal_t
        eps_sample, eps_output = zero, one
    elif prediction_type == "sample":
        x0_sample, x0_output = zero, one
        eps_sample, eps_output = 1 / noise_t, -signal_t / noise_t
    else:
        x0_sample, x0_output = signal_t, -noise_t
        eps_sample, eps_output = noise_t, signal_t

    rows = torch.zeros(len(timesteps), len(Column), dtype=torch.float64)
    rows[:, Column.X0_SAMPLE] = x0_sample
    rows[:, Column.X0_OUTPUT] = x0_output
    rows[:, Column.CLIP_MIN] = -limit
    rows[:, Column.CLIP_MAX] = limit
    if use_clipped_model_output:  # eps = (x - sqrt(a_t) x0) / sqrt(1 - a_t) with the clipped x0
        rows[:, Column.SAMPLE] = direction / noise_t
        rows[:, Column.X0] = signal_s - direction * signal_t / noise_t
    else:
        rows[:, Column.SAMPLE] = direction * eps_sample
        rows[:, Column.OUTPUT] = direction * eps_output
        rows[:, Column.X0] = signal_s
    rows[:, Column.GUIDANCE] = guidance_scale
    rows[:, Column.SIGMA] = square_root(variance)
    rows[:-1, Column.OFFSET] = 1
    rows[:, Column.EPS_SAMPLE] = eps_sample
    rows[:, Column.EPS_OUTPUT] = eps_output
    rounded = rows.to(dtype)
    _check_overflow(rows, rounded)
    return rounded


def _split_noise(a_t: Tensor, a_s: Tensor, eta: float, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Split the noise 1 - a_s of the step's end: return sigma^2 and sqrt(1 - a_s - sigma^2)."""
    fresh = eta * eta * ((a_s - a_t) / (a_s * (1 - a_t)))
    too_large = fresh > 1 + _ROUNDING
    if bool(too_large.any()):
        row = int(too_large.nonzero()[0])
        raise ValueError(
            f"eta: expected 1 - a_s - sigma^2 >= 0 at every step, got eta = {eta:g}, which makes it "
            f"{float((1 - a_s[row]) * (1 - fresh[row])):.3g} at row {row} (timestep {int(timesteps[row])})"
        )
    kept = (1 - fresh).clamp(min=0)  # below 0 by rounding only, where all of the noise is fresh
    return (1 - a_s) * fresh, square_root((1 - a_s) * kept)


def _check_timesteps(timesteps: Tensor, total: int) -> None:
    _check_steps_tensor("timesteps", timesteps)
    if timesteps.numel() == 0:
        raise ValueError("timesteps: expected at least one, got none")
    outside = (timesteps < 0) | (timesteps >= total)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"timesteps: expected values in 0 .. {total - 1}, got {int(timesteps[row])} at row {row}"
        )
    rising = timesteps[1:] >= timesteps[:-1]
    if bool(rising.any()):
        row = int(rising.nonzero()[0]) + 1
        raise ValueError(
            f"timesteps: expected strictly descending values, got {int(timesteps[row])} at row {row} "
            f"after {int(timesteps[row - 1])}"
        )


def _check_prev_timesteps(prev_timesteps: Tensor, timesteps: Tensor) -> None:
    _check_steps_tensor("prev_timesteps", prev_timesteps)
    if prev_timesteps.shape != timesteps.shape:
        raise ValueError(
            f"prev_timesteps: expected shape {list(timesteps.shape)}, got {list(prev_timesteps.shape)}"
        )
    outside = (prev_timesteps < BEFORE_SCHEDULE) | (prev_timesteps >= timesteps)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"prev_timesteps: expected -1 (the end of the schedule) to {int(timesteps[row]) - 1} "
            f"at row {row} (timestep {int(timesteps[row])}), got {int(prev_timesteps[row])}"
        )


def _check_steps_tensor(name: str, steps: Tensor) -> None:
    if not isinstance(steps, Tensor) or steps.dtype != torch.int64:
        got = steps.dtype if isinstance(steps, Tensor) else type(steps).__name__
        raise TypeError(f"{name}: expected a torch.int64 tensor, got {got}")
    if steps.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got {steps.device}")
    if steps.ndim != 1:
        raise ValueError(f"{name}: expected shape [S], got {list(steps.shape)}")


def _check_alphas(a_t: Tensor, a_s: Tensor, timesteps: Tensor, prediction_type: str) -> None:
    for row, (t, a, a_next) in enumerate(zip(timesteps.tolist(), a_t.tolist(), a_s.tolist(), strict=True)):
        if a == 0 and prediction_type == "epsilon":
            raise ValueError(
                f"prediction_type: expected 'sample' or 'v_prediction' at row {row} (timestep {t}), where "
                "alphas_cumprod is 0 and epsilon does not determine the data, got 'epsilon'"
            )
        if a_next == 0:
            raise ValueError(
                f"timesteps: expected steps that end where alphas_cumprod > 0, got row {row} "
                f"(timestep {t}), which ends at 0"
            )
        if a == 1:
            raise ValueError(
                f"timesteps: expected steps that start where alphas_cumprod < 1, got row {row} "
                f"(timestep {t}), where no noise is left"
            )


def _check_overflow(rows: Tensor, rounded: Tensor) -> None:
    lost = rows.isfinite() & ~rounded.isfinite()
    if bool(lost.any()):
        row, column = lost.nonzero()[0].tolist()
        raise ValueError(
            f"dtype: expected one that holds every coefficient, got {rounded.dtype} "
            f"for {Column(column).name} = {float(rows[row, column]):g} at row {row}"
        )
