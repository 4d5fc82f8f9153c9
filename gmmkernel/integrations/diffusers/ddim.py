"""A drop-in for diffusers' DDIMScheduler whose transition may be a Gaussian mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from gmmkernel._checks import check_choice, check_flag
from gmmkernel.integrations.diffusers.configs import DDIM_UNSUPPORTED
from gmmkernel.integrations.diffusers.mixin import MixtureScheduler
from gmmkernel.integrations.diffusers.seeds import Generators
from gmmkernel.integrations.diffusers.transition import MixtureOptions
from gmmkernel.integrations.diffusers.visited import Visited
from gmmkernel.ops import gmm_step
from gmmkernel.ops.checks import check_like_sample
from gmmkernel.samplers.thresholding import dynamic_thresholding
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, timesteps
from gmmkernel.schedules.noise import NOISE_SCHEDULES
from gmmkernel.schedules.rows import PREDICTION_TYPES

_SPACINGS = ("leading", "trailing", "linspace")


class GMMDDIMScheduler(MixtureScheduler, DDIMScheduler):
    """DDIM (Song et al. 2021) with the Gaussian-mixture transition of DDIM-GMM (arXiv 2311.04938), for pipelines.

    `pipe.scheduler = GMMDDIMScheduler.from_config(pipe.scheduler.config)` puts it into a pipeline. The options of
    diffusers' DDIMScheduler have their names, defaults and meaning, the previous timestep t - T // n included; with
    `offset_scale=0` the steps are its steps, computed in float32 for samples of every low-precision type. A step is
    one launch and reads nothing back from a device. Options are read when `set_timesteps` is called.

    A mixture is made at the first step, when the number of elements of a sample is known.

    Args:
        num_train_timesteps: T, and so on up to `rescale_betas_zero_snr`: as diffusers' DDIMScheduler has them.
        beta_start: the same.
        beta_end: the same.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: the same.
        clip_sample: the same.
        set_alpha_to_one: the same.
        steps_offset: the same: for "leading" timesteps only.
        prediction_type: "epsilon", "sample" or "v_prediction".
        thresholding: the same; see `gmmkernel.dynamic_thresholding`.
        dynamic_thresholding_ratio: the same.
        clip_sample_range: the same.
        sample_max_value: the same.
        timestep_spacing: "leading", "trailing" or "linspace".
        rescale_betas_zero_snr: the same.
        n_components: K, components of the mixture; 1 is the Gaussian step.
        offset_scale: length of the offsets in units of the sample, >= 0; 0 is the Gaussian step, unless
            there is a rho. What a step adds per element depends on offset_scale^2 / D.
        variant: kind of mixture, one of `gmmkernel.mixtures.VARIANTS`.
        shared_mixture: all steps share one mixture; otherwise each has its own.
        weights: K positive numbers, or None for equal weights.
        mixture_seed: seed of the offsets.
        rho: for exact variants, instead of a scale: share (<= 0.999999) of the largest that each step allows.
        learned_variance: the model's output has 2C channels beside samples of C, the second half a variance, which
            is dropped. For models whose pipeline does not drop it.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range or unknown.
    """

    _unsupported = DDIM_UNSUPPORTED
    alphas_cumprod: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        n_components: int = 8,
        offset_scale: float = 0.0,
        variant: str = "ortho",
        shared_mixture: bool = False,
        weights: Sequence[float] | None = None,
        mixture_seed: int = 0,
        rho: float | None = None,
        learned_variance: bool = False,
    ) -> None:
        check_choice("beta_schedule", beta_schedule, NOISE_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, _SPACINGS)
        check_flag("learned_variance", learned_variance)
        super().__init__(  # type: ignore[no-untyped-call]
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self._prepare()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the timesteps and begin a run.

        Args:
            num_inference_steps: n, from 1 to T.
            device: where `timesteps` is to be.

        Raises:
            TypeError: `num_inference_steps` is not an int.
            ValueError: it is out of range, or an option of the config does not fit.
        """
        config = self.config
        total, spacing = config.num_train_timesteps, config.timestep_spacing
        visited = timesteps(
            num_inference_steps,
            num_train_timesteps=total,
            spacing=spacing,
            steps_offset=config.steps_offset if spacing == "leading" else 0,
        )
        # The numbers that the network was trained with and `add_noise` uses, which are diffusers' float32 ones.
        schedule = NoiseSchedule(self.alphas_cumprod.cpu().double())
        options: dict[str, Any] = {
            "prediction_type": config.prediction_type,
            "clip_sample_range": config.clip_sample_range if config.clip_sample else None,
            "set_alpha_to_one": config.set_alpha_to_one,
        }
        rows = partial(
            ddim_coefficients,
            schedule,
            visited,
            prev_timesteps=(visited - total // num_inference_steps).clamp(min=-1),
            **options,
        )
        signature = (spacing, config.steps_offset, *options.values(), *schedule.alphas_cumprod.tolist())
        self._transition.begin(MixtureOptions.of(config), num_inference_steps, rows, signature)
        self._thresholding = (
            {"ratio": config.dynamic_thresholding_ratio, "max_value": config.sample_max_value}
            if config.thresholding
            else None
        )
        self._drops_variance = config.learned_variance
        self._total = total
        self._visited = Visited(visited, device)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self._visited.timesteps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Do one step, as one launch of `gmm_step`.

        Args:
            model_output: [B, C, ...], the model's prediction; of the sample's type or float32, or bfloat16 or
                float16 beside a float32 sample.
            timestep: one of `timesteps`, or an int64 tensor [B] with one for each sample. A tensor that is on a
                device is not read: a value that is not in the schedule fills its sample with NaN there.
            sample: [B, C, ...] float32, bfloat16, float16 or float64.
            eta: share of the DDPM noise, 0 (DDIM) to 1 (DDPM).
            use_clipped_model_output: derive the noise from the clipped data; None, which DDIMPipeline passes, is False.
            generator: a CPU generator, or a list with one for each sample; None: PyTorch's default one. One seed a
                sample is drawn from it at the first step of a run that draws anything; `set_timesteps` begins a run.
            variance_noise: like `sample`, standard normal noise to use in place of the package's; only for Gaussian
                steps, and not together with a generator.
            return_dict: return a DDIMSchedulerOutput, otherwise a tuple.

        Returns:
            The next sample and the data predicted (clipped), both of the sample's type.

        Raises:
            TypeError: an argument is of a type or dtype that is not allowed.
            ValueError: an argument does not fit; `set_timesteps` was not called; the timestep is not in the schedule.
            MemoryError: the mixture does not fit into memory.
        """
        visited, transition = self._visited, self._transition
        if visited is None:
            raise ValueError("set_timesteps: expected a call before the first step, got none")
        if self._drops_variance or model_output.shape != sample.shape:
            model_output = self._without_variance(model_output, sample)
        row = step = visited.row(timestep, sample.device, self._total)
        noise: tuple[Tensor, ...] = ()
        if variance_noise is not None:
            if generator is not None and eta > 0:
                raise ValueError("variance_noise: expected None beside a generator, got both")
            check_like_sample(variance_noise, "variance_noise", sample)
            noise = (variance_noise,)
        clipped = False if use_clipped_model_output is None else use_clipped_model_output
        plan = transition.plan(sample, eta, bool(noise), use_clipped_model_output=clipped)
        coefficients, tables, draws = plan
        batch, device, seeds = sample.shape[0], sample.device, transition.seeds
        if self._thresholding is not None:
            coefficients = dynamic_thresholding(coefficients, row, sample, model_output, **self._thresholding)
            tables = None if tables is None else tables.at(row)
            row = torch.arange(batch, device=device)
        made = gmm_step(
            sample,
            model_output,
            coefficients,
            row=row,
            seeds=seeds.of(generator, batch, device) if draws else seeds.nothing(batch, device),
            step=step,
            mixture=tables,
            history=noise,
            prediction="x0",
        )
        assert made.prediction is not None
        if return_dict:
            return DDIMSchedulerOutput(made.prev_sample, made.prediction)
        return made.prev_sample, made.prediction

    def _without_variance(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """Return the half of the model's output that is no variance: a view, where a step reads it."""
        shape = sample.shape
        doubled = len(shape) > 1 and model_output.shape == (shape[0], 2 * shape[1], *shape[2:])
        if doubled and self._drops_variance:
            return model_output[:, : shape[1]]
        hint = " (learned_variance=True drops the second half of the channels)" if doubled else ""
        expected = f"{shape[0], 2 * shape[1], *shape[2:]}" if self._drops_variance else f"{tuple(shape)}"
        raise ValueError(f"model_output: expected shape {expected}, got {tuple(model_output.shape)}{hint}")
