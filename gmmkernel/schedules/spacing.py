"""Which of the training timesteps a sampler visits."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmkernel._checks import check_choice, check_integer
from gmmkernel.schedules.noise import NoiseSchedule

SPACINGS = ("leading", "trailing", "linspace", "quadratic")
"""Names of the timestep spacings: diffusers' three, and the quadratic one of the DDIM paper's code."""


def timesteps(
    num_inference_steps: int,
    *,
    num_train_timesteps: int = 1000,
    spacing: str = "leading",
    steps_offset: int = 0,
) -> Tensor:
    """Return the timesteps of a sampler, in the order it visits them.

    With T = `num_train_timesteps`, n = `num_inference_steps` and i = 0 .. n - 1, in ascending order:

        leading    i floor(T/n) + steps_offset            diffusers' default; never visits T - 1 for n < T
        trailing   round(T - (n - 1 - i) T/n) - 1         always visits T - 1 (Lin et al. 2023)
        linspace   round(i (T - 1)/(n - 1))               both ends
        quadratic  floor((i sqrt(0.8 T)/(n - 1))^2) + steps_offset     finer near the data (Song et al. 2021)

    Half-way cases round to even. leading, trailing and linspace are those of diffusers' DDIMScheduler, except that one
    step (n = 1) starts at T - 1 with every spacing, where the formulas of three say 0: a step from there would
    return its noise.

    Args:
        num_inference_steps: n, from 1 to T.
        num_train_timesteps: T.
        spacing: one of the four above.
        steps_offset: added to the leading and quadratic timesteps; Stable Diffusion's checkpoints use 1.

    Returns:
        int64 [n] on the CPU, strictly descending, in 0 .. T - 1.

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, the spacing is unknown, `steps_offset` is given to a spacing
            that has none or is not below T, a timestep falls outside the schedule, or the quadratic spacing would
            visit a timestep twice (n - 1 > sqrt(0.8 T)).
    """
    total = check_integer("num_train_timesteps", num_train_timesteps, 1)
    count = check_integer("num_inference_steps", num_inference_steps, 1, total)
    check_choice("spacing", spacing, SPACINGS)
    steps_offset = check_integer("steps_offset", steps_offset, 0)
    if steps_offset and spacing in ("trailing", "linspace"):
        raise ValueError(
            f"steps_offset: expected 0 with spacing={spacing!r}, which has no offset, got {steps_offset}"
        )

    ascending: NDArray[np.generic]
    if count == 1 and steps_offset < total:
        ascending = np.array([total - 1])
    elif spacing == "leading":
        ascending = np.arange(count) * (total // count) + steps_offset
    elif spacing == "trailing":
        # arange may return one value too many, by rounding, after the n wanted.
        ascending = (np.round(np.arange(total, 0, -total / count))[:count] - 1)[::-1]
    elif spacing == "linspace":
        ascending = np.round(np.linspace(0, total - 1, count))
    else:
        root = np.linspace(0, math.sqrt(0.8 * total), count)
        ascending = np.floor(root * root) + steps_offset
    chosen = ascending[::-1].astype(np.int64)

    if chosen[0] >= total:
        raise ValueError(
            f"steps_offset: expected an offset that keeps every timestep in 0 .. {total - 1}, "
            f"got {steps_offset}, which makes the first one {chosen[0]}"
        )
    if np.any(chosen[1:] == chosen[:-1]):
        raise ValueError(
            f"num_inference_steps: expected at most {1 + math.floor(math.sqrt(0.8 * total))} "
            f"with spacing={spacing!r} and num_train_timesteps={total}, or a timestep repeats, got {count}"
        )
    return torch.from_numpy(chosen)


def timesteps_of(
    schedule: NoiseSchedule, num_inference_steps: int, *, spacing: str = "leading", steps_offset: int = 0
) -> Tensor:
    """Return `timesteps` for the T of a schedule.

    Raises:
        TypeError: `schedule` is not a NoiseSchedule, or a number not an int.
        ValueError: as `timesteps` raises it.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule, got {type(schedule).__name__}")
    return timesteps(
        num_inference_steps,
        num_train_timesteps=schedule.num_train_timesteps,
        spacing=spacing,
        steps_offset=steps_offset,
    )
