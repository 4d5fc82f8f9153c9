"""`compare`: DDIM, DDIM-GMM and the isotropic-noise control side by side, from the same seeds."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel.cli.figures import settings, versions, write_json
from gmmkernel.cli.options import (
    VARIANTS,
    add_mixture_options,
    add_run_options,
    batch_size,
    make_mixture,
    make_seeds,
)
from gmmkernel.cli.outputs import check_file
from gmmkernel.cli.pictures import IMAGE_COLUMNS, Panel, Row, check_matplotlib, write_panels
from gmmkernel.cli.progress import shows_progress
from gmmkernel.cli.values import choice, integer, number
from gmmkernel.digits import IMAGE_SHAPE, NUM_CLASSES, digit_fid_by_group, load_unet
from gmmkernel.moments import moment_report
from gmmkernel.samplers import DDIMSampler
from gmmkernel.samplers.counting import counted
from gmmkernel.schedules import SPACINGS, noise_schedule

GROUPS = 5
_GROUP = 500
"""Samples of each group where nothing else is said, as in the documentation."""
SHOWN = 2 * IMAGE_COLUMNS


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "compare", help="DDIM, DDIM-GMM and DDIM with isotropic noise of the same variance, side by side"
    )
    parser.add_argument(
        "--steps",
        type=integer(1),
        nargs="+",
        default=[5, 10],
        metavar="S",
        help="numbers of sampling steps (default 5 10)",
    )
    parser.add_argument(
        "--eta",
        type=number(0, 1),
        nargs="+",
        default=[0.0, 1.0],
        metavar="E",
        help="shares of the DDPM noise (default 0 1)",
    )
    parser.add_argument(
        "--spacing", **choice(SPACINGS), default="trailing", help="timesteps (default trailing)"
    )
    parser.add_argument("--variant", **choice(VARIANTS), default="ortho", help="mixture (default ortho)")
    add_mixture_options(parser)
    add_run_options(parser, count=f"{GROUPS * _GROUP}", output="out/comparison.png")
    parser.set_defaults(run=run, count=GROUPS * _GROUP, output=Path("out/comparison.png"))


def run(arguments: argparse.Namespace) -> int:
    """Sample with every method at every setting, print the table, write the picture and the file.

    Every digit is asked for as often: which of them come up by luck is most of the noise of a distance.
    """
    if arguments.count % (GROUPS * NUM_CLASSES) != 0:
        raise ValueError(
            f"--count: expected a multiple of {GROUPS * NUM_CLASSES} ({GROUPS} groups with as many of each "
            f"digit), got {arguments.count}"
        )
    check_matplotlib()
    seeds = make_seeds(arguments)
    cells = [
        (steps, eta, _samplers(arguments, steps, eta)) for steps in arguments.steps for eta in arguments.eta
    ]
    check_file("--output", arguments.output)
    check_file("--json", arguments.json)
    model, labels = load_unet(), torch.arange(len(seeds)) % NUM_CLASSES
    batches = -(-len(seeds) // batch_size(arguments))
    calls = batches * sum(
        len(sampler.timesteps) for _, _, samplers in cells for sampler in {*samplers.values()}
    )
    panels, lines, figures = [], [], []
    with tqdm(total=calls, unit="call", disable=not shows_progress()) as bar:
        for steps, eta, samplers in cells:
            rows: list[Row] = []
            drawn: dict[DDIMSampler, tuple[Tensor, Tensor]] = {}
            for name, sampler in samplers.items():
                with bar.external_write_mode():  # or the line would go on where the bar ends
                    print(f"{steps} steps, eta {eta:g}: {name}")
                if sampler not in drawn:
                    images = sampler.sample(
                        counted(model, bar),
                        seeds,
                        IMAGE_SHAPE,
                        conditioning=(labels,),
                        batch_size=batch_size(arguments),
                        progress=False,
                    ).sample
                    drawn[sampler] = images, digit_fid_by_group(images.clamp(-1, 1), GROUPS)
                images, distances = drawn[sampler]
                mean, error = _mean_and_error(distances)
                change, change_error = _mean_and_error(distances - drawn[samplers["DDIM"]][1])
                plain = name == "DDIM"
                difference = "" if plain else f"{change:+8.2f} ± {change_error:5.2f}"
                lines.append(f"{steps:5d}  {eta:4g}  {name:22s}  {mean:8.2f} ± {error:5.2f}  {difference}")
                rows.append(Row(f"{name}\n{mean:.1f} ± {error:.1f}", images[:SHOWN]))
                figures.append(
                    {
                        "steps": steps,
                        "eta": eta,
                        "method": name,
                        "distance": {"mean": mean, "standard_error": error, "groups": distances},
                        "difference": None if plain else {"mean": change, "standard_error": change_error},
                    }
                )
            panels.append(Panel(f"{steps} steps, eta = {eta:g}", rows))
    print()
    size = arguments.count // GROUPS
    print(
        f"digit-FID of {GROUPS} groups of {size} samples, as many of each digit; "
        "mean ± standard error, lower is better"
        + (f"; of fewer than {_GROUP} they are larger, and not comparable" if size < _GROUP else "")
    )
    print("steps   eta  method                  distance          difference from DDIM, same seeds")
    print("\n".join(lines))
    print("Where the mixture adds no variance (see `moment_report`), the control is DDIM itself: +0.00.")
    known = {
        "figures": figures,
        "settings": settings(arguments, batch_size=batch_size(arguments), groups=GROUPS),
        "seeds": {"first": int(seeds[0]), "last": int(seeds[-1])},
        "versions": versions(),
    }
    write_json(arguments.json, known)
    scale = f"s = {arguments.scale:g}" if arguments.rho is None else f"rho = {arguments.rho:g}"
    mixture = f"{arguments.variant.upper()} K = {arguments.components}, {scale}"
    write_panels(
        "--output",
        arguments.output,
        f"Digits by few steps: digit-FID; {mixture}",
        panels,
        panel_columns=len(arguments.eta),
    )
    print(f"\npicture: {arguments.output}")
    return 0


def _samplers(arguments: argparse.Namespace, steps: int, eta: float) -> dict[str, DDIMSampler]:
    mixture = make_mixture(arguments, arguments.variant, steps)
    make = partial(DDIMSampler, noise_schedule("linear"), steps, eta=eta, spacing=arguments.spacing)
    plain = make()
    mixed = make(mixture=mixture)
    # The mixture's own rows, which hold the scale that `rho` gives each step.
    control = plain.with_sigma(moment_report(mixture, mixed.coefficients).control_sigma)
    return {
        "DDIM": plain,
        f"DDIM-GMM {arguments.variant}": mixed,
        # Where the mixture adds no variance the rows are the same, and need not be sampled twice.
        "DDIM + isotropic noise": plain if torch.equal(control.coefficients, plain.coefficients) else control,
    }


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / values.shape[0] ** 0.5)
