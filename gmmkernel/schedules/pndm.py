"""Coefficient rows of PNDM: DDIM's transfer with the noise of several evaluations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import check_flag
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.multistep import noise_to_signal
from gmmkernel.schedules.noise import NoiseSchedule
from gmmkernel.schedules.rows import alphas_of_steps, check_signal, prediction_rows, rounded

RUNGE_KUTTA_STEPS = 3
"""Steps of F-PNDM that are pseudo Runge-Kutta, of four evaluations each; the multistep ones need what they store."""

_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm_coefficients(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    *,
    skip_prk_steps: bool = False,
    prediction_type: str = "epsilon",
    set_alpha_to_one: bool = True,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return the evaluations of PNDM and one coefficient row for each (Liu et al. 2022, arXiv 2202.09778).

    With rho = sqrt((1 - a)/a), DDIM's transfer of a sample b by the noise e is

        phi(b, e, t, s) = sqrt(a_s) (b/sqrt(a_t) + (rho_s - rho_t) e)

    and e combines the noise e0 of this evaluation with that of earlier ones, the latest first:

        multistep, orders 1 to 4     e0;  (3 e0 - e1)/2;  (23 e0 - 16 e1 + 5 e2)/12;  (55 e0 - 59 e1 + 37 e2 - 9 e3)/24
        F-PNDM, its first 3 steps    from b at t, with m half-way: e(b, t) to m, e(., m) to m, e(., m) to s, and then
                                     from b to s by (k1 + 2 k2 + 2 k3 + k4)/6 with these four
        PLMS (`skip_prk_steps`)      the first step is done again from b with (e0 + e1)/2, e0 of its end

    A row is for the sample that the model was run at; where the transfer starts elsewhere, b comes in as history. The
    histories, as `PNDMSampler` keeps them: multistep [e1, e2, e3]; Runge-Kutta [], [b], [b], [b, k1, k2, k3]; the step
    done again [b, e1]. The op stores "epsilon". Computed in float64 and rounded to `dtype` once.

    Args:
        schedule: the noise schedule of T timesteps.
        timesteps: int64 [S] on the CPU, t of each step, strictly descending, in 0 .. T - 1.
        skip_prk_steps: PLMS, which begins with lower orders (S + 1 evaluations, S for S = 1); otherwise F-PNDM (S + 9).
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction"; the noise that is combined is
            derived from it at each evaluation.
        set_alpha_to_one: a at the end of the schedule is 1 if True, else alphas_cumprod[0].
        guidance_scale: weight of the conditional output where a step gets a pair.
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        The timesteps of the evaluations, int64 [E], and the rows, dtype [E, 16], on the CPU.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown, F-PNDM is asked for fewer than 4 steps or for neighbouring
            timesteps, which have none between them, or a step starts at a = 0.
    """
    skip_prk_steps = check_flag("skip_prk_steps", skip_prk_steps)
    set_alpha_to_one = check_flag("set_alpha_to_one", set_alpha_to_one)
    a_t, a_s = alphas_of_steps(schedule, timesteps, None, set_alpha_to_one=set_alpha_to_one)
    check_signal(a_t, timesteps)
    plan = (
        _linear_multistep(timesteps, a_t, a_s)
        if skip_prk_steps
        else _runge_kutta(schedule, timesteps, a_t, a_s)
    )
    evaluations = torch.tensor([evaluation.timestep for evaluation in plan], device="cpu")
    rows = prediction_rows(
        schedule.alphas_cumprod[evaluations],
        evaluations,
        prediction_type=prediction_type,
        guidance_scale=guidance_scale,
    )
    start = torch.stack([evaluation.start for evaluation in plan])
    end = torch.stack([evaluation.end for evaluation in plan])
    scale = square_root(end) / square_root(start)
    move = square_root(end) * (noise_to_signal(end) - noise_to_signal(start))
    for index, (row, evaluation) in enumerate(zip(rows, plan, strict=True)):
        weights = move[index] * move.new_tensor(evaluation.weights)
        row[Column.SAMPLE] = weights[0] * row[Column.EPS_SAMPLE]
        row[Column.OUTPUT] = weights[0] * row[Column.EPS_OUTPUT]
        history = weights[1:]
        if evaluation.from_stored:
            history = torch.cat([scale[index : index + 1], history])
        else:
            row[Column.SAMPLE] += scale[index]
        row[Column.HISTORY_0 : Column.HISTORY_0 + len(history)] = history
    return evaluations, rounded(rows, dtype)


class _Evaluation(NamedTuple):
    """A call of the model, and the transfer that follows.

    Attributes:
        timestep: where the model is called.
        start: a where the transfer starts.
        end: a where it ends.
        weights: of the noise predicted here and of the stored ones.
        from_stored: the transfer starts from the stored sample b, not from the one the model was called with.
    """

    timestep: int
    start: Tensor
    end: Tensor
    weights: tuple[float, ...]
    from_stored: bool = False


def _linear_multistep(timesteps: Tensor, a_t: Tensor, a_s: Tensor) -> list[_Evaluation]:
    """Plan PLMS: Adams-Bashforth of rising order, after a first step that is done again."""
    t = timesteps.tolist()
    plan = [_Evaluation(t[0], a_t[0], a_s[0], _ADAMS_BASHFORTH[0])]
    if len(t) > 1:
        plan.append(_Evaluation(t[1], a_t[0], a_s[0], (1 / 2, 1 / 2), from_stored=True))
    for step in range(1, len(t)):
        plan.append(_Evaluation(t[step], a_t[step], a_s[step], _ADAMS_BASHFORTH[min(step, 3)]))
    return plan


def _runge_kutta(schedule: NoiseSchedule, timesteps: Tensor, a_t: Tensor, a_s: Tensor) -> list[_Evaluation]:
    """Plan F-PNDM: three pseudo Runge-Kutta steps, then Adams-Bashforth of order 4."""
    t = timesteps.tolist()
    if len(t) <= RUNGE_KUTTA_STEPS:
        raise ValueError(
            f"timesteps: expected at least {RUNGE_KUTTA_STEPS + 1} without skip_prk_steps, got {len(t)}"
        )
    plan = []
    for step in range(RUNGE_KUTTA_STEPS):
        middle = (t[step] + t[step + 1]) // 2
        if middle == t[step + 1]:
            raise ValueError(
                "timesteps: expected a timestep between those of each of the first steps without skip_prk_steps, "
                f"got {t[step]} and {t[step + 1]}"
            )
        start, half, end = a_t[step], schedule.alphas_cumprod[middle], a_s[step]
        plan += [
            _Evaluation(t[step], start, half, (1.0,)),
            _Evaluation(middle, start, half, (1.0,), from_stored=True),
            _Evaluation(middle, start, end, (1.0,), from_stored=True),
            _Evaluation(t[step + 1], start, end, (1 / 6, 1 / 6, 2 / 6, 2 / 6), from_stored=True),
        ]
    for step in range(RUNGE_KUTTA_STEPS, len(t)):
        plan.append(_Evaluation(t[step], a_t[step], a_s[step], _ADAMS_BASHFORTH[3]))
    return plan
