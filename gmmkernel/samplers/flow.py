"""Rectified flow: the Euler ODE sampler, its stochastic families, and mixtures on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gmmkernel._checks import check_integer
from gmmkernel.mixtures import Mixture
from gmmkernel.samplers.base import Sampler, row_dtype
from gmmkernel.schedules import flow_coefficients, flow_sde_coefficients, flow_times
from gmmkernel.schedules.flow_sde import dynamics_options
from gmmkernel.schedules.rows import check_levels


class FlowSampler(Sampler):
    """Sample a rectified flow (Liu et al. 2022, arXiv 2209.03003); `flow_coefficients` has the equations.

    The model is called with t times `num_train_timesteps`, float32 (float64 beside float64 samples).

    Args:
        num_inference_steps: number of steps S.
        times: float64 [S + 1] on the CPU, descending from at most 1 to 0: the times themselves, as a pipeline's
            scheduler has them; None: those of `flow_times` with the next option.
        shift: spends more of the steps near the noise where it is above 1.
        eta: share of the noise that each step draws anew: 0 is the Euler step of the ODE, 1 draws all of it.
        dynamics: noise for reinforcement learning in place of that of `eta`: "flow-sde", "dance-sde", "cps", "ddim" or
            "ode", which `flow_sde_coefficients` describes, and the next three.
        noise_level: with `dynamics` but "ode", how much noise: a number, or one for each step; None: 0.7.
        sde_steps: with `dynamics`, the steps that draw noise; None: all.
        sigma_max: with "flow-sde", what stands for a time of 1; None: the second time.
        mixture: a mixture for the transition (arXiv 2311.04938), shared by all steps or made for S steps.
        num_train_timesteps: the model is called with t, from 1 to above 0, times this.
        clip_sample_range: clip the predicted data to [-range, range]; None: do not clip.
        guidance_scale: classifier-free guidance v_u + scale (v_c - v_u); the model must then return a pair.
        learned_variance: the model returns twice the channels; the second half is dropped.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the mixture was made for another number of steps.
    """

    def __init__(
        self,
        num_inference_steps: int,
        *,
        times: Tensor | None = None,
        shift: float = 1.0,
        eta: float = 0.0,
        dynamics: str | None = None,
        noise_level: float | Sequence[float] | Tensor | None = None,
        sde_steps: Sequence[int] | None = None,
        sigma_max: float | None = None,
        mixture: Mixture | None = None,
        num_train_timesteps: int = 1000,
        clip_sample_range: float | None = None,
        guidance_scale: float | None = None,
        learned_variance: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        columns = row_dtype(dtype)
        num_train_timesteps = check_integer("num_train_timesteps", num_train_timesteps, 1)
        if times is None:
            times = flow_times(num_inference_steps, shift=shift)
        else:
            check_levels("times", times, high=1)
            steps = check_integer("num_inference_steps", num_inference_steps, 1)
            if shift != 1 or len(times) != steps + 1:
                raise ValueError(
                    f"times: expected shape [{steps + 1}] for {steps} steps, and no shift beside them, got shape "
                    f"{list(times.shape)} and shift = {shift:g}"
                )
        options: dict[str, Any] = {
            "clip_sample_range": clip_sample_range,
            "guidance_scale": 1.0 if guidance_scale is None else guidance_scale,
            "dtype": columns,
        }
        noisy = dynamics_options(
            dynamics, eta=eta, noise_level=noise_level, sde_steps=sde_steps, sigma_max=sigma_max
        )
        if noisy is None:
            rows = flow_coefficients(times, eta=eta, **options)
        else:
            rows = flow_sde_coefficients(times, **noisy, **options).coefficients
        super().__init__(
            (times[:-1] * num_train_timesteps).to(columns),
            rows,
            mixture=mixture,
            guided=guidance_scale is not None,
            learned_variance=learned_variance,
            device=device,
            dtype=dtype,
            backend=backend,
        )
        self._eta = None if noisy else eta
