"""DDIM, DDPM and DDIM-GMM."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.mixtures import Mixture
from gmmkernel.samplers.base import Sampler, row_dtype
from gmmkernel.samplers.thresholding import Thresholding
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, timesteps_of


class DDIMSampler(Sampler):
    """Sample with DDIM (Song et al. 2021), DDPM (eta = 1) or, with a mixture, DDIM-GMM (arXiv 2311.04938).

    `ddim_coefficients` has the equations.

    Args:
        schedule: the noise schedule the model was trained with.
        num_inference_steps: number of steps S.
        eta: share of the DDPM noise, 0 (DDIM) to 1 (DDPM).
        mixture: a mixture for the transition, shared by all steps or made for S steps; None: the Gaussian step.
        spacing: "leading", "trailing", "linspace" or "quadratic" timesteps.
        steps_offset: added to the timesteps of "leading" spacing.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        clip_sample_range: clip the predicted data to [-range, range]; None: do not clip.
        dynamic_thresholding_ratio: the quantile of |x0| in each sample that becomes the bound to clip to and divide by
            (Saharia et al. 2022, arXiv 2205.11487), computed before the launch; None: no thresholding.
        sample_max_value: the largest such bound.
        use_clipped_model_output: derive the noise from the clipped data.
        set_alpha_to_one: end at a = 1, without noise; otherwise at alphas_cumprod[0].
        guidance_scale: classifier-free guidance o_u + scale (o_c - o_u); the model must then return a pair.
        learned_variance: the model returns twice the channels; the second half is dropped.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, unknown, or the mixture was made for another number of steps.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        *,
        eta: float = 0.0,
        mixture: Mixture | None = None,
        spacing: str = "leading",
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float | None = None,
        dynamic_thresholding_ratio: float | None = None,
        sample_max_value: float = 1.0,
        use_clipped_model_output: bool = False,
        set_alpha_to_one: bool = True,
        guidance_scale: float | None = None,
        learned_variance: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        columns = row_dtype(dtype)
        visited = timesteps_of(schedule, num_inference_steps, spacing=spacing, steps_offset=steps_offset)
        rows = ddim_coefficients(
            schedule,
            visited,
            eta=eta,
            prediction_type=prediction_type,
            clip_sample_range=clip_sample_range,
            use_clipped_model_output=use_clipped_model_output,
            set_alpha_to_one=set_alpha_to_one,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale,
            dtype=columns,
        )
        super().__init__(
            visited,
            rows,
            mixture=mixture,
            guided=guidance_scale is not None,
            learned_variance=learned_variance,
            thresholding=Thresholding.of(dynamic_thresholding_ratio, sample_max_value, clip_sample_range),
            device=device,
            dtype=dtype,
            backend=backend,
        )
        self._eta = eta

    def with_sigma(self, sigma: Tensor) -> DDIMSampler:
        """Return the Gaussian sampler with the same mean and other noise levels.

        Args:
            sigma: float64 [S], standard deviation of each step's noise, finite and at least 0.

        Returns:
            A new sampler without a mixture.

        Raises:
            TypeError: `sigma` is not a float64 tensor.
            ValueError: `sigma` is not [S], or has an entry that is negative or not finite.
        """
        if not isinstance(sigma, Tensor) or sigma.dtype != torch.float64:
            got = sigma.dtype if isinstance(sigma, Tensor) else type(sigma).__name__
            raise TypeError(f"sigma: expected a torch.float64 tensor, got {got}")
        steps = self.coefficients.shape[0]
        if sigma.shape != (steps,):
            raise ValueError(f"sigma: expected shape [{steps}], got {list(sigma.shape)}")
        if not bool(((sigma >= 0) & sigma.isfinite()).all()):
            raise ValueError(f"sigma: expected finite numbers >= 0, got {sigma.tolist()}")
        rows = self.coefficients.clone()
        rows[:, Column.SIGMA] = sigma.to(rows)
        changed = self._bound_to(self.timesteps, rows, None)
        changed._eta = None
        return changed
