"""A drop-in for diffusers' FlowMatchEulerDiscreteScheduler whose transition may be noisy, or a Gaussian mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from gmmkernel._checks import check_integer, check_share
from gmmkernel.integrations.diffusers.configs import FLOW
from gmmkernel.integrations.diffusers.mixin import MixtureScheduler
from gmmkernel.integrations.diffusers.seeds import Generators
from gmmkernel.integrations.diffusers.timesteps import Timesteps
from gmmkernel.integrations.diffusers.transition import MixtureOptions, Run
from gmmkernel.ops import gmm_step
from gmmkernel.schedules import flow_coefficients


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
        _eta(eta, stochastic_sampling)
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
            ValueError: the arguments do not go together, or the sigmas they give do not descend from at most 1.
        """
        if num_inference_steps is not None:
            num_inference_steps = check_integer("num_inference_steps", num_inference_steps, 1)
        super().set_timesteps(num_inference_steps, "cpu", sigmas, mu, timesteps)  # type: ignore[misc]
        times = self.sigmas.double()
        if not bool((times[1:] < times[:-1]).all() and times[0] <= 1):
            raise ValueError(
                f"sigmas: expected strictly descending numbers in (0, 1], got {times[:-1].tolist()} after shifting"
            )
        config = self.config
        visited = Timesteps(self.timesteps, device)
        run = Run(
            MixtureOptions.of(config), visited, partial(flow_coefficients, times), tuple(times.tolist())
        )
        self._chosen = _Chosen(
            visited, self._transition.begin(run), _eta(config.eta, config.stochastic_sampling)
        )
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


class _Chosen(NamedTuple):
    """What `set_timesteps` has decided on for the steps to come."""

    timesteps: Timesteps
    run: Run
    eta: float


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
