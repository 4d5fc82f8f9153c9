"""A sampler of this package made from the config of a pipeline's scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gmmkernel._checks import check_choice
from gmmkernel.integrations.diffusers.configs import check_config, is_flow
from gmmkernel.integrations.diffusers.ddim import GMMDDIMScheduler
from gmmkernel.integrations.diffusers.flow import GMMFlowMatchScheduler
from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import FlowSampler, Sampler
from gmmkernel.samplers.methods import METHODS
from gmmkernel.schedules import NoiseSchedule

FLOW = "flow"
"""The name of the sampler of rectified flows, beside those of `METHODS`."""


def sampler_from_config(
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    method: str | None = None,
    eta: float = 0.0,
    mixture: Mixture | None = None,
    spacing: str | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    guidance_scale: float | None = None,
    learned_variance: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Sampler:
    """Make a sampler for the model of a diffusers pipeline from `pipe.scheduler.config`.

    The noise levels are the float32 numbers that diffusers computes, the type of the prediction, clipping, dynamic
    thresholding, the spacing and the end of the schedule are the config's. How the replaced scheduler steps between
    the levels (its solver, its order, its variance) is not: `method` says that. "pndm", "plms" and "deis" store noise
    and do not clip, as diffusers' schedulers of these names do not.

    Args:
        config: of any scheduler that `GMMDDIMScheduler` or `GMMFlowMatchScheduler` takes the place of.
        num_inference_steps: number of steps S.
        method: a name of `gmmkernel.samplers.methods.METHODS`, "flow" for rectified flows; None: "flow" for those, and
            "dpm-solver".
        eta: share of fresh noise, for "ddim" and "flow".
        mixture: a mixture for the transition, for methods that draw noise.
        spacing: in place of the config's: "leading", "trailing", "linspace" or "quadratic".
        sigmas: for a flow: the S times before they are shifted, as Flux's pipeline gives them.
        mu: for a flow with `use_dynamic_shifting`: the shift.
        guidance_scale: classifier-free guidance; the model must then return a pair.
        learned_variance: the model returns twice the channels; the second half is dropped.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Returns:
        The sampler.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or does not belong to the method, or the config has an option that the
            method does not follow; the message names it.
    """
    flow = is_flow(check_config(config))
    if method is None:
        method = FLOW if flow else "dpm-solver"
    check_choice("method", method, (*METHODS, FLOW))
    if flow != (method == FLOW):
        kind = "a rectified flow, whose method is 'flow'" if flow else "a noise schedule"
        takes = "'flow'" if flow else f"one of {', '.join(METHODS)}"
        raise ValueError(f"method: expected {takes} for {kind}, got {method!r}")
    common: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "learned_variance": learned_variance,
        "device": device,
        "dtype": dtype,
        "backend": backend,
    }
    if flow:
        if spacing is not None:
            raise ValueError(
                "spacing: expected no spacing for a rectified flow, whose times follow from the config's shift, "
                f"got {spacing!r}"
            )
        scheduler = GMMFlowMatchScheduler.from_config(config)
        scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, mu=mu)
        return FlowSampler(
            num_inference_steps,
            times=scheduler.sigmas.double(),
            num_train_timesteps=scheduler.config.num_train_timesteps,
            eta=eta,
            mixture=mixture,
            **common,
        )
    return _from_noise_schedule(config, num_inference_steps, method, eta, mixture, spacing, common)


def _from_noise_schedule(
    config: Mapping[str, Any],
    steps: int,
    name: str,
    eta: float,
    mixture: Mixture | None,
    spacing: str | None,
    common: dict[str, Any],
) -> Sampler:
    method = METHODS[name]
    given = {
        "eta": 0.0,
        "learned_variance": common["learned_variance"],
    }  # what DDPM's configs leave to be decided
    found = GMMDDIMScheduler.from_config(config, **given)
    options = found.config
    spacing = options.timestep_spacing if spacing is None else spacing
    common |= {
        "spacing": spacing,
        "steps_offset": options.steps_offset if spacing in ("leading", "quadratic") else 0,
        "prediction_type": options.prediction_type,
        "set_alpha_to_one": options.set_alpha_to_one,
    }
    if method.clips:
        common["clip_sample_range"] = options.clip_sample_range if options.clip_sample else None
        common["sample_max_value"] = options.sample_max_value
    if options.thresholding:
        if not method.clips:
            raise ValueError(f"thresholding: expected False in the config with method={name!r}, got True")
        common |= {
            "dynamic_thresholding_ratio": options.dynamic_thresholding_ratio,
            "clip_sample_range": None,
        }
    if method.has_eta:
        common["eta"] = eta
    elif eta != 0:
        raise ValueError(f"eta: expected 0 with method={name!r}, got {eta:g}")
    if mixture is not None:
        if not method.has_mixture:
            takers = ", ".join(name for name, other in METHODS.items() if other.has_mixture)
            raise ValueError(f"mixture: expected None with method={name!r}; {takers} can have one")
        common["mixture"] = mixture
    return method.make(NoiseSchedule(found.alphas_cumprod.double()), steps, **common)
