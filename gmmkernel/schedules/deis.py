"""Coefficient rows of DEIS: exponential integrators with the noise interpolated over the last evaluations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_flag
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.multistep import natural_log, noise_to_signal, orders_of_steps
from gmmkernel.schedules.noise import NoiseSchedule
from gmmkernel.schedules.rows import alphas_of_steps, check_signal, prediction_rows, rounded

DEIS_INTERPOLATIONS = ("log-rho", "rho")
"""The variable in which the noise is a polynomial."""


def deis_coefficients(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    *,
    prev_timesteps: Tensor | None = None,
    solver_order: int = 3,
    interpolation: str = "log-rho",
    lower_order_final: bool = True,
    first_step: int = 0,
    prediction_type: str = "epsilon",
    set_alpha_to_one: bool = True,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one coefficient row for each step t -> s of DEIS (Zhang and Chen 2023, arXiv 2204.13902).

    With rho = sqrt((1 - a)/a), and eps the polynomial through the noise predicted in this step and in those before:

        x_s/sqrt(a_s) = x_t/sqrt(a_t) + integral of eps d rho from rho_t to rho_s

    Order 1 is DDIM. The polynomial is one in ln rho, as in diffusers' DEISMultistepScheduler, or in rho (the paper's
    rho-AB); both integrals have closed forms. The op stores "epsilon" and reads the earlier ones from the history, the
    latest first. Orders rise from 1 in the first steps, and fall at the end as `orders_of_steps` says. Computed in
    float64 and rounded to `dtype` once.

    Args:
        schedule: the noise schedule of T timesteps.
        timesteps: int64 [S] on the CPU, t of each step, strictly descending, in 0 .. T - 1.
        prev_timesteps: int64 [S] on the CPU, s of each step; None: the next entry, and the end after the last.
        solver_order: 1, 2 or 3: how many predictions the polynomial goes through.
        interpolation: "log-rho" or "rho".
        lower_order_final: in runs of fewer than 15 steps, lower the order of the last two.
        first_step: where a run starts that skips the steps before it: a step without history.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        set_alpha_to_one: a at the end of the schedule is 1 if True, else alphas_cumprod[0].
        guidance_scale: weight of the conditional output where a step gets a pair.
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [S, 16] on the CPU, columns in the order of `Column`; HISTORY_0 belongs to the latest stored prediction.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown, or a step starts at a = 0, where rho is infinite.
    """
    check_choice("interpolation", interpolation, DEIS_INTERPOLATIONS)
    set_alpha_to_one = check_flag("set_alpha_to_one", set_alpha_to_one)
    a_t, a_s = alphas_of_steps(schedule, timesteps, prev_timesteps, set_alpha_to_one=set_alpha_to_one)
    check_signal(a_t, timesteps)
    orders = orders_of_steps(
        a_s, solver_order, largest=3, first_step=first_step, lower_order_final=lower_order_final
    )
    rows = prediction_rows(a_t, timesteps, prediction_type=prediction_type, guidance_scale=guidance_scale)
    signal_s = square_root(a_s)
    rho_t, rho_s = noise_to_signal(a_t).tolist(), noise_to_signal(a_s).tolist()
    weights = rows.new_zeros(len(timesteps), 3)
    for row, order in enumerate(orders):
        nodes = [rho_t[row - j] for j in range(order)]
        weights[row, :order] = weights.new_tensor(_integrals(nodes, rho_s[row], interpolation))
    weights *= signal_s[:, None]
    rows[:, Column.SAMPLE] = signal_s / square_root(a_t) + weights[:, 0] * rows[:, Column.EPS_SAMPLE]
    rows[:, Column.OUTPUT] = weights[:, 0] * rows[:, Column.EPS_OUTPUT]
    rows[:, Column.HISTORY_0 : Column.HISTORY_2] = weights[:, 1:]
    return rounded(rows, dtype)


def _integrals(nodes: list[float], end: float, interpolation: str) -> list[float]:
    """Return the integrals over rho, from nodes[0] to `end`, of the Lagrange polynomials of the nodes."""
    start = nodes[0]
    count = len(nodes)
    if count == 1:
        return [end - start]
    if interpolation == "rho":  # u = rho - rho_t
        places = [node - start for node in nodes]
        moments = [(end - start) ** (k + 1) / (k + 1) for k in range(count)]
    else:  # u = ln(rho/rho_t), where the integral of u^k is [rho u^k] - k times that of u^(k-1)
        *places, u = natural_log(
            torch.tensor([*nodes, end], dtype=torch.float64, device="cpu") / start
        ).tolist()
        moments = [end - start]
        for k in range(1, count):
            moments.append(end * u**k - k * moments[-1])
    found = []
    for j, place in enumerate(places):
        others = [other for i, other in enumerate(places) if i != j]
        polynomial = _product_of_roots(others)
        scale = math.prod(place - other for other in others)
        found.append(sum(c * moment for c, moment in zip(polynomial, moments, strict=True)) / scale)
    return found


def _product_of_roots(roots: list[float]) -> list[float]:
    """Return the coefficients, lowest degree first, of the product of (u - root)."""
    polynomial = [1.0]
    for root in roots:
        raised = [0.0, *polynomial]
        lowered = [-root * c for c in polynomial] + [0.0]
        polynomial = [a + b for a, b in zip(raised, lowered, strict=True)]
    return polynomial
