"""`train --images`: train a U-Net of diffusers on the user's own images, and save it as a pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gmmkernel.cli.outputs import check_folder
from gmmkernel.cli.progress import shows_progress
from gmmkernel.cli.ranks import Place, process_group
from gmmkernel.cli.values import integer
from gmmkernel.recipes import (
    PIPELINE_FOLDER,
    RECIPES,
    DamagedImageError,
    Denoiser,
    Settings,
    image_trainer,
    load_images,
    read_recipe,
    save_pipeline,
)
from gmmkernel.recipes.save import check_pipeline_folder
from gmmkernel.recipes.settings import Kind, kind_of
from gmmkernel.recipes.training import null_class
from gmmkernel.training import Trainer
from gmmkernel.training.data import Data

WORKERS = 2

_BESIDES = ("images", "recipe", "workers")
"""Options of images that are no settings of a recipe."""


def add_options(parser: argparse.ArgumentParser, shared: set[str]) -> set[str]:
    """Add the options that images have alone, and return their names; `shared` are those that are there already."""
    group = parser.add_argument_group(
        "images", "of your own, instead of the digits; beside the options above"
    )
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER|FILE.npz",
        help="image files, in folders within it too; or uint8 [N, H, W, 3] in `arr_0` or `images`",
    )
    group.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help=f"settings to begin with: {', '.join(RECIPES)} or a file with the names of the options below as keys; "
        "an option on the command line overrides it",
    )
    group.add_argument(
        "--workers",
        type=integer(0),
        metavar="N",
        help=f"processes that load images ahead, of each rank (default {WORKERS}; 0: none)",
    )
    own = set(_BESIDES)
    for setting in fields(Settings):
        if setting.name in shared:
            continue
        kind, option = kind_of(setting), "--" + setting.name.replace("_", "-")
        description = setting.metadata["description"]
        if kind.sign is None:
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=description)
        else:
            group.add_argument(
                option, type=_converter(setting.name, kind), metavar=kind.sign, help=description
            )
        own.add(setting.name)
    return own


def _converter(name: str, kind: Kind) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind.read(text)
        except ValueError:
            value = text
        try:
            return kind.check(name, value)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name}: ")) from error

    return convert


def fit(trainer: Trainer, place: Place, data: Data, steps: int, **options: Any) -> None:
    """Train, and say on the first rank from which step on, or that nothing was left to do.

    Args:
        trainer: the trainer.
        place: where this process stands.
        data: as `Trainer.fit` has it, and so the rest.
        steps: optimiser steps in all.
        options: others of `Trainer.fit`.
    """
    begun = False

    def say(trainer: Trainer) -> None:
        nonlocal begun
        if not begun and place.rank == 0 and trainer.step > 1:
            with tqdm.external_write_mode():  # or the line would go on where a bar ends
                print(f"went on after step {trainer.step - 1:,} of {steps:,}", flush=True)
        begun = True

    trainer.fit(data, steps, progress=shows_progress(), callback=say, **options)
    if not begun and place.rank == 0:
        print(f"nothing was left to do: all {steps:,} steps had been done before")


def train_on_images(given: dict[str, Any], *, output: Path, device: str, checkpoint_every: int) -> None:
    """Train, and save a pipeline with every checkpoint.

    Args:
        given: the options that were given, by their names; of them, the settings, `images`, `recipe` and `workers`.
        output: the folder of checkpoint, log and pipeline.
        device: "cpu" or "cuda".
        checkpoint_every: steps between checkpoints.
    """
    names = {setting.name for setting in fields(Settings)}
    recipe = read_recipe(given["recipe"]) if "recipe" in given else {}
    settings = Settings(**recipe | {name: value for name, value in given.items() if name in names})
    if settings.steps is None:
        raise ValueError("--steps: expected how many to train for, as an option or in a --recipe, got none")
    images = load_images(given["images"], settings)
    with process_group(device) as place:
        trainer = image_trainer(settings, images, device=place.device, distributed=place.ranks > 1)
        check_folder("--output", output)
        try:
            check_pipeline_folder(output / PIPELINE_FOLDER)
        except FileExistsError as error:
            raise FileExistsError(f"--output: {error}") from error
        saved = -1

        def save(trainer: Trainer) -> None:
            nonlocal saved
            model = trainer.average
            assert isinstance(model, Denoiser)
            save_pipeline(
                output / PIPELINE_FOLDER, model, settings, images.classes, null_class(settings, images)
            )
            saved = trainer.step

        if place.rank == 0:
            parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
            classes = "" if images.classes is None else f" of {len(images.classes)} classes"
            mirrored = f", {images.count:,} of them mirrored" if settings.flip else ""
            print(
                f"{len(images):,} images{classes}{mirrored}; a U-Net of {parameters:,} parameters", flush=True
            )
        try:
            fit(
                trainer,
                place,
                images,
                settings.steps,
                folder=output,
                checkpoint_every=checkpoint_every,
                num_workers=given.get("workers", WORKERS),
                after_checkpoint=save,
            )
        except DamagedImageError as error:
            # A worker's error comes with its traceback, of which the last line is the message.
            raise ValueError(str(error).rpartition(f"{DamagedImageError.__name__}: ")[2].strip()) from error
        if place.rank > 0:
            return
        if saved != trainer.step:  # nothing was left to train
            save(trainer)
    print(f"pipeline of the weights' moving average: {output / PIPELINE_FOLDER}")
