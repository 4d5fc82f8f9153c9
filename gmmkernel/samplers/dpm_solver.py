"""DPM-Solver++(2M), the ODE solver and its SDE form."""

from __future__ import annotations

from functools import partial

import torch

from gmmkernel.mixtures import Mixture
from gmmkernel.samplers.base import row_dtype
from gmmkernel.samplers.multistep import MultistepSampler
from gmmkernel.samplers.thresholding import Thresholding
from gmmkernel.schedules import NoiseSchedule, dpm_solver_coefficients, timesteps_of


class DPMSolverSampler(MultistepSampler):
    """Sample with DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095); `dpm_solver_coefficients` has the equations.

    Each step stores the data it predicts and reads that of the step before.

    Args:
        schedule: the noise schedule the model was trained with.
        num_inference_steps: number of steps S.
        algorithm_type: "dpmsolver++", which draws no noise, or "sde-dpmsolver++".
        solver_order: 2, or 1 (DDIM; DDPM in the limit of small steps).
        lower_order_final: in runs of fewer than 15 steps, make the last step one of order 1.
        mixture: for "sde-dpmsolver++": a mixture for the transition, shared by all steps or made for S steps.
        spacing: "leading", "trailing", "linspace" or "quadratic" timesteps.
        steps_offset: added to the timesteps of "leading" spacing.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        clip_sample_range: clip the predicted data to [-range, range]; None: do not clip.
        dynamic_thresholding_ratio: the quantile of |x0| in each sample that becomes the bound to clip to and divide by
            (Saharia et al. 2022, arXiv 2205.11487), computed before the launch; None: no thresholding.
        sample_max_value: the largest such bound.
        set_alpha_to_one: end at a = 1, without noise; otherwise at alphas_cumprod[0].
        guidance_scale: classifier-free guidance o_u + scale (o_c - o_u); the model must then return a pair.
        learned_variance: the model returns twice the channels; the second half is dropped.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, unknown, or the mixture was made for another number of steps, or is
            given to the ODE solver.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        *,
        algorithm_type: str = "dpmsolver++",
        solver_order: int = 2,
        lower_order_final: bool = True,
        mixture: Mixture | None = None,
        spacing: str = "leading",
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float = 1.0,
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
            dpm_solver_coefficients,
            schedule,
            visited,
            algorithm_type=algorithm_type,
            solver_order=solver_order,
            lower_order_final=lower_order_final,
            prediction_type=prediction_type,
            clip_sample_range=clip_sample_range,
            set_alpha_to_one=set_alpha_to_one,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale,
            dtype=columns,
        )

        if mixture is not None and algorithm_type == "dpmsolver++":
            raise ValueError(
                "mixture: expected None with algorithm_type='dpmsolver++', whose steps draw no noise; "
                "'sde-dpmsolver++' takes one"
            )
        super().__init__(
            visited,
            rows,
            stored_prediction="x0",
            depth=solver_order - 1,
            mixture=mixture,
            guided=guidance_scale is not None,
            learned_variance=learned_variance,
            thresholding=Thresholding.of(dynamic_thresholding_ratio, sample_max_value, clip_sample_range),
            device=device,
            dtype=dtype,
            backend=backend,
        )
