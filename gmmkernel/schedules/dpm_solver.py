"""Coefficient rows of DPM-Solver++(2M): the ODE solver, and its SDE form."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_flag
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.multistep import natural_log, noise_to_signal, orders_of_steps
from gmmkernel.schedules.noise import NoiseSchedule
from gmmkernel.schedules.rows import alphas_of_steps, prediction_rows, rounded

DPM_SOLVER_ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
"""The ODE solver and the SDE solver, by diffusers' names."""


def dpm_solver_coefficients(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    *,
    prev_timesteps: Tensor | None = None,
    algorithm_type: str = "dpmsolver++",
    solver_order: int = 2,
    lower_order_final: bool = True,
    first_step: int = 0,
    prediction_type: str = "epsilon",
    clip_sample_range: float | None = None,
    set_alpha_to_one: bool = True,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one coefficient row for each step t -> s of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

    With (alp, sig) = (sqrt(a), sqrt(1 - a)), rho = sig/alp, h = ln(rho_t/rho_s), m0 and m1 the data predicted in this
    step and in the one before, and r = h_before/h:

        D = m0 + (m0 - m1)/(2 r)                                          order 1: D = m0
        x_s = (sig_s/sig_t) x_t + alp_s (1 - e^-h) D                                          dpmsolver++
        x_s = (sig_s/sig_t) e^-h x_t + alp_s (1 - e^-2h) D + sig_s sqrt(1 - e^-2h) z          sde-dpmsolver++

    m0 is clipped. The op stores m0 ("x0") and reads m1 from the history. The first step, and the last one as
    `orders_of_steps` says, is of order 1. Computed in float64 and rounded to `dtype` once.

    Args:
        schedule: the noise schedule of T timesteps.
        timesteps: int64 [S] on the CPU, t of each step, strictly descending, in 0 .. T - 1.
        prev_timesteps: int64 [S] on the CPU, s of each step; None: the next entry, and the end after the last.
        algorithm_type: "dpmsolver++" or "sde-dpmsolver++".
        solver_order: 1 or 2.
        lower_order_final: in runs of fewer than 15 steps, make the last step one of order 1.
        first_step: where a run starts that skips the steps before it: a step without history.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        clip_sample_range: clip m0 to [-clip_sample_range, clip_sample_range]; None: do not clip.
        set_alpha_to_one: a at the end of the schedule is 1 if True, else alphas_cumprod[0].
        guidance_scale: weight of the conditional output where a step gets a pair.
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [S, 16] on the CPU, columns in the order of `Column`; HISTORY_0 belongs to m1. A mixture's offset has the
        weight 1 in the rows of "sde-dpmsolver++" but the last, and 0 in all others.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown.
    """
    check_choice("algorithm_type", algorithm_type, DPM_SOLVER_ALGORITHMS)
    set_alpha_to_one = check_flag("set_alpha_to_one", set_alpha_to_one)
    a_t, a_s = alphas_of_steps(schedule, timesteps, prev_timesteps, set_alpha_to_one=set_alpha_to_one)
    orders = orders_of_steps(
        a_s, solver_order, largest=2, first_step=first_step, lower_order_final=lower_order_final
    )
    rows = prediction_rows(
        a_t,
        timesteps,
        prediction_type=prediction_type,
        clip_sample_range=clip_sample_range,
        guidance_scale=guidance_scale,
    )
    stochastic = algorithm_type == "sde-dpmsolver++"
    rho_t, rho_s = noise_to_signal(a_t), noise_to_signal(a_s)
    kept = rho_s / rho_t  # e^-h
    removed = 1 - kept * kept if stochastic else 1 - kept
    weight = square_root(a_s) * removed
    noise_s = square_root(1 - a_s)
    rows[:, Column.SAMPLE] = noise_s / square_root(1 - a_t) * (kept if stochastic else 1)
    rows[:, Column.X0] = weight
    if stochastic:
        rows[:, Column.SIGMA] = noise_s * square_root(removed)
        rows[:-1, Column.OFFSET] = 1
    for row, order in enumerate(orders):
        if order == 2:
            before, here, after = natural_log(torch.stack([rho_t[row - 1], rho_t[row], rho_s[row]])).tolist()
            share = float(weight[row]) * (
                0.5 * (here - after) / (before - here)
            )  # 0 after a start from pure noise
            rows[row, Column.X0] += share
            rows[row, Column.HISTORY_0] = -share
    return rounded(rows, dtype)
