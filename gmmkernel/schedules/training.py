"""Training rows: what noising a sample and the loss of S2-DM need at each timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_integer, check_share
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import TrainingColumn
from gmmkernel.schedules.noise import NoiseSchedule
from gmmkernel.schedules.rows import PREDICTION_TYPES

TARGETS = ("independent", "same", "consistent")
"""What the second term of the loss may be compared with."""


def training_coefficients(
    schedule: NoiseSchedule,
    *,
    skip: int = 9,
    tau: float = 0.99,
    target: str = "independent",
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one training row for each timestep: x_t, and the skip-step loss (Wang and Li, arXiv 2401.01520).

    With a = alphas_cumprod, e1 the noise in x_t, e2 fresh noise and eps the model's prediction of e1:

        x_t  = sqrt(a_t) x0 + sqrt(1 - a_t) e1
        loss = tau mean (e1 - eps)^2 + (1 - tau) mean (e_skip - c eps)^2     for t >= skip, else the first mean alone

        independent  e_skip = e2,                              c = sqrt((1 - r)/r),  r = a_t/a_{t - skip}
        same         e_skip = e1,                              the same c
        consistent   e_skip = kappa e1 + sqrt(1 - kappa^2) e2, c = kappa = sqrt((1 - r)/(1 - a_t))

    "independent" is what the authors' code computes, "same" what the paper says. "consistent" is the noise of the step
    from t - skip to t, x_t = sqrt(r) x_{t - skip} + sqrt(1 - r) e_skip, and leaves the minimiser where the first term
    has it; with "independent" that is gamma E[e1 | x_t], gamma = tau/(tau + (1 - tau) c^2). Everything is computed in
    float64 and rounded to `dtype` once.

    Args:
        schedule: the noise schedule of T timesteps.
        skip: how many timesteps the second term looks back, 1 to T - 1.
        tau: weight of the first term, in [0, 1]; 1 is the loss of DDPM, which draws no e2.
        target: "independent", "same" or "consistent".
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction". The loss is one of noise:
            other predictions are converted.
        dtype: torch.float32, or torch.float64 for float64 samples.

    Returns:
        dtype [T, 9] on the CPU, columns in the order of `TrainingColumn`; row t is timestep t.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown; or the schedule has a timestep where the coefficients do
            not exist: one without data (a_t = 0) for c, or for the noise that a "sample" stands for, one without
            noise (a_t = 1).
    """
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule, got {type(schedule).__name__}")
    total = schedule.num_train_timesteps
    skip = check_integer("skip", skip, 1)
    if skip >= total:
        raise ValueError(f"skip: expected 1 to {total - 1}, less than the schedule's timesteps, got {skip}")
    tau = check_share("tau", tau)
    check_choice("target", target, TARGETS)
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")

    alphas = schedule.alphas_cumprod
    signal, noise = square_root(alphas), square_root(1 - alphas)
    rows = torch.zeros(total, len(TrainingColumn), dtype=torch.float64, device="cpu")
    rows[:, TrainingColumn.SIGNAL] = signal
    rows[:, TrainingColumn.NOISE] = noise
    if prediction_type == "epsilon":
        rows[:, TrainingColumn.EPS_OUTPUT] = 1
    elif prediction_type == "sample":
        rows[:, TrainingColumn.EPS_SAMPLE] = 1 / noise
        rows[:, TrainingColumn.EPS_OUTPUT] = -signal / noise
    else:
        rows[:, TrainingColumn.EPS_SAMPLE] = noise
        rows[:, TrainingColumn.EPS_OUTPUT] = signal
    rows[:, TrainingColumn.WEIGHT] = 1
    if tau < 1:
        a_t, a_s = alphas[skip:], alphas[:-skip]
        later = rows[skip:]
        later[:, TrainingColumn.WEIGHT] = tau
        later[:, TrainingColumn.SKIP_WEIGHT] = 1 - tau
        if target == "consistent":
            later[:, TrainingColumn.SKIP_SCALE] = square_root((a_s - a_t) / (a_s * (1 - a_t)))
            later[:, TrainingColumn.SKIP_FRESH] = square_root(a_t / a_s * (1 - a_s) / (1 - a_t))
            later[:, TrainingColumn.SKIP_NOISE] = later[:, TrainingColumn.SKIP_SCALE]
        else:
            later[:, TrainingColumn.SKIP_SCALE] = square_root((a_s - a_t) / a_t)
            later[:, TrainingColumn.SKIP_FRESH if target == "independent" else TrainingColumn.SKIP_NOISE] = 1
    rounded = rows.to(dtype)
    _check_finite(rounded, alphas)
    return rounded


def _check_finite(rows: Tensor, alphas: Tensor) -> None:
    if bool(rows.isfinite().all()):
        return
    t, column = (~rows.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"schedule: expected one whose coefficients are finite in {rows.dtype}, got {TrainingColumn(column).name} = "
        f"{float(rows[t, column])} at timestep {t}, where alphas_cumprod is {float(alphas[t])}"
    )
