"""A drop-in for diffusers' FlowMatchEulerDiscreteScheduler whose transition may be noisy, or a Gaussian mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from gmmkernel._checks import check_device, check_integer, check_share, plain
from gmmkernel.backends.constants import Column
from gmmkernel.integrations.diffusers.configs import FLOW
from gmmkernel.integrations.diffusers.mixin import MixtureScheduler
from gmmkernel.integrations.diffusers.seeds import Generators
from gmmkernel.integrations.diffusers.timesteps import Timesteps
from gmmkernel.integrations.diffusers.transition import MixtureOptions, Run
from gmmkernel.ops import gmm_step, gmm_step_log_prob
from gmmkernel.ops.checks import check_sample, check_seeds, check_tensor
from gmmkernel.schedules import flow_coefficients, flow_sde_coefficients
from gmmkernel.schedules.flow_sde import dynamics_options


class GMMFlowMatchScheduler(MixtureScheduler, FlowMatchEulerDiscreteScheduler):
    """Rectified flow for pipelines (Stable Diffusion 3, Flux, ...), from the Euler step to steps with a mixture.

    `pipe.scheduler = GMMFlowMatchScheduler.from_config(pipe.scheduler.config)` puts it into a pipeline. The options
    of diffusers' FlowMatchEulerDiscreteScheduler have their names, defaults and meaning, and the sigmas are made by
    its code; with `offset_scale=0` the steps are its steps. Samples keep their type, which the model's output may
    not have. Steps count up from the first one of a run, as diffusers' do: `set_begin_index`, or the timestep of the
    first step, tells where it begins.

    A mixture is made at the first step, when the number of elements of a sample is known.

    Args:
        num_train_timesteps: T, and so on up to `time_shift_type`: as FlowMatchEulerDiscreteScheduler has them.
        shift: the same.
        use_dynamic_shifting: the same.
        base_shift: the same.
        max_shift: the same.
        base_image_seq_len: the same.
        max_image_seq_len: the same.
        invert_sigmas: only False: the steps go from noise to data.
        shift_terminal: the same.
        use_karras_sigmas: the same.
        use_exponential_sigmas: the same.
        use_beta_sigmas: the same.
        time_shift_type: the same.
        stochastic_sampling: draw all of the noise anew in each step: `eta=1`.
        eta: share of the noise that each step draws anew, 0 to 1; None: 1 with `stochastic_sampling`, else 0.
        dynamics: noise for reinforcement learning in place of that of `eta`: "flow-sde", "dance-sde", "cps", "ddim" or
            "ode", which `flow_sde_coefficients` describes, and the next three.
        noise_level: with `dynamics` but "ode", how much noise: a number, or one for each step; None: 0.7.
        sde_steps: with `dynamics`, the steps that draw noise; None: all.
        sigma_max: with "flow-sde", what stands for a sigma of 1; None: the second sigma. Not that of UniPC and Euler.
        n_components: K, components of the mixture; 1 is the Gaussian step.
        offset_scale: length of the offsets in units of the sample, >= 0; 0 is the Gaussian step, unless there is a rho.
        variant: kind of mixture, one of `gmmkernel.mixtures.VARIANTS`.
        shared_mixture: all steps share one mixture; otherwise each has its own.
        weights: K positive numbers, or None for equal weights.
        mixture_seed: seed of the offsets.
        rho: for exact variants, instead of a scale: share (<= 0.999999) of the largest that each step allows.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range, unknown or not supported.
    """

    _compatibles: ClassVar[list[str]] = sorted(FLOW.classes)
    _rules = FLOW
    init_noise_sigma = 1.0
    _begin_index: int | None
    sigmas: Tensor
    timesteps: Tensor
    _chosen: _Chosen | None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        eta: float | None = None,
        dynamics: str | None = None,
        noise_level: float | Sequence[float] | None = None,
        sde_steps: Sequence[int] | None = None,
        sigma_max: float | None = None,
        n_components: int = 8,
        offset_scale: float = 0.0,
        variant: str = "ortho",
        shared_mixture: bool = False,
        weights: Sequence[float] | None = None,
        mixture_seed: int = 0,
        rho: float | None = None,
    ) -> None:
        if invert_sigmas:
            raise ValueError("invert_sigmas: expected False, steps from noise to data, got True")
        _noise(self.config)
        with torch.device("cpu"):  # whatever the default device is
            super().__init__(  # type: ignore[no-untyped-call]
                num_train_timesteps=num_train_timesteps,
                shift=shift,
                use_dynamic_shifting=use_dynamic_shifting,
                base_shift=base_shift,
                max_shift=max_shift,
                base_image_seq_len=base_image_seq_len,
                max_image_seq_len=max_image_seq_len,
                invert_sigmas=invert_sigmas,
                shift_terminal=shift_terminal,
                use_karras_sigmas=use_karras_sigmas,
                use_exponential_sigmas=use_exponential_sigmas,
                use_beta_sigmas=use_beta_sigmas,
                time_shift_type=time_shift_type,
                stochastic_sampling=stochastic_sampling,
            )
        self._chosen = None
        self._prepare()
        for name in ("noise_level", "sde_steps"):
            if isinstance(self.config[name], Sequence):  # of a form that can be saved
                entries = [plain(entry) for entry in self.config[name]]
                self.register_to_config(**{name: entries})  # type: ignore[attr-defined]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the times and begin a run; the arguments are those of FlowMatchEulerDiscreteScheduler.

        Args:
            num_inference_steps: S; None: as many as there are `sigmas` or `timesteps`.
            device: where `timesteps` and `sigmas` are to be.
            sigmas: [S] the times before shifting, or None.
            mu: the shift, with `use_dynamic_shifting`.
            timesteps: [S] what the model is told, or None: `sigmas` T.

        Raises:
            ValueError: the arguments do not go together, the sigmas they give do not descend from at most 1,
                `noise_level`, `sde_steps` or `sigma_max` is not for these steps, or `device` is not there.
        """
        if num_inference_steps is not None:
            num_inference_steps = check_integer("num_inference_steps", num_inference_steps, 1)
        if device is not None:
            device = check_device("device", device)
        super().set_timesteps(num_inference_steps, "cpu", sigmas, mu, timesteps)  # type: ignore[misc]
        times = self.sigmas.double()
        if not bool((times[1:] < times[:-1]).all() and times[0] <= 1):
            raise ValueError(
                f"sigmas: expected strictly descending numbers in (0, 1], got {times[:-1].tolist()} after shifting"
            )
        config = self.config
        visited, signature = Timesteps(self.timesteps, device), tuple(times.tolist())
        eta, noisy = _noise(config)
        rows = partial(flow_coefficients, times)
        if noisy is not None:
            rows = partial(_rows_of_dynamics, times, noisy)
            signature += tuple(rows(eta=eta, dtype=torch.float64).flatten().tolist())
        run = Run(MixtureOptions.of(config), visited, rows, signature)
        self._chosen = _Chosen(visited, self._transition.begin(run), eta)
        self.timesteps = visited.timesteps
        self.sigmas = self.sigmas.to(device, torch.float32)  # also where another dtype is the default

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """Return the sample: for pipelines that scale it, but for an Euler scheduler of exactly diffusers' class."""
        return sample

    def _init_step_index(self, timestep: float | Tensor) -> None:
        assert self._chosen is not None
        visited, index = self._chosen.timesteps, self._begin_index
        if index is None:
            index = visited.index(timestep)
        self._step_index = visited.read(timestep) if index is None else index

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Do the next step of the run, as one launch of `gmm_step`.

        Args:
            model_output: [B, ...], the velocity predicted; of the sample's type or float32, or bfloat16 or float16
                beside a float32 sample.
            timestep: one of `timesteps`, not its index. It is looked at in the first step of a run only, where
                `set_begin_index` was not called; there, an element of `timesteps` is not read, only found.
            sample: [B, ...] float32, bfloat16, float16 or float64.
            s_churn: only 0; diffusers' scheduler takes it, and the next three, and has no use for them.
            s_tmin: only 0.
            s_tmax: only infinity.
            s_noise: only 1.
            generator: a CPU generator, or a list with one for each sample; None: PyTorch's default one. One seed a
                sample is drawn from it at the first step of a run that draws anything; a step that does not come
                after the last one done with the same generators begins a run.
            per_token_timesteps: only None.
            return_dict: return a FlowMatchEulerDiscreteSchedulerOutput, otherwise a tuple.

        Returns:
            The next sample, of the sample's type.

        Raises:
            TypeError: an argument is of a type or dtype that is not allowed.
            ValueError: an argument does not fit or is not supported; `set_timesteps` was not called.
            IndexError: the run has no more steps.
            MemoryError: the mixture does not fit into memory.
        """
        if self._chosen is None:
            raise ValueError("set_timesteps: expected a call before the first step, got none")
        check_tensor(model_output, "model_output")
        check_tensor(sample, "sample")
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise TypeError("timestep: expected one of scheduler.timesteps, a float, got an integer")
        if s_churn or s_tmin or s_tmax != math.inf or s_noise != 1:
            raise ValueError(
                "s_churn, s_tmin, s_tmax, s_noise: expected 0, 0, infinity and 1, which have no part in this step, "
                f"got {s_churn}, {s_tmin}, {s_tmax} and {s_noise}"
            )
        if per_token_timesteps is not None:
            raise ValueError("per_token_timesteps: expected None, one time for all of a sample, got a tensor")
        if self._step_index is None:
            self._init_step_index(timestep)
        step, (_, run, eta) = self._step_index, self._chosen
        coefficients, tables, draws, _ = self._transition.plan(run, sample, eta)
        batch, device, seeds = sample.shape[0], sample.device, self._transition.seeds
        made = gmm_step(
            sample,
            model_output,
            coefficients,
            row=step,
            seeds=seeds.of(generator, batch, device, run, (step,)) if draws else seeds.nothing(batch, device),
            mixture=tables,
        ).prev_sample
        self._step_index += 1
        if not return_dict:
            return (made,)
        return FlowMatchEulerDiscreteSchedulerOutput(made)  # type: ignore[arg-type]

    def transition(
        self,
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        prev_sample: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> FlowTransition:
        """Draw the transitions of a rollout, or score those that a trainer has stored; the run is where it was.

        Each sample may be at a timestep of its own. The noise drawn is that of `step` for the same seeds, and the
        log-density of what was drawn has the same bits when it is scored. Gradients of `mean` and `log_prob` reach
        `model_output`, `sample` and a `prev_sample` given; one that is drawn is held fixed in its log-density.

        Args:
            model_output: [B, ...], the velocity predicted, of the types that `step` takes.
            timesteps: values of `scheduler.timesteps`, a float tensor [], [1] or [B] on the CPU or beside the samples;
                on a device their rows are found there and nothing is read back.
            sample: [B, ...] float32, bfloat16, float16 or float64.
            prev_sample: [B, ...] like `sample`, what to score; None: draw it.
            seeds: int64 [B], on any device, where samples are drawn; None: score.

        Returns:
            FlowTransition.

        Raises:
            TypeError: an argument is of a type or dtype that is not allowed.
            ValueError: an argument does not fit; there are both `prev_sample` and `seeds`, or neither; a timestep on
                the CPU is not one of `scheduler.timesteps` (elsewhere the sample's results are NaN); the scheduler has
                a mixture; or `set_timesteps` was not called.
        """
        if self._chosen is None:
            raise ValueError("set_timesteps: expected a call before the first transition, got none")
        if (prev_sample is None) == (seeds is None):
            got = "neither" if seeds is None else "both"
            raise ValueError(
                f"prev_sample, seeds: expected one to score, or the other to draw with, got {got}"
            )
        visited, run, eta = self._chosen
        if not self._transition.is_gaussian(run):
            raise ValueError(
                "transition: expected a scheduler without a mixture (offset_scale=0), got one with it"
            )
        check_sample(sample)
        batch, device = sample.shape[0], sample.device
        row = visited.rows(timesteps, batch, device)
        rows = self._transition.plan(run, sample, eta).coefficients
        mean = None
        if prev_sample is None:
            assert seeds is not None
            drawn = gmm_step(
                sample,
                model_output,
                rows,
                row=row,
                seeds=check_seeds(seeds).to(device, non_blocking=True),
                prediction="mean" if sample.dtype == rows.dtype else None,
                return_log_prob=True,
            )
            prev_sample, mean, log_prob = drawn.prev_sample, drawn.prediction, drawn.log_prob
            assert log_prob is not None
        else:
            log_prob = gmm_step_log_prob(prev_sample, sample, model_output, rows, row=row)
        if mean is None:
            quiet = rows.clone()
            quiet[:, Column.SIGMA] = 0
            nothing = self._transition.seeds.nothing(batch, device)
            whole = sample.to(rows.dtype)  # whose mean is not rounded to 16 bits
            mean = gmm_step(whole, model_output, quiet, row=row, seeds=nothing).prev_sample
        std = torch.where(row < 0, math.nan, rows[:, Column.SIGMA][row.clamp(min=0)]).expand(batch)
        return FlowTransition(prev_sample, log_prob, mean, std)


class FlowTransition(NamedTuple):
    """The transitions of a batch, N(mean, std^2) each.

    Attributes:
        prev_sample: [B, ...] of the sample's dtype, what was drawn or scored.
        log_prob: [B], its log-density, the sum over the elements, in nats; NaN where std is 0. float32, float64 for
            float64 samples, as the next two.
        mean: [B, ...], not rounded to a sample's 16 bits.
        std: [B], standard deviations of the transitions.
    """

    prev_sample: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor


class _Chosen(NamedTuple):
    """What `set_timesteps` has decided on for the steps to come."""

    timesteps: Timesteps
    run: Run
    eta: float


def _noise(config: Any) -> tuple[float, dict[str, Any] | None]:
    """Return the share of fresh noise that a config asks for, and the arguments of its dynamics or None."""
    names = ("dynamics", "noise_level", "sde_steps", "sigma_max")
    if config["dynamics"] is not None and config["stochastic_sampling"]:
        raise ValueError(
            f"stochastic_sampling: expected False beside dynamics={config['dynamics']!r}, got True"
        )
    eta = _eta(config["eta"], config["stochastic_sampling"])
    return eta, dynamics_options(eta=eta, **{name: config[name] for name in names})


def _rows_of_dynamics(times: Tensor, options: dict[str, Any], *, eta: float, dtype: torch.dtype) -> Tensor:
    """Return the rows of `flow_sde_coefficients`; eta is 0, which `dynamics_options` sees to."""
    return flow_sde_coefficients(times, **options, dtype=dtype).coefficients


def _eta(eta: float | None, stochastic_sampling: bool) -> float:
    """Return the share of fresh noise that two options of the config ask for."""
    if eta is None:
        return 1.0 if stochastic_sampling else 0.0
    share = check_share("eta", eta)
    if stochastic_sampling and share != 1:
        raise ValueError(
            f"eta: expected 1 or None with stochastic_sampling=True, which is eta = 1, got {eta:g}"
        )
    return share
