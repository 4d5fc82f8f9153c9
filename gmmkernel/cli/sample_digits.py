"""`sample` without a pipeline: draw digits with the trained model, write them, print time and distance."""

from __future__ import annotations

import argparse
import io
import time
from typing import Any

import numpy as np
import torch

from gmmkernel.cli.figures import moments, settings, versions, write_json
from gmmkernel.cli.folders import check_samples_folder, naming_options
from gmmkernel.cli.options import batch_size, make_mixture, make_seeds
from gmmkernel.cli.outputs import check_file, write_file
from gmmkernel.cli.pictures import IMAGE_COLUMNS, Panel, Row, check_matplotlib, write_panels
from gmmkernel.cli.progress import shows_progress
from gmmkernel.cli.ranks import Place, by_ranks, process_group
from gmmkernel.cli.samplers import make_sampler
from gmmkernel.digits import IMAGE_SHAPE, DigitsUNet, digit_fid, load_unet
from gmmkernel.mixtures import Mixture
from gmmkernel.moments import moment_report
from gmmkernel.samplers import Model
from gmmkernel.samplers.methods import METHODS
from gmmkernel.sharding import load_shards, sample_shards
from gmmkernel.sharding.sample import check_finite

SHOWN = 5 * IMAGE_COLUMNS

MOST_QUADRATIC_STEPS = 29
"""More of them would visit a timestep of the digits' 1,000 twice."""

_COUNT = 1000
"""Digits where nothing else is said, and of each group whose digit-FID the documentation has."""


def run(arguments: argparse.Namespace) -> int:
    """Sample, write the files asked for, print the figures."""
    if arguments.sampler == "flow":
        raise ValueError(f"--sampler: expected one of {', '.join(METHODS)} for the digits, got flow")
    arguments.sampler = arguments.sampler or "dpm-solver"
    arguments.count = _COUNT if arguments.count is None else arguments.count
    if arguments.count < 2:
        raise ValueError(
            f"--count: expected at least 2 digits, whose distance is computed, got {arguments.count}"
        )
    if arguments.guidance_scale is not None and arguments.digit is None:
        raise ValueError("--guidance-scale: needs --digit, the class to guide towards")
    if arguments.output is not None:
        check_matplotlib()
    if arguments.spacing is None:
        arguments.spacing = "quadratic" if arguments.steps <= MOST_QUADRATIC_STEPS else "trailing"
    mixture = None
    if arguments.variant != "none":
        mixture = make_mixture(arguments, arguments.variant, arguments.steps)
    seeds = make_seeds(arguments)
    with process_group(arguments.device) as place:
        if place.ranks > 1 and arguments.shards is None:
            raise ValueError(f"--shards: needed to share the samples among {place.ranks} ranks")
        images, figures = _sample(arguments, mixture, seeds, place)
    if images is None:
        return 0
    if arguments.npz is not None:  # first, so that whatever happens to the rest the samples are there
        arrays = io.BytesIO()
        np.savez_compressed(arrays, samples=images.numpy(), seeds=seeds.numpy())
        write_file("--npz", arguments.npz, arrays.getvalue())
    if arguments.digit is None:
        figures["digit_fid"] = digit_fid(images.clamp(-1, 1))
        few = (
            f"; of fewer than {_COUNT:,} it is larger, and not comparable" if arguments.count < _COUNT else ""
        )
        print(f"digit-FID {figures['digit_fid']:.2f} ({arguments.count} samples, lower is better{few})")
    known = {
        "figures": figures,
        "settings": settings(arguments, batch_size=batch_size(arguments)),
        "seeds": {"first": int(seeds[0]), "last": int(seeds[-1])},
        "ranks": place.ranks,
        "versions": versions(),
    }
    write_json(arguments.json, known)
    if arguments.output is not None:
        method = METHODS[arguments.sampler]
        title = (
            f"{method.title}{'' if mixture is None else f'-GMM {arguments.variant}'}, {arguments.steps} steps"
        )
        if method.has_eta:
            title += f", eta = {arguments.eta:g}"
        panel = Panel("", [Row("", images[:SHOWN])])
        write_panels("--output", arguments.output, title, [panel], panel_columns=1)
        print(f"picture: {arguments.output}")
    if arguments.npz is not None:
        print(f"arrays: {arguments.npz}")
    if arguments.output is arguments.npz is arguments.shards is None:
        print("no sample was kept: --output FILE.png keeps a picture, --npz FILE.npz all of them")
    return 0


def _sample(
    arguments: argparse.Namespace, mixture: Mixture | None, seeds: torch.Tensor, place: Place
) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """Draw the samples, print what it took, return both; on other ranks than the first, nothing."""
    figures: dict[str, Any] = {}
    sampler = make_sampler(arguments, mixture, place.device)
    if place.rank == 0:
        check_file("--output", arguments.output)
        check_file("--npz", arguments.npz)
        check_file("--json", arguments.json)
        if arguments.shards is not None:
            check_samples_folder("--shards", arguments.shards)
    if mixture is not None and place.rank == 0:
        report = moment_report(mixture, sampler.coefficients)
        figures["moments"] = moments(report)
        print(report)
        print()
    unet = load_unet(place.device)
    model = _guided(unet) if sampler.guided else unet
    labels = (
        () if arguments.digit is None else (torch.full(seeds.shape, arguments.digit, device=place.device),)
    )
    begin = time.perf_counter()
    if arguments.shards is None:
        images = sampler.sample(
            model,
            seeds,
            IMAGE_SHAPE,
            conditioning=labels,
            batch_size=batch_size(arguments),
            progress=shows_progress(),
        ).sample.cpu()
        check_finite("model", images, seeds)
        seconds = time.perf_counter() - begin
        batches = -(-arguments.count // batch_size(arguments))
        each = seconds / (batches * len(sampler.timesteps))
        speed = arguments.count / seconds
        figures |= {"seconds": seconds, "samples_per_second": speed, "seconds_per_call": each}
        print(f"{arguments.count} samples in {seconds:.2f} s: {speed:.0f} samples/s")
        print(
            f"{each:.4f} s per call of the network with {batch_size(arguments)} samples, the sampler's step included"
        )
        return images, figures
    with naming_options("--shards", arguments.shards):
        done = sample_shards(
            sampler,
            model,
            seeds,
            IMAGE_SHAPE,
            arguments.shards,
            batch_size=batch_size(arguments),
            conditioning=labels,
            description={"model": "digits", "digit": arguments.digit, "steps": arguments.steps},
            progress=shows_progress(),
        )
    if place.rank > 0:
        return None, {}
    seconds = time.perf_counter() - begin
    made = done.shards - done.found
    figures |= {"seconds": seconds, "shards_made": made, "shards_found": done.found}
    print(f"shards: {made} made in {seconds:.2f} s{by_ranks(place)}, {done.found} were there before")
    return load_shards(arguments.shards).sample, figures


def _guided(unet: DigitsUNet) -> Model:
    def predict(
        sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return unet(sample, timestep), unet(sample, timestep, labels)

    return predict
