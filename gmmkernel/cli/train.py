"""`train`: train the digits U-Net, or one on the user's images; goes on where it was killed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gmmkernel._checks import INT64_MAX
from gmmkernel.cli.outputs import check_folder, write_file
from gmmkernel.cli.ranks import process_group
from gmmkernel.cli.train_images import add_options, fit, train_on_images
from gmmkernel.cli.values import MOST_THREADS, choice, folder, integer, number
from gmmkernel.digits import DigitsUNet, denoising_loss, digits_trainer, load_digits
from gmmkernel.schedules import TARGETS

UNET_FILE = "unet.safetensors"

_OF_BOTH = {"output": Path("out/training"), "checkpoint_every": 500, "device": "cpu", "threads": 1}
_OF_DIGITS = {"steps": 6000, "skip": 9, "tau": 0.99, "target": "independent", "seed": 0}
"""Defaults of options; images have theirs of the last five in `Settings`."""


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train the digits U-Net, or a U-Net on your own images",
        description="Train the digits U-Net; with --images a U-Net of diffusers on your own. A training that was "
        "stopped goes on from the checkpoint in its folder, and ends with the same bits. torchrun --nproc-per-node N "
        "-m gmmkernel train ... shares each batch.",
        argument_default=argparse.SUPPRESS,  # what was not given is not there: recipes and both trainings differ in it
    )
    parser.add_argument(
        "--output",
        type=folder,
        metavar="FOLDER",
        help="checkpoint, loss log (a line every 100 steps and at the last), and weights or pipeline "
        "(default out/training)",
    )
    parser.add_argument(
        "--steps",
        type=integer(1),
        metavar="N",
        help="optimiser steps (default 6000; images need it or a recipe)",
    )
    parser.add_argument(
        "--skip",
        type=integer(1),
        metavar="S",
        help="timesteps that the loss looks back (default 9; for images, with --loss skip)",
    )
    parser.add_argument(
        "--tau",
        type=number(0, 1),
        metavar="TAU",
        help="weight of DDPM's loss (default 0.99; 1: alone; for images, with --loss skip)",
    )
    parser.add_argument(
        "--target",
        **choice(TARGETS),
        help="of the other part (default independent; for images, with --loss skip)",
    )
    parser.add_argument(
        "--seed", type=integer(0, INT64_MAX), metavar="N", help="seed of everything random (default 0)"
    )
    parser.add_argument(
        "--checkpoint-every", type=integer(1), metavar="N", help="steps between (default 500)"
    )
    parser.add_argument("--device", **choice(["cpu", "cuda"]), help="where to train (default cpu)")
    parser.add_argument(
        "--threads",
        type=integer(1, MOST_THREADS),
        metavar="N",
        help="on the CPU (default 1); the bits depend on it",
    )
    own = add_options(parser, shared=set(_OF_BOTH | _OF_DIGITS))
    parser.set_defaults(run=lambda arguments: run(arguments, own))


def run(arguments: argparse.Namespace, of_images: set[str]) -> int:
    """Train on what the options say; `of_images` are the names of those that need images."""
    given = vars(arguments)
    alone = sorted(of_images & set(given))
    if alone and "images" not in given:
        option = "--" + alone[0].replace("_", "-")
        raise ValueError(f"{option}: is for images of your own, expected --images beside it, got none")
    both = {name: given.get(name, default) for name, default in _OF_BOTH.items()}
    torch.set_num_threads(both.pop("threads"))
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Deterministic algorithms on a GPU need it.
    if "images" in given:
        train_on_images(given, **both)
    else:
        _train_on_digits({name: given.get(name, value) for name, value in _OF_DIGITS.items()}, **both)
    return 0


def _train_on_digits(options: dict[str, Any], *, output: Path, device: str, checkpoint_every: int) -> None:
    """Train, write the averaged weights, print the held-out losses."""
    data = load_digits("train")
    steps: int = options.pop("steps")
    with process_group(device) as place:
        trainer = digits_trainer(steps, **options, device=place.device, distributed=place.ranks > 1)
        check_folder("--output", output)
        fit(trainer, place, data, steps, folder=output, checkpoint_every=checkpoint_every)
        if place.rank > 0:
            return
    unet = trainer.average
    assert isinstance(unet, DigitsUNet)
    path = output / UNET_FILE
    weights = save({name: tensor.cpu().contiguous() for name, tensor in unet.state_dict().items()})
    write_file("--output", path, weights)
    for conditional in (False, True):
        loss = denoising_loss(unet, conditional=conditional)
        print(f"held-out loss {loss:.4f} {'with' if conditional else 'without'} class")
    print(f"weights, their moving average: {path}")
