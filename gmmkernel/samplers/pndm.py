"""PNDM: pseudo linear multistep and pseudo Runge-Kutta methods."""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from torch import Tensor

from gmmkernel._checks import check_integer
from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.base import Sampler, row_dtype
from gmmkernel.samplers.multistep import check_length
from gmmkernel.schedules import NoiseSchedule, pndm_coefficients, timesteps_of
from gmmkernel.schedules.pndm import RUNGE_KUTTA_STEPS

_STORED = 3
_CALLS = 4  # of a Runge-Kutta step


class PNDMSampler(Sampler):
    """Sample with PNDM (Liu et al. 2022, arXiv 2202.09778); `pndm_coefficients` has the equations.

    The model is called S + 9 times (F-PNDM), or S + 1 times (PLMS); `timesteps` and the indices of `step` and of
    callbacks count these calls. No noise is drawn after the start.

    Args:
        schedule: the noise schedule the model was trained with.
        num_inference_steps: number of steps S; at least 4 without `skip_prk_steps`.
        skip_prk_steps: PLMS, as Stable Diffusion's checkpoints set it: begin with low orders instead of three
            Runge-Kutta steps.
        spacing: "leading", "trailing", "linspace" or "quadratic" timesteps.
        steps_offset: added to the timesteps of "leading" spacing.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        set_alpha_to_one: end at a = 1, without noise; otherwise at alphas_cumprod[0].
        guidance_scale: classifier-free guidance o_u + scale (o_c - o_u); the model must then return a pair.
        learned_variance: the model returns twice the channels; the second half is dropped.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown.
    """

    stored_prediction: PredictionName = "epsilon"

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        *,
        skip_prk_steps: bool = False,
        spacing: str = "leading",
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        set_alpha_to_one: bool = True,
        guidance_scale: float | None = None,
        learned_variance: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        columns = row_dtype(dtype)
        visited = timesteps_of(schedule, num_inference_steps, spacing=spacing, steps_offset=steps_offset)
        if not skip_prk_steps and len(visited) <= RUNGE_KUTTA_STEPS:
            raise ValueError(
                f"num_inference_steps: expected at least {RUNGE_KUTTA_STEPS + 1} without skip_prk_steps, "
                f"got {len(visited)}"
            )

        evaluations = partial(
            pndm_coefficients,
            schedule,
            skip_prk_steps=skip_prk_steps,
            prediction_type=prediction_type,
            set_alpha_to_one=set_alpha_to_one,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale,
            dtype=columns,
        )
        super().__init__(
            *evaluations(visited),
            guided=guidance_scale is not None,
            learned_variance=learned_variance,
            device=device,
            dtype=dtype,
            backend=backend,
        )
        self._evaluations, self._visited = evaluations, visited
        self._runge_kutta_calls = 0 if skip_prk_steps else _CALLS * RUNGE_KUTTA_STEPS

    def starting_at(self, first_step: int) -> tuple[Self, int]:
        """Return the sampler of a run over the steps from `first_step` on, with calls of its own; and 0.

        F-PNDM begins with its Runge-Kutta steps again, and so not within the last three steps.
        """
        last = len(self._visited) - (RUNGE_KUTTA_STEPS + 1 if self._runge_kutta_calls else 1)
        first_step = check_integer("first_step", first_step, 0, last)
        if first_step == 0:
            return self, 0
        visited = self._visited[first_step:]
        changed = self._bound_to(*self._evaluations(visited), self.mixture)
        changed._visited = visited
        return changed, 0

    @property
    def _steps(self) -> int:
        return len(self._visited)

    def _read(self, index: int, history: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Histories: [e1, e2, e3]; in a Runge-Kutta step [b, k1, k2, k3, e1, e2]; [b, e1] where a step is redone."""
        if index < self._runge_kutta_calls:
            step, call = divmod(index, _CALLS)
            check_length(history, step if call == 0 else step + 1 + call, index)
            return history[: (0, 1, 1, _CALLS)[call]]
        if self._runge_kutta_calls:
            expected = _STORED
        elif index < 2:
            expected = 2 * index
        else:
            expected = min(index - 1, _STORED)
        check_length(history, expected, index)
        return history

    def _write(
        self, index: int, history: tuple[Tensor, ...], sample: Tensor, prediction: Tensor
    ) -> tuple[Tensor, ...]:
        if index < self._runge_kutta_calls:
            call = index % _CALLS
            if call == 0:
                return (sample, prediction, *history)
            if call < _CALLS - 1:
                return (*history[: 1 + call], prediction, *history[1 + call :])
            first, *earlier = history[1], *history[_CALLS:]
            return (first, *earlier)[:_STORED]
        if not self._runge_kutta_calls and index < 2:
            return (sample, prediction) if index == 0 else history[1:]
        return (prediction, *history)[:_STORED]
