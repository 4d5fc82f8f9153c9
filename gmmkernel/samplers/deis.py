"""DEIS: an exponential integrator of the probability-flow ODE."""

from __future__ import annotations

from functools import partial

import torch

from gmmkernel.samplers.base import row_dtype
from gmmkernel.samplers.multistep import MultistepSampler
from gmmkernel.schedules import NoiseSchedule, deis_coefficients, timesteps_of


class DEISSampler(MultistepSampler):
    """Sample with DEIS (Zhang and Chen 2023, arXiv 2204.13902); `deis_coefficients` has the equations.

    Each step stores the noise it predicts and reads that of up to two steps before. No noise is drawn after the start.

    Args:
        schedule: the noise schedule the model was trained with.
        num_inference_steps: number of steps S.
        solver_order: 1 (DDIM), 2 or 3.
        interpolation: "log-rho", as diffusers has it, or "rho" (the paper's rho-AB).
        lower_order_final: in runs of fewer than 15 steps, lower the order of the last two.
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

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        *,
        solver_order: int = 3,
        interpolation: str = "log-rho",
        lower_order_final: bool = True,
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
        rows = partial(
            deis_coefficients,
            schedule,
            visited,
            solver_order=solver_order,
            interpolation=interpolation,
            lower_order_final=lower_order_final,
            prediction_type=prediction_type,
            set_alpha_to_one=set_alpha_to_one,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale,
            dtype=columns,
        )

        super().__init__(
            visited,
            rows,
            stored_prediction="epsilon",
            depth=solver_order - 1,
            guided=guidance_scale is not None,
            learned_variance=learned_variance,
            device=device,
            dtype=dtype,
            backend=backend,
        )
