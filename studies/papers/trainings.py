"""The two trainings of S2-DM, with what the command `train --images` is made of, and what is made of them."""

from __future__ import annotations

import os
import sys
import time
import zipfile
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gmmkernel import NoiseSchedule, noise_schedule
from gmmkernel.cli.ranks import Place
from gmmkernel.recipes import (
    PIPELINE_FOLDER,
    DamagedImageError,
    Denoiser,
    Settings,
    image_trainer,
    load_images,
    new_unet,
    read_recipe,
    save_pipeline,
)
from gmmkernel.recipes.extras import load_diffusers
from gmmkernel.samplers import Model
from gmmkernel.training import Trainer
from studies.folder import write_json
from studies.papers.estimate import Speed, measure
from studies.papers.experiments import SIMPLE, SKIP, SKIP_LOSS
from studies.skip_step_methods import Method, optimal_scale

if TYPE_CHECKING:
    from gmmkernel.pipelines import ImagePipeline

CHECKPOINT_EVERY = 5000
_STEPS = 4
_LOSS = ("loss", *SKIP_LOSS)


class Trainings:
    """Two trainings with the same settings but for the loss.

    Args:
        folder: of the experiment.
        images: to train on.
        recipe: a recipe's name or file.
        steps: of each training; None: the recipe's.
        workers: processes that load images ahead.

    Attributes:
        settings: of both; their loss is DDPM's.
        images: what was loaded.

    Raises:
        ValueError: there are no images, or settings do not fit.
    """

    losses: dict[str, dict[str, Any]] = {SIMPLE: {"loss": "simple"}, SKIP: {"loss": "skip", **SKIP_LOSS}}  # noqa: RUF012

    def __init__(self, folder: Path, images: Path, recipe: str, steps: int | None, workers: int) -> None:
        load_diffusers()
        found = {name: value for name, value in read_recipe(recipe).items() if name not in _LOSS}
        if steps is not None:
            found["steps"] = steps
        self.settings = Settings(**found)
        if self.settings.steps is None:
            raise ValueError("--training-steps: needed with a --recipe that has no steps, got none")
        if self.settings.prediction_type != "epsilon" or self.settings.classes != "none":
            raise ValueError("--recipe: expected one that predicts epsilon, without classes, got another")
        self.images = load_images(images, self.settings)
        self._folder, self._workers = folder, workers

    @property
    def reference(self) -> Path:
        """The training's images, unmirrored, as an .npz."""
        return self._folder / "reference.npz"

    def place(self, model: str) -> Path:
        """Return the folder of a training."""
        return self._folder / f"training-{model}"

    def left(self) -> int:
        """Return the optimiser steps of trainings that are not done; what their checkpoints have counts as undone."""
        assert self.settings.steps is not None
        return self.settings.steps * sum(not self._done(model).exists() for model in self.losses)

    def describe(self) -> dict[str, Any]:
        """Return what the models depend on."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in _LOSS}
        return {"images": self.images.digest, "settings": settings, "skip": SKIP_LOSS}

    def measure(self, batch_size: int, dtype: str, place: Place) -> Speed:
        """Time a few calls of an untrained network, and, where there is something left to train, a few steps."""
        network = new_unet(self.settings, device=place.device).eval().to(getattr(torch, dtype))
        size = self.settings.size
        sample = torch.randn(batch_size, 3, size, size, device=place.device, dtype=getattr(torch, dtype))
        timestep = torch.full([batch_size], self.settings.timesteps // 2, device=place.device)
        with torch.no_grad():
            call = measure(lambda: network(sample, timestep), place.device)
        if not self.left():
            return Speed(call, 0.0)
        times: list[float] = []

        def note(_: Any) -> None:
            if place.device.type == "cuda":
                torch.cuda.synchronize(place.device)
            times.append(time.perf_counter())

        trainer = image_trainer(self.settings, self.images, device=place.device, distributed=place.ranks > 1)
        trainer.fit(self.images, _STEPS, num_workers=self._workers, progress=False, callback=note)
        return Speed(call, 0.0, min(after - before for before, after in pairwise(times)))

    def train(self, model: str, place: Place) -> None:
        """Train, or go on where it was stopped, and save a pipeline with every checkpoint; every rank calls it."""
        if self._done(model).exists():
            return
        settings = replace(self.settings, **self.losses[model])
        assert settings.steps is not None
        folder = self.place(model)

        def save(trainer: Trainer) -> None:
            average = trainer.average
            assert isinstance(average, Denoiser)
            save_pipeline(folder / PIPELINE_FOLDER, average, settings)

        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            trainer = image_trainer(settings, self.images, device=place.device, distributed=place.ranks > 1)
            trainer.fit(
                self.images,
                settings.steps,
                folder=folder,
                checkpoint_every=CHECKPOINT_EVERY,
                num_workers=self._workers,
                progress=sys.stderr.isatty(),
                after_checkpoint=save,
            )
        except DamagedImageError as error:
            # A worker's error comes with its traceback, of which the last line is the message.
            raise ValueError(str(error).rpartition(f"{DamagedImageError.__name__}: ")[2].strip()) from error
        finally:
            torch.use_deterministic_algorithms(deterministic)
        if place.rank == 0:
            save(trainer)  # again, in case a kill came between the last checkpoint and its pipeline
            write_json(self._done(model), {"steps": settings.steps, **self.losses[model]})

    def _done(self, model: str) -> Path:
        return self.place(model) / "done.json"

    def load(self, model: str, dtype: str, place: Place) -> tuple[ImagePipeline, str]:
        """Return a trained model's pipeline, whose samples are not clipped, and the digest of its weights."""
        from gmmkernel.pipelines import load_pipeline

        found = load_pipeline(
            self.place(model) / PIPELINE_FOLDER, dtype=getattr(torch, dtype), device=place.device
        )
        scheduler = found.pipe.scheduler
        found.pipe.scheduler = type(scheduler).from_config(scheduler.config, clip_sample=False)
        return found, found.digest()

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule of both."""
        given = self.settings
        return noise_schedule(
            given.schedule,
            num_train_timesteps=given.timesteps,
            beta_start=given.beta_start,
            beta_end=given.beta_end,
        )

    def scaled(self, network: Model) -> Model:
        """Return a network whose output is scaled to the optimum of the skip-step loss, timestep by timestep."""
        loss = Method(SKIP, SKIP_LOSS["target"], SKIP_LOSS["skip"], trained=False)
        scale = optimal_scale(self.schedule(), loss)

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            made = network(sample, timestep)
            assert isinstance(made, Tensor)
            return made * scale.to(made.device)[timestep][:, None, None, None]

        return predict

    def write_reference(self) -> None:
        """Write the training's images, as they are cut and resized, where FID compares with them; once."""
        if self.reference.exists():
            return
        part = self.reference.with_suffix(".part")
        shape = (self.images.count, self.settings.size, self.settings.size, 3)
        with part.open("wb") as file:
            with (
                zipfile.ZipFile(file, "w") as archive,
                archive.open("arr_0.npy", "w", force_zip64=True) as stream,
            ):
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for index in range(self.images.count):
                    item = self.images[index]
                    assert isinstance(item, Tensor)
                    pixels = ((item + 1) * 127.5).round().to(torch.uint8)
                    stream.write(pixels.permute(1, 2, 0).contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.reference)
