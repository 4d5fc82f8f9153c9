"""Options that the sampling commands share, and what they make of them."""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from gmmkernel._checks import INT64_MAX, INT64_MIN
from gmmkernel.backends.constants import MAX_COMPONENTS
from gmmkernel.cli.figures import add_json_option
from gmmkernel.cli.values import file, integer, number
from gmmkernel.digits import IMAGE_SHAPE
from gmmkernel.mixtures import VARIANTS, Mixture, gaussian_mixture

DEFAULT_SHARE = 0.09
"""Offset scale s / sqrt(D): what the paper's s = 10 is on its 64x64x3 latents (D = 12,288); 0.72 for the digits."""

_LARGEST_BATCH = 500

ELEMENTS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2]

OPTION_OF = {
    **{
        name: "--" + name.replace("_", "-")
        for name in (
            *(
                "classes",
                "dtype",
                "eta",
                "guidance_scale",
                "height",
                "negative_prompt",
                "pipeline",
                "prompts",
            ),
            *("spacing", "width"),
        )
    },
    "method": "--sampler",
    "mixture": "--variant",
    "n_components": "--components",
    "num_inference_steps": "--steps",
}
"""The options whose names differ from those of the arguments they set, which errors name."""

_MIXTURE_DEFAULTS = {
    "components": 8,
    "scale": None,
    "rho": None,
    "shared": False,
    "mixture_seed": 0,
}


def add_mixture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a mixture."""
    group = parser.add_argument_group("mixture")
    group.add_argument(
        "--components",
        type=integer(1, MAX_COMPONENTS),
        metavar="K",
        help="mixture components (default 8)",
    )
    group.add_argument(
        "--scale",
        type=number(0),
        metavar="S",
        help=f"offset scale (default {DEFAULT_SHARE:g} sqrt(D), D the elements of a sample; none for exact variants)",
    )
    group.add_argument(
        "--rho",
        type=number(0),
        metavar="R",
        help="for exact variants, instead of a scale: share (<= 0.999999) of the largest that each step allows",
    )
    group.add_argument("--shared", action="store_true", help="one mixture for all steps, not one for each")
    group.add_argument(
        "--mixture-seed",
        type=integer(INT64_MIN, INT64_MAX),
        metavar="N",
        help="seed of the offsets (default 0)",
    )
    parser.set_defaults(**_MIXTURE_DEFAULTS)


def add_run_options(parser: argparse.ArgumentParser, *, count: str, output: str) -> None:
    """Add the options of a run: how many samples, from which seeds, how many at a time; texts tell two defaults."""
    group = parser.add_argument_group("run")
    group.add_argument("--count", type=integer(1), metavar="N", help=f"samples (default {count})")
    group.add_argument(
        "--seed",
        type=integer(INT64_MIN, INT64_MAX),
        default=0,
        metavar="N",
        help="samples have seeds N, N + 1, ... (default 0)",
    )
    group.add_argument(
        "--batch-size",
        type=integer(1),
        metavar="B",
        help="samples at a time; a last batch that is smaller is filled up, so that a sample does not depend on how "
        "many there are (default: all of them, at most 500 digits or 16 images of a pipeline)",
    )
    group.add_argument(
        "--output", type=file(".png"), metavar="FILE", help=f"picture to write (.png; default {output})"
    )
    add_json_option(group)


def batch_size(arguments: argparse.Namespace) -> int:
    """Return how many samples the network is run with."""
    given: int | None = arguments.batch_size
    return min(arguments.count, _LARGEST_BATCH) if given is None else given


def make_seeds(arguments: argparse.Namespace) -> Tensor:
    """Return the seeds of the samples, int64 [count]."""
    if arguments.seed > INT64_MAX - arguments.count:
        raise ValueError(
            f"--seed: expected at most {INT64_MAX - arguments.count} for {arguments.count} samples, "
            f"got {arguments.seed}"
        )
    return torch.arange(arguments.seed, arguments.seed + arguments.count)


def check_no_mixture_options(arguments: argparse.Namespace) -> None:
    """Refuse options that describe a mixture where there is none."""
    for name, default in _MIXTURE_DEFAULTS.items():
        if getattr(arguments, name) != default:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: describes a mixture, and --variant none has none")


def make_mixture(
    arguments: argparse.Namespace, variant: str, steps: int, elements: int = ELEMENTS
) -> Mixture:
    """Build the mixture that the options describe for samples of so many elements: the digits' where none are given."""
    if arguments.rho is not None and arguments.scale is not None:
        raise ValueError(
            f"--scale: expected none beside --rho, which gives each step its own, got {arguments.scale:g}"
        )
    if arguments.rho is not None and not variant.endswith("exact"):
        raise ValueError(
            f"--rho: expected none with --variant {variant}, whose offsets have a --scale, "
            f"got {arguments.rho:g}"
        )
    if arguments.rho is None and arguments.scale is None:
        if variant.endswith("exact"):
            raise ValueError(f"--rho: --variant {variant} needs it, or --scale")
        arguments.scale = DEFAULT_SHARE * math.sqrt(elements)
    return gaussian_mixture(
        variant,
        elements=elements,
        n_components=arguments.components,
        scale=arguments.scale if arguments.rho is None else 1.0,
        n_steps=None if arguments.shared else steps,
        seed=arguments.mixture_seed,
        rho=arguments.rho,
    )


__all__ = [
    "ELEMENTS",
    "OPTION_OF",
    "VARIANTS",
    "add_mixture_options",
    "add_run_options",
    "check_no_mixture_options",
    "make_mixture",
    "make_seeds",
]
