"""`sample`: draw digits with the trained model, or images with a pipeline of diffusers."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from gmmkernel.cli import sample_digits, sample_pipeline
from gmmkernel.cli.options import VARIANTS, add_mixture_options, add_run_options, check_no_mixture_options
from gmmkernel.cli.values import MOST_THREADS, choice, existing_file, file, folder, integer, number
from gmmkernel.digits import NUM_CLASSES
from gmmkernel.samplers.methods import METHODS
from gmmkernel.schedules import SPACINGS

_FEWEST_PNDM_STEPS = 4
_OF_DIGITS = {"digit": None, "npz": None, "output": None}
_OF_PIPELINES = {
    **dict.fromkeys(("images", "classes", "prompts", "negative_prompt", "height", "width", "dtype")),
    "vae_batch_size": 1,
    "compile": False,
}


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "sample",
        help="draw digits from the model that ships with the package, or images from a diffusers pipeline",
        description="Without --pipeline: digits from the model that ships with the package. With it: images of a "
        "diffusers pipeline, written to a folder in which a run that was stopped goes on. torchrun --nproc-per-node N "
        "-m gmmkernel sample ... shares the work among ranks; the images are the same.",
    )
    parser.add_argument(
        "--sampler",
        **choice([*METHODS, "flow"]),
        help="method (default dpm-solver, without noise; flow for rectified flows, and only those)",
    )
    parser.add_argument(
        "--steps", type=integer(1), default=10, metavar="S", help="sampling steps (default 10)"
    )
    parser.add_argument(
        "--eta", type=number(0, 1), default=0.0, metavar="E", help="share of fresh noise (default 0)"
    )
    parser.add_argument(
        "--spacing",
        **choice(SPACINGS),
        help="timesteps (default the pipeline's own; for the digits quadratic, beyond "
        f"{sample_digits.MOST_QUADRATIC_STEPS} steps trailing)",
    )
    parser.add_argument(
        "--variant",
        **choice(["none", *VARIANTS]),
        default="none",
        help="mixture, for samplers that draw noise (default none)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=number(),
        metavar="G",
        help="classifier-free guidance (default the pipeline's own; of the digits it needs --digit)",
    )
    add_mixture_options(parser)
    add_run_options(parser, count="1000 digits; one image for each prompt, or 16", output="none")
    _add_digits_options(parser)
    _add_pipeline_options(parser)
    _add_rank_options(parser)
    parser.set_defaults(run=run)


def _add_digits_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("digits")
    group.add_argument(
        "--digit", type=integer(0, NUM_CLASSES - 1), metavar="DIGIT", help="draw only this digit, 0 to 9"
    )
    group.add_argument(
        "--npz", type=file(".npz"), metavar="FILE", help="also write samples and seeds as arrays (.npz)"
    )


def _add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pipelines")
    group.add_argument(
        "--pipeline",
        metavar="FOLDER_OR_NAME",
        help="a diffusers pipeline: the folder it was saved in, or its name on the Hugging Face Hub",
    )
    group.add_argument(
        "--images", type=folder, metavar="FOLDER", help="write a PNG for each image (or --shards: arrays)"
    )
    group.add_argument(
        "--classes",
        metavar="CLASSES",
        help="of a model of classes: balanced, or numbers or names with commas between, taken in turn",
    )
    group.add_argument(
        "--prompts",
        type=partial(existing_file, what="a file with one prompt a line"),
        metavar="FILE",
        help="of a text model: a file with a prompt in each line, taken in turn",
    )
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    group.add_argument("--height", type=integer(1), metavar="PIXELS", help="of a text model's images")
    group.add_argument("--width", type=integer(1), metavar="PIXELS", help="the same")
    group.add_argument(
        "--dtype",
        **choice(sample_pipeline.DTYPES),
        help="of the networks' weights (default float32 on the CPU, bfloat16 on CUDA); samples are float32",
    )
    group.add_argument(
        "--vae-batch-size",
        type=integer(1),
        default=1,
        metavar="B",
        help="latents decoded at a time (default 1)",
    )
    group.add_argument("--compile", action="store_true", help="compile the network with torch.compile")


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "ranks", "torchrun --nproc-per-node N -m gmmkernel sample --shards FOLDER ..."
    )
    group.add_argument(
        "--shards",
        type=folder,
        metavar="FOLDER",
        help="write a file for each batch, share them among the ranks, and go on where a run was stopped",
    )
    group.add_argument("--device", **choice(["cpu", "cuda"]), default="cpu", help="what to use (default cpu)")
    group.add_argument(
        "--threads",
        type=integer(1, MOST_THREADS),
        metavar="T",
        help="CPU threads of each process; the network's bits depend on it (default 1 where a folder is written, else "
        "PyTorch's)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Sample, write the files asked for, print the figures."""
    of_pipeline = arguments.pipeline is not None
    for name, default in (_OF_DIGITS if of_pipeline else _OF_PIPELINES).items():
        if getattr(arguments, name) != default:
            option = "--" + name.replace("_", "-")
            whose = "the digits, and there is --pipeline" if of_pipeline else "pipelines: needs --pipeline"
            raise ValueError(f"{option}: is for {whose}")
    if arguments.variant == "none":
        check_no_mixture_options(arguments)
    if arguments.sampler == "pndm" and arguments.steps < _FEWEST_PNDM_STEPS:
        raise ValueError(
            f"--steps: expected at least {_FEWEST_PNDM_STEPS} with --sampler pndm, got {arguments.steps} "
            "(--sampler plms takes fewer)"
        )
    writes_folder = of_pipeline or arguments.shards is not None
    if arguments.threads is not None or writes_folder:
        torch.set_num_threads(arguments.threads or 1)
    return sample_pipeline.run(arguments) if of_pipeline else sample_digits.run(arguments)
