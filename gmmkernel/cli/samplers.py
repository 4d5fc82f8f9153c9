"""The sampler that the options describe for the digits."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import Sampler
from gmmkernel.samplers.methods import METHODS
from gmmkernel.schedules import noise_schedule


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
        takers = [f"--sampler {name}" for name, other in METHODS.items() if other.has_eta]
        raise ValueError(
            f"--eta: expected none with --sampler {arguments.sampler}, got {arguments.eta:g} "
            f"({', '.join(takers)} takes one)"
        )
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
