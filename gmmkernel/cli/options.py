"""Options that the sampling commands share, and what they make of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from gmmkernel.digits import IMAGE_SHAPE
from gmmkernel.mixtures import VARIANTS, Mixture, gaussian_mixture
from gmmkernel.schedules import SPACINGS

DEFAULT_SCALE = 0.72
"""Offset scale of the digits, s / sqrt(D) = 0.09: what the paper's s = 10 is on its 64x64x3 latents (D = 12,288)."""

ELEMENTS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2]


def add_mixture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a mixture."""
    group = parser.add_argument_group("mixture")
    group.add_argument(
        "--components", type=int, default=8, metavar="K", help="mixture components (default 8)"
    )
    group.add_argument(
        "--scale",
        type=float,
        default=DEFAULT_SCALE,
        metavar="S",
        help=f"offset scale (default {DEFAULT_SCALE}: {DEFAULT_SCALE / ELEMENTS**0.5:.2g} sqrt(D))",
    )
    group.add_argument("--shared", action="store_true", help="one mixture for all steps, not one for each")
    group.add_argument(
        "--mixture-seed", type=int, default=0, metavar="N", help="seed of the offsets (default 0)"
    )


def add_run_options(parser: argparse.ArgumentParser, *, count: int) -> None:
    """Add the options of a run: how many samples, from which seeds, how many at a time."""
    group = parser.add_argument_group("run")
    group.add_argument("--spacing", choices=SPACINGS, default="trailing", help="timesteps (default trailing)")
    group.add_argument("--count", type=int, default=count, metavar="N", help=f"samples (default {count})")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="samples have seeds N, N + 1, ... (default 0)"
    )
    group.add_argument(
        "--batch-size", type=int, default=500, metavar="B", help="samples at a time (default 500)"
    )
    group.add_argument("--output", type=Path, default=None, metavar="FILE", help="picture to write (.png)")


def make_mixture(arguments: argparse.Namespace, variant: str, steps: int) -> Mixture:
    """Build the mixture that the options describe for the digits."""
    return gaussian_mixture(
        variant,
        elements=ELEMENTS,
        n_components=arguments.components,
        scale=arguments.scale,
        n_steps=None if arguments.shared else steps,
        seed=arguments.mixture_seed,
    )


__all__ = ["ELEMENTS", "VARIANTS", "add_mixture_options", "add_run_options", "make_mixture"]
