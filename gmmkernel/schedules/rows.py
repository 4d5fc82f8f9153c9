"""What the coefficient rows of every sampler share: the steps they are for, the predictions, the rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_number
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import Column
from gmmkernel.schedules.noise import NoiseSchedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
"""What a model may predict, by diffusers' names."""

BEFORE_SCHEDULE = -1
"""The timestep before the first of the schedule, where a step to the data ends."""


def alphas_of_steps(
    schedule: NoiseSchedule, timesteps: Tensor, prev_timesteps: Tensor | None, *, set_alpha_to_one: bool
) -> tuple[Tensor, Tensor]:
    """Return a_t and a_s of the steps t -> s, float64 [S] each.

    Args:
        schedule: the noise schedule of T timesteps.
        timesteps: int64 [S] on the CPU, strictly descending, in 0 .. T - 1.
        prev_timesteps: int64 [S] on the CPU, -1 <= s < t, where -1 stands for the end of the schedule; None: the next
            entry of `timesteps`, and -1 after the last.
        set_alpha_to_one: a at the end of the schedule is 1 if True, else alphas_cumprod[0].

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a timestep is out of range or out of order, a step starts where there is no noise left (a_t = 1),
            or ends where there is no data (a_s = 0).
    """
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule, got {type(schedule).__name__}")
    timesteps = check_timesteps(timesteps, schedule.num_train_timesteps)
    if prev_timesteps is None:
        prev_timesteps = torch.cat([timesteps[1:], timesteps.new_tensor([BEFORE_SCHEDULE])])
    else:
        prev_timesteps = _check_prev_timesteps(prev_timesteps, timesteps)
    alphas = schedule.alphas_cumprod
    end = alphas.new_ones(1) if set_alpha_to_one else alphas[:1]
    a_t = alphas[timesteps]
    a_s = torch.where(prev_timesteps == BEFORE_SCHEDULE, end, alphas[prev_timesteps.clamp(min=0)])
    for row, (t, a, a_next) in enumerate(zip(timesteps.tolist(), a_t.tolist(), a_s.tolist(), strict=True)):
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
    return a_t, a_s


def check_levels(name: str, levels: Tensor, *, high: float = math.inf) -> None:
    """Accept where steps start and end: float64 [S + 1] on the CPU, strictly descending, finite, from 0 to `high`.

    Raises:
        TypeError: it is not a float64 tensor.
        ValueError: it is anything else than that.
    """
    if not isinstance(levels, Tensor) or levels.dtype != torch.float64:
        got = levels.dtype if isinstance(levels, Tensor) else type(levels).__name__
        raise TypeError(f"{name}: expected a torch.float64 tensor, got {got}")
    if levels.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got {levels.device}")
    if levels.ndim != 1 or levels.numel() < 2:
        raise ValueError(f"{name}: expected shape [S + 1] with S >= 1, got {list(levels.shape)}")
    outside = ~((levels >= 0) & (levels <= high) & levels.isfinite())
    if bool(outside.any()):
        index = int(outside.nonzero()[0])
        allowed = "finite numbers >= 0" if high == math.inf else f"values in [0, {high:g}]"
        raise ValueError(f"{name}: expected {allowed}, got {float(levels[index])} at index {index}")
    rising = levels[1:] >= levels[:-1]
    if bool(rising.any()):
        index = int(rising.nonzero()[0]) + 1
        raise ValueError(
            f"{name}: expected strictly descending values, got {float(levels[index])} at index {index} "
            f"after {float(levels[index - 1])}"
        )


def check_signal(a_t: Tensor, timesteps: Tensor) -> None:
    """Refuse steps that start where no data is left.

    Raises:
        ValueError: a_t is 0 somewhere.
    """
    if bool((a_t == 0).any()):
        row = int((a_t == 0).nonzero()[0])
        raise ValueError(
            f"timesteps: expected steps that start where alphas_cumprod > 0, got row {row} "
            f"(timestep {int(timesteps[row])}), where no data is left"
        )


def prediction_rows(
    a_t: Tensor,
    timesteps: Tensor,
    *,
    prediction_type: str,
    clip_sample_range: float | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Return float64 rows [S, 16] that predict the data and the noise from sample and model output, and do no more.

    With (x0, eps) = (X0_SAMPLE x + X0_OUTPUT o, EPS_SAMPLE x + EPS_OUTPUT o) and a = a_t:

        epsilon        x0 = (x - sqrt(1 - a) o)/sqrt(a)         eps = o
        sample         x0 = o                                   eps = (x - sqrt(a) o)/sqrt(1 - a)
        v_prediction   x0 = sqrt(a) x - sqrt(1 - a) o           eps = sqrt(1 - a) x + sqrt(a) o

    Args:
        a_t: float64 [S], alphas_cumprod where each step starts.
        timesteps: int64 [S], the timesteps that errors name.
        prediction_type: what the model predicts, one of the three.
        clip_sample_range: clip x0 to [-clip_sample_range, clip_sample_range]; None: do not clip.
        guidance_scale: weight of the conditional output where a step gets a pair.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: the prediction type is unknown, a number out of range, or epsilon does not determine the data.
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    rows = empty_rows(len(a_t), clip_sample_range=clip_sample_range, guidance_scale=guidance_scale)
    signal, noise = square_root(a_t), square_root(1 - a_t)
    if prediction_type == "epsilon":
        if bool((a_t == 0).any()):
            row = int((a_t == 0).nonzero()[0])
            raise ValueError(
                f"prediction_type: expected 'sample' or 'v_prediction' at row {row} (timestep "
                f"{int(timesteps[row])}), where alphas_cumprod is 0 and epsilon does not determine the data, "
                "got 'epsilon'"
            )
        rows[:, Column.X0_SAMPLE], rows[:, Column.X0_OUTPUT] = 1 / signal, -noise / signal
        rows[:, Column.EPS_OUTPUT] = 1
    elif prediction_type == "sample":
        rows[:, Column.X0_OUTPUT] = 1
        rows[:, Column.EPS_SAMPLE], rows[:, Column.EPS_OUTPUT] = 1 / noise, -signal / noise
    else:
        rows[:, Column.X0_SAMPLE], rows[:, Column.X0_OUTPUT] = signal, -noise
        rows[:, Column.EPS_SAMPLE], rows[:, Column.EPS_OUTPUT] = noise, signal
    return rows


def empty_rows(count: int, *, clip_sample_range: float | None = None, guidance_scale: float = 1.0) -> Tensor:
    """Return float64 rows [count, 16] of zeros but for clipping bounds and guidance scale, which are checked.

    Raises:
        TypeError: an argument is not a number.
        ValueError: `clip_sample_range` is not above 0, or a number is not finite.
    """
    limit = math.inf
    if clip_sample_range is not None:
        limit = check_number("clip_sample_range", clip_sample_range, above=0)
    rows = torch.zeros(count, len(Column), dtype=torch.float64, device="cpu")
    rows[:, Column.CLIP_MIN], rows[:, Column.CLIP_MAX] = -limit, limit
    rows[:, Column.GUIDANCE] = check_number("guidance_scale", guidance_scale)
    return rows


def rounded(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 rows in `dtype`, rounded once.

    Raises:
        TypeError: `dtype` is not float32 or float64.
        ValueError: a coefficient is too large for it.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    found = rows.to(dtype)
    lost = rows.isfinite() & ~found.isfinite()
    if bool(lost.any()):
        row, column = lost.nonzero()[0].tolist()
        raise ValueError(
            f"dtype: expected one that holds every coefficient, got {dtype} "
            f"for {Column(column).name} = {float(rows[row, column]):g} at row {row}"
        )
    return found


def check_timesteps(timesteps: Tensor, total: int) -> Tensor:
    """Return the timesteps of a sampler as int64.

    Raises:
        TypeError: they are no tensor of int64 or int32.
        ValueError: they are not [S] on the CPU, not in 0 .. total - 1, or not strictly descending.
    """
    timesteps = _check_steps_tensor("timesteps", timesteps)
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
    return timesteps


def _check_prev_timesteps(prev_timesteps: Tensor, timesteps: Tensor) -> Tensor:
    prev_timesteps = _check_steps_tensor("prev_timesteps", prev_timesteps)
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
    return prev_timesteps


def _check_steps_tensor(name: str, steps: Tensor) -> Tensor:
    if not isinstance(steps, Tensor) or steps.dtype not in (torch.int64, torch.int32):
        got = steps.dtype if isinstance(steps, Tensor) else type(steps).__name__
        raise TypeError(f"{name}: expected a tensor of torch.int64 or torch.int32, got {got}")
    if steps.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got {steps.device}")
    if steps.ndim != 1:
        raise ValueError(f"{name}: expected shape [S], got {list(steps.shape)}")
    return steps.long()
