"""Coefficient rows of DDIM, from the deterministic sampler (eta = 0) to the DDPM posterior (eta = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_flag, check_number
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.noise import NoiseSchedule
from gmmkernel.schedules.rows import alphas_of_steps, prediction_rows, rounded

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
    eta = check_number("eta", eta, low=0)
    use_clipped_model_output = check_flag("use_clipped_model_output", use_clipped_model_output)
    set_alpha_to_one = check_flag("set_alpha_to_one", set_alpha_to_one)
    a_t, a_s = alphas_of_steps(schedule, timesteps, prev_timesteps, set_alpha_to_one=set_alpha_to_one)
    rows = prediction_rows(
        a_t,
        timesteps,
        prediction_type=prediction_type,
        clip_sample_range=clip_sample_range,
        guidance_scale=guidance_scale,
    )
    variance, direction = _split_noise(a_t, a_s, eta, timesteps)
    signal_s = square_root(a_s)
    if use_clipped_model_output:  # eps = (x - sqrt(a_t) x0) / sqrt(1 - a_t) with the clipped x0
        signal_t, noise_t = square_root(a_t), square_root(1 - a_t)
        rows[:, Column.SAMPLE] = direction / noise_t
        rows[:, Column.X0] = signal_s - direction * signal_t / noise_t
    else:
        rows[:, Column.SAMPLE] = direction * rows[:, Column.EPS_SAMPLE]
        rows[:, Column.OUTPUT] = direction * rows[:, Column.EPS_OUTPUT]
        rows[:, Column.X0] = signal_s
    rows[:, Column.SIGMA] = square_root(variance)
    rows[:-1, Column.OFFSET] = 1
    return rounded(rows, dtype)


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
