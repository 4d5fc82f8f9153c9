"""`train`: train the digits U-Net with the skip-step loss, or DDPM's; goes on where it was killed."""

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
from gmmkernel.cli.values import folder, integer, number
from gmmkernel.digits import DigitsUNet, denoising_loss, digits_trainer, load_digits
from gmmkernel.schedules import TARGETS

UNET_FILE = "unet.safetensors"


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train the digits U-Net",
        description="Train the digits U-Net. A training that was stopped goes on from the checkpoint in its folder, "
        "and ends with the same bits. torchrun --nproc-per-node N -m gmmkernel train ... shares each batch.",
    )
    parser.add_argument(
        "--output",
        type=folder,
        default=Path("out/training"),
        metavar="FOLDER",
        help="checkpoint, loss log and weights (default out/training)",
    )
    parser.add_argument(
        "--steps", type=integer(1), default=6000, metavar="N", help="optimiser steps (default 6000)"
    )
    parser.add_argument(
        "--skip",
        type=integer(1),
        default=9,
        metavar="S",
        help="timesteps that the loss looks back (default 9)",
    )
    parser.add_argument(
        "--tau",
        type=number(0, 1),
        default=0.99,
        metavar="TAU",
        help="weight of DDPM's loss (default 0.99; 1: alone)",
    )
    parser.add_argument(
        "--target", choices=TARGETS, default="independent", help="of the other part (default independent)"
    )
    parser.add_argument(
        "--seed",
        type=integer(0, INT64_MAX),
        default=0,
        metavar="N",
        help="seed of everything random (default 0)",
    )
    parser.add_argument(
        "--checkpoint-every", type=integer(1), default=500, metavar="N", help="steps between (default 500)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where to train (default cpu)"
    )
    parser.add_argument(
        "--threads",
        type=integer(1),
        default=1,
        metavar="N",
        help="on the CPU (default 1); the bits depend on it",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, write the averaged weights, print the held-out losses."""
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Deterministic algorithms on a GPU need it.
    data = load_digits("train")
    with process_group(arguments.device) as place:
        trainer = digits_trainer(
            arguments.steps,
            seed=arguments.seed,
            skip=arguments.skip,
            tau=arguments.tau,
            target=arguments.target,
            device=place.device,
            distributed=place.ranks > 1,
        )
        check_folder("--output", arguments.output)
        trainer.fit(
            data, arguments.steps, folder=arguments.output, checkpoint_every=arguments.checkpoint_every
        )
        if place.rank > 0:
            return 0
    unet = trainer.average
    assert isinstance(unet, DigitsUNet)
    path = arguments.output / UNET_FILE
    weights = save({name: tensor.cpu().contiguous() for name, tensor in unet.state_dict().items()})
    write_file("--output", path, weights)
    for conditional in (False, True):
        loss = denoising_loss(unet, conditional=conditional)
        print(f"held-out loss {loss:.4f} {'with' if conditional else 'without'} class")
    print(f"weights, their moving average: {path}")
    return 0
