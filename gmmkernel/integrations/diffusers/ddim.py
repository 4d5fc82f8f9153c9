"""A drop-in for diffusers' DDIMScheduler whose transition may be a Gaussian mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from gmmkernel._checks import check_choice, check_device, check_flag, check_integer, check_number
from gmmkernel.integrations.diffusers.configs import DDIM
from gmmkernel.integrations.diffusers.mixin import MixtureScheduler
from gmmkernel.integrations.diffusers.seeds import Generators
from gmmkernel.integrations.diffusers.steps import DDIMSteps, ddim_timesteps
from gmmkernel.integrations.diffusers.timesteps import Timesteps
from gmmkernel.integrations.diffusers.transition import MixtureOptions, Run
from gmmkernel.ops import gmm_step
from gmmkernel.ops.checks import check_like_sample, check_tensor
from gmmkernel.samplers.thresholding import dynamic_thresholding
from gmmkernel.schedules import NoiseSchedule
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
        eta: share of the DDPM noise in every step for which a pipeline chooses none; None is 0. `from_config` takes 1
            from the config of a DDPMScheduler, whose transition that is.
        use_clipped_model_output: derive the noise from the clipped data where a pipeline does not choose; beside an
            eta here only in steps that take that, too. From the config of a DDPMScheduler True.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range or unknown.
    """

    _rules = DDIM
    alphas_cumprod: Tensor
    _chosen: _Chosen | None

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
        eta: float | None = None,
        use_clipped_model_output: bool = False,
    ) -> None:
        check_choice("beta_schedule", beta_schedule, NOISE_SCHEDULES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, _SPACINGS)
        check_flag("learned_variance", learned_variance)
        check_flag("use_clipped_model_output", use_clipped_model_output)
        if eta is not None:
            check_number("eta", eta, low=0)
        with torch.device("cpu"):  # whatever the default device is
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
        self._chosen = None
        self._prepare()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the timesteps and begin a run.

        Args:
            num_inference_steps: n, from 1 to T.
            device: where `timesteps` is to be.

        Raises:
            TypeError: `num_inference_steps` is not an int.
            ValueError: it is out of range, an option of the config does not fit, or `device` is not there.
        """
        config = self.config
        total, spacing = config.num_train_timesteps, config.timestep_spacing
        count = check_integer("num_inference_steps", num_inference_steps, 1, total)
        steps = DDIMSteps(
            # The numbers that the network was trained with and `add_noise` uses, which are diffusers' float32 ones.
            NoiseSchedule(self.alphas_cumprod.cpu().double()),
            ddim_timesteps(count, total, spacing, config.steps_offset),
            total // count,
            config.prediction_type,
            config.clip_sample_range if config.clip_sample else None,
            config.set_alpha_to_one,
        )
        eta = None if config.eta is None else check_number("eta", config.eta, low=0)
        if eta is not None and eta > 1:  # up to which every step has the noise
            steps(eta=eta, clipped=config.use_clipped_model_output)
        if device is not None:
            device = check_device("device", device)
        visited = Timesteps(steps.timesteps, device, total)
        run = Run(MixtureOptions.of(config), visited, steps, steps.signature())
        # One attribute, so that a step in another thread takes all of a run or all of the one before it.
        self._chosen = _Chosen(
            visited,
            self._transition.begin(run),
            eta,
            config.use_clipped_model_output,
            config.learned_variance,
            {"ratio": config.dynamic_thresholding_ratio, "max_value": config.sample_max_value}
            if config.thresholding
            else None,
        )
        self.num_inference_steps = count
        self.timesteps = visited.timesteps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Do one step, as one launch of `gmm_step`.

        Args:
            model_output: [B, C, ...], the model's prediction; of the sample's type or float32, or bfloat16 or
                float16 beside a float32 sample.
            timestep: one of `timesteps`, or a tensor of integers [B] with one for each sample. A timestep that is not
                in the schedule gets a row of its own, with the mixture of the next one that is. A tensor that is on a
                device is not read: a value that is not in the schedule fills its sample with NaN there.
            sample: [B, C, ...] float32, bfloat16, float16 or float64.
            eta: share of the DDPM noise, 0 (DDIM) to 1 (DDPM); None: the config's.
            use_clipped_model_output: derive the noise from the clipped data; None, which DDIMPipeline passes: the
                config's.
            generator: a CPU generator, or a list with one for each sample; None: PyTorch's default one. One seed a
                sample is drawn from it at the first step of a run that draws anything; a timestep that does not come
                after the last one done with the same generators begins a run.
            variance_noise: like `sample`, standard normal noise to use in place of the package's; only for Gaussian
                steps, and not together with a generator.
            return_dict: return a DDIMSchedulerOutput, otherwise a tuple.

        Returns:
            The next sample and the data predicted (clipped), both of the sample's type.

        Raises:
            TypeError: an argument is of a type or dtype that is not allowed.
            ValueError: an argument does not fit; `set_timesteps` was not called; the timestep is not one of the T; or
                the data cannot be told there (alphas_cumprod is 0, and epsilon is predicted).
            MemoryError: the mixture does not fit into memory.
        """
        chosen, transition = self._chosen, self._transition
        if chosen is None:
            raise ValueError("set_timesteps: expected a call before the first step, got none")
        check_tensor(model_output, "model_output")
        check_tensor(sample, "sample")
        if chosen.drops_variance or model_output.shape != sample.shape:
            model_output = _without_variance(model_output, sample, chosen.drops_variance)
        clipped = use_clipped_model_output
        if clipped is None:
            # With an eta the config's is a part of DDPM's transition: a pipeline that chooses another has DDIM's.
            clipped = chosen.clipped and (eta is None or chosen.eta is None)
        if eta is None:
            eta = chosen.eta or 0.0
        elif type(eta) is not float:  # those are checked when their rows are made
            eta = check_number("eta", eta, low=0)
        row, step, done, at = chosen.timesteps.place(timestep, sample.device)
        noise: tuple[Tensor, ...] = ()
        if variance_noise is not None:
            if generator is not None and eta > 0:
                raise ValueError("variance_noise: expected None beside a generator, got both")
            check_like_sample(variance_noise, "variance_noise", sample)
            noise = (variance_noise,)
        run = chosen.run
        plan = transition.plan(
            sample=sample, run=run, eta=eta, given_noise=bool(noise), at=at, clipped=clipped
        )
        coefficients, tables, draws, refused = plan
        if refused and done is not None and not refused.isdisjoint(done):
            run.rows(eta=eta, at=chosen.timesteps.values_of(done), clipped=clipped)  # raises what is wrong
        batch, device, seeds = sample.shape[0], sample.device, transition.seeds
        if chosen.thresholding is not None:
            coefficients = dynamic_thresholding(
                coefficients, row, sample, model_output, **chosen.thresholding
            )
            tables = None if tables is None else tables.at(row)
            row = torch.arange(batch, device=device)
        made = gmm_step(
            sample,
            model_output,
            coefficients,
            row=row,
            seeds=seeds.of(generator, batch, device, run, done) if draws else seeds.nothing(batch, device),
            step=step,
            mixture=tables,
            history=noise,
            prediction="x0",
        )
        assert made.prediction is not None
        if return_dict:
            return DDIMSchedulerOutput(made.prev_sample, made.prediction)
        return made.prev_sample, made.prediction


class _Chosen(NamedTuple):
    """What `set_timesteps` has read from the config for the steps to come."""

    timesteps: Timesteps
    run: Run
    eta: float | None
    clipped: bool
    drops_variance: bool
    thresholding: dict[str, Any] | None


def _without_variance(model_output: Tensor, sample: Tensor, drops_variance: bool) -> Tensor:
    """Return the half of the model's output that is no variance: a view, where a step reads it."""
    shape = sample.shape
    doubled = len(shape) > 1 and model_output.shape == (shape[0], 2 * shape[1], *shape[2:])
    if doubled and drops_variance:
        return model_output[:, : shape[1]]
    hint = " (learned_variance=True drops the second half of the channels)" if doubled else ""
    expected = f"{shape[0], 2 * shape[1], *shape[2:]}" if drops_variance else f"{tuple(shape)}"
    raise ValueError(f"model_output: expected shape {expected}, got {tuple(model_output.shape)}{hint}")
