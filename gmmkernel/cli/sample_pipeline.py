"""`sample --pipeline`: images of a diffusers pipeline, in a folder that any number of ranks can go on with."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gmmkernel.cli.figures import moments, settings, versions, write_json
from gmmkernel.cli.folders import check_samples_folder, naming_options
from gmmkernel.cli.options import make_mixture, make_seeds
from gmmkernel.cli.outputs import check_file
from gmmkernel.cli.progress import loading, shows_progress
from gmmkernel.cli.ranks import Place, by_ranks, process_group
from gmmkernel.cli.samplers import check_method
from gmmkernel.moments import moment_report
from gmmkernel.samplers.methods import METHODS
from gmmkernel.sharding import sample_shards

if TYPE_CHECKING:
    from gmmkernel.pipelines import ImagePipeline

DTYPES = ("float32", "bfloat16", "float16")

_COUNT = 16
_LARGEST_BATCH = 16


def run(arguments: argparse.Namespace) -> int:
    """Load the pipeline, sample, write a folder of images or shards, print how fast."""
    kept = [name for name in ("images", "shards") if getattr(arguments, name) is not None]
    if len(kept) != 1:
        got = "both" if kept else "neither"
        raise ValueError(f"--images: expected a folder for PNG images, or --shards for arrays, got {got}")
    prompts = _read_prompts(arguments.prompts)
    if arguments.count is None:
        arguments.count = len(prompts) or _COUNT
    seeds = make_seeds(arguments)
    with process_group(arguments.device) as place:
        if place.rank == 0:
            check_samples_folder(f"--{kept[0]}", getattr(arguments, kept[0]))
            check_file("--json", arguments.json)
        _sample(arguments, kept[0], seeds, prompts, place)
    return 0


def _sample(
    arguments: argparse.Namespace, kept: str, seeds: torch.Tensor, prompts: list[str], place: Place
) -> None:
    pipeline = _load(arguments, place)
    _check_method(arguments, pipeline.pipe.scheduler.config)
    conditioning = pipeline.conditioning(
        arguments.count,
        classes=arguments.classes,
        prompts=prompts,
        negative_prompt=arguments.negative_prompt or "",
    )
    mixture = None
    if arguments.variant != "none":
        mixture = make_mixture(arguments, arguments.variant, arguments.steps, prod(pipeline.shape))
    sampler = pipeline.sampler(
        arguments.steps,
        method=arguments.sampler,
        eta=arguments.eta,
        mixture=mixture,
        spacing=arguments.spacing,
    )
    figures: dict[str, Any] = {}
    if mixture is not None and place.rank == 0:
        moment = moment_report(mixture, sampler.coefficients)
        figures["moments"] = moments(moment)
        print(moment)
        print()
    begin = time.perf_counter()
    batch_size = (
        min(arguments.count, _LARGEST_BATCH) if arguments.batch_size is None else arguments.batch_size
    )
    description = _description(arguments, pipeline, prompts)
    folder = getattr(arguments, kept)
    with naming_options(f"--{kept}", folder):
        report = sample_shards(
            sampler,
            pipeline,
            seeds,
            pipeline.shape,
            folder,
            batch_size=batch_size,
            conditioning=conditioning,
            decode=pipeline.decode,
            files="png" if kept == "images" else "safetensors",
            description=description,
            progress=shows_progress(),
        )
    if place.rank == 0:
        seconds = time.perf_counter() - begin
        made = report.samples
        found = arguments.count - made
        figures |= {"seconds": seconds, "images_made": made, "images_found": found}
        figures["images_per_second"] = made / seconds if made else None
        known = {
            "figures": figures,
            "settings": settings(arguments, batch_size=batch_size),
            "pipeline": description,
            "seeds": {"first": int(seeds[0]), "last": int(seeds[-1])},
            "ranks": place.ranks,
            "versions": versions(),
        }
        write_json(arguments.json, known)
        speed = f" in {seconds:.2f} s{by_ranks(place)}: {made / seconds:.3g} images/s" if made else ""
        print(f"{made} images made{speed}; {found} were there before")
        print(f"images: {folder}")


def _check_method(arguments: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Refuse options that do not belong to the method, which the scheduler's config decides where none is given."""
    from gmmkernel.pipelines.load import default_method

    method = arguments.sampler or default_method(config)
    if method in METHODS:
        check_method(arguments, method)


def _saved_config(pipeline: str) -> Mapping[str, Any] | None:
    """Return the config of the scheduler that a folder has; None: it has none, or is no folder, which loading says."""
    try:
        config = json.loads((Path(pipeline) / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _load(arguments: argparse.Namespace, place: Place) -> ImagePipeline:
    arguments.dtype = arguments.dtype or ("float32" if place.device.type == "cpu" else "bfloat16")
    with loading():
        from gmmkernel.pipelines import load_pipeline

        config = _saved_config(arguments.pipeline)
        if config is not None:
            _check_method(arguments, config)
        return load_pipeline(
            arguments.pipeline,
            dtype=getattr(torch, arguments.dtype),
            device=place.device,
            guidance_scale=arguments.guidance_scale,
            height=arguments.height,
            width=arguments.width,
            vae_batch_size=arguments.vae_batch_size,
            compile=arguments.compile,
        )


def _read_prompts(path: Path | None) -> list[str]:
    """Return the prompts of a file, one in each line; empty lines are none."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts: expected text in UTF-8, got {str(path)!r}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts: expected a prompt in each line, got {str(path)!r} without one")
    return prompts


def _description(
    arguments: argparse.Namespace, pipeline: ImagePipeline, prompts: list[str]
) -> dict[str, Any]:
    """Return what images depend on besides the sampler and the seeds; not where the pipeline lies."""
    return {
        "pipeline": type(pipeline.pipe).__name__,
        "weights": pipeline.digest(),
        "dtype": arguments.dtype,
        "steps": arguments.steps,  # as the sampler's tables say too, but not in words
        "compile": arguments.compile,
        "guidance_scale": arguments.guidance_scale,
        "vae_batch_size": arguments.vae_batch_size,
        "size": [arguments.height, arguments.width],
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest() if prompts else None,
        "negative_prompt": arguments.negative_prompt,
    }
