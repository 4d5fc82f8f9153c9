"""The samplers that `sample` knows by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import DDIMSampler, DEISSampler, DPMSolverSampler, PNDMSampler, Sampler
from gmmkernel.schedules import noise_schedule


class Method(NamedTuple):
    """A sampler as the command line has it.

    Attributes:
        title: what pictures call it.
        make: takes schedule, number of steps and the common options.
        has_eta: it takes `eta`.
        has_mixture: its steps draw noise that a mixture can replace.
    """

    title: str
    make: Callable[..., Sampler]
    has_eta: bool = False
    has_mixture: bool = False


METHODS = {
    "ddim": Method("DDIM", DDIMSampler, has_eta=True, has_mixture=True),
    "pndm": Method("F-PNDM", PNDMSampler),
    "plms": Method("PLMS", partial(PNDMSampler, skip_prk_steps=True)),
    "deis": Method("DEIS", DEISSampler),
    "dpm-solver": Method("DPM-Solver++(2M)", DPMSolverSampler),
    "sde-dpm-solver": Method(
        "SDE-DPM-Solver++(2M)",
        partial(DPMSolverSampler, algorithm_type="sde-dpmsolver++"),
        has_mixture=True,
    ),
}


def make_sampler(arguments: argparse.Namespace, mixture: Mixture | None, device: torch.device) -> Sampler:
    """Make the sampler that the options describe for the digits.

    Raises:
        ValueError: an option does not belong to the method.
    """
    method = METHODS[arguments.sampler]
    options: dict[str, Any] = {}
    if method.has_eta:
        options["eta"] = arguments.eta
    elif arguments.eta != 0:
        raise ValueError(f"--eta: expected none with --sampler {arguments.sampler}, got {arguments.eta:g}")
    if mixture is not None:
        if not method.has_mixture:
            takers = [f"--sampler {name}" for name, other in METHODS.items() if other.has_mixture]
            raise ValueError(
                f"--variant: expected none with --sampler {arguments.sampler}, which draws no noise, "
                f"got {arguments.variant} ({', '.join(takers)} can have a mixture)"
            )
        options["mixture"] = mixture
    return method.make(
        noise_schedule("linear"),
        arguments.steps,
        spacing=arguments.spacing,
        guidance_scale=arguments.guidance_scale,
        device=device,
        **options,
    )
