"""Which steps a run of DDIM has, and their coefficient rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, timesteps
from gmmkernel.schedules.rows import BEFORE_SCHEDULE

_logger = logging.get_logger(__name__)


def ddim_timesteps(count: int, total: int, spacing: str, steps_offset: int) -> Tensor:
    """Return the timesteps of `count` steps, int64 [count] on the CPU, as diffusers' DDIMScheduler chooses them.

    Those of `gmmkernel.timesteps`, but that a single step with "leading" or "linspace" spacing starts where diffusers
    has it: at the end of the schedule, of which a warning tells.

    Raises:
        ValueError: a timestep falls outside of the schedule.
    """
    offset = steps_offset if spacing == "leading" else 0
    if count > 1 or spacing == "trailing":
        return timesteps(count, num_train_timesteps=total, spacing=spacing, steps_offset=offset)
    if not 0 <= offset < total:
        raise ValueError(
            f"steps_offset: expected an offset that keeps every timestep in 0 .. {total - 1}, got {offset}, which "
            f"makes the first one {offset}"
        )
    if total > 1:
        _logger.warning(
            f"num_inference_steps=1 with timestep_spacing={spacing!r} visits timestep {offset}, where a sample has the "
            "least noise; timestep_spacing='trailing' starts at the one with the most."
        )
    return torch.tensor([offset], dtype=torch.int64, device="cpu")


@dataclass(frozen=True, eq=False)
class DDIMSteps:
    """Makes the coefficient rows of the steps t -> t - stride.

    Attributes:
        schedule: the noise schedule.
        timesteps: int64 [S], t of each step.
        stride: T // S, also where the next timestep that is visited is another one: diffusers has it so.
        prediction_type: as `ddim_coefficients` has it, and the next two.
        clip_sample_range: the same.
        set_alpha_to_one: the same.
    """

    schedule: NoiseSchedule
    timesteps: Tensor
    stride: int
    prediction_type: str
    clip_sample_range: float | None
    set_alpha_to_one: bool

    def signature(self) -> tuple[object, ...]:
        """Return all of this in a form that can be compared."""
        tensors = (self.schedule.alphas_cumprod.tolist(), self.timesteps.tolist())
        return (*tensors, self.stride, self.prediction_type, self.clip_sample_range, self.set_alpha_to_one)

    def __call__(
        self,
        *,
        eta: float,
        clipped: bool,
        dtype: torch.dtype = torch.float32,
        at: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the rows of the run, of NaN for steps that cannot be done, or those of the timesteps `at`.

        Raises:
            ValueError: `eta` is too large; or a step of `at` cannot be done.
        """
        options: dict[str, Any] = {
            "eta": eta,
            "use_clipped_model_output": clipped,
            "prediction_type": self.prediction_type,
            "clip_sample_range": self.clip_sample_range,
            "set_alpha_to_one": self.set_alpha_to_one,
            "dtype": dtype,
        }
        if at is None:
            return self._of_run(options)
        rows = []
        for timestep in at:
            t = torch.tensor([timestep], dtype=torch.int64, device="cpu")
            rows.append(ddim_coefficients(self.schedule, t, prev_timesteps=self._before(t), **options))
            ends = timestep < self.stride or timestep == self.timesteps[-1]
            rows[-1][:, Column.OFFSET] = 0 if ends else 1  # as in the last row of a run, or those before it
        return torch.cat(rows)

    def _of_run(self, options: dict[str, Any]) -> Tensor:
        can_be_done = self._can_be_done()
        done = self.timesteps[can_be_done]
        rows = torch.full((len(self.timesteps), len(Column)), torch.nan, dtype=options["dtype"], device="cpu")
        if len(done):
            rows[can_be_done] = ddim_coefficients(
                self.schedule, done, prev_timesteps=self._before(done), **options
            )
        rows[can_be_done, Column.OFFSET] = 1
        rows[-1, Column.OFFSET] *= 0
        return rows

    def _before(self, t: Tensor) -> Tensor:
        return (t - self.stride).clamp(min=BEFORE_SCHEDULE)

    def _can_be_done(self) -> Tensor:
        """Return for each step whether `ddim_coefficients` has a row for it: bool [S]."""
        alphas = self.schedule.alphas_cumprod
        a_t, before = alphas[self.timesteps.clamp(max=len(alphas) - 1)], self._before(self.timesteps)
        at_end = (before == BEFORE_SCHEDULE) & self.set_alpha_to_one
        data_left = at_end | (alphas[before.clamp(0, len(alphas) - 1)] > 0)
        if self.prediction_type == "epsilon":
            data_left &= a_t > 0
        return data_left & (a_t < 1)
