"""The sampler that the options describe for the digits."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import Sampler
from gmmkernel.samplers.methods import METHODS
from gmmkernel.schedules import noise_schedule


def check_method(arguments: argparse.Namespace, name: str) -> None:
    """Refuse options that do not belong to a method of `METHODS`.

    Raises:
        ValueError: one does not.
    """
    method = METHODS[name]
    if arguments.eta != 0 and not method.has_eta:
        takers = [f"--sampler {other}" for other in METHODS if METHODS[other].has_eta]
        raise ValueError(
            f"--eta: expected none with --sampler {name}, got {arguments.eta:g} ({', '.join(takers)} takes one)"
        )
    if arguments.variant != "none" and not method.has_mixture:
        takers = [f"--sampler {other}" for other in METHODS if METHODS[other].has_mixture]
        raise ValueError(
            f"--variant: expected none with --sampler {name}, which draws no noise, got {arguments.variant} "
            f"({', '.join(takers)} can have a mixture)"
        )


def make_sampler(arguments: argparse.Namespace, mixture: Mixture | None, device: torch.device) -> Sampler:
    """Make the sampler that the options describe for the digits.

    Raises:
        ValueError: an option does not belong to the method.
    """
    check_method(arguments, arguments.sampler)
    method = METHODS[arguments.sampler]
    options: dict[str, Any] = {}
    if method.has_eta:
        options["eta"] = arguments.eta
    if mixture is not None:
        options["mixture"] = mixture
    return method.make(
        noise_schedule("linear"),
        arguments.steps,
        spacing=arguments.spacing,
        guidance_scale=arguments.guidance_scale,
        device=device,
        **options,
    )
