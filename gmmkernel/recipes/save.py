"""The pipeline of diffusers that a training ends as: a folder that is there whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from pathlib import Path

import torch

from gmmkernel.recipes.extras import load_diffusers
from gmmkernel.recipes.settings import Settings
from gmmkernel.recipes.unet import Denoiser

PIPELINE_FOLDER = "pipeline"
CLASSES_FILE = "gmmkernel.json"

_NEW, _OLD = "new-gmmkernel", "old-gmmkernel"


def save_pipeline(
    folder: Path,
    model: Denoiser,
    settings: Settings,
    classes: list[str] | None = None,
    null_class: int | None = None,
) -> None:
    """Save a U-Net as a `DDPMPipeline`, which `diffusers.DDPMPipeline.from_pretrained(folder)` loads.

    It is written beside the folder first, flushed to the disk and renamed. An older pipeline in its place is put aside
    just before, and removed after; a process that is killed between the two renames leaves none, and no half of one.

    Args:
        folder: where it is to be; a pipeline that is there is replaced.
        model: the U-Net, on any device.
        settings: the noise schedule, timesteps and prediction type are those of its scheduler.
        classes: names of the classes; with them the folder gets a `gmmkernel.json` with "classes" and "null_class".
        null_class: the label that stands for none; None: there is no such label.

    Raises:
        OSError: it cannot be written.
        FileExistsError: the folder has something else than a pipeline.
        ImportError: diffusers is not installed.
    """
    diffusers = load_diffusers()
    check_pipeline_folder(folder)
    _remove(folder, _NEW)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        beta_schedule=settings.schedule,
        prediction_type=settings.prediction_type,
        variance_type="fixed_large",  # as both recipes' sources sample
    )
    # Contiguous, as safetensors needs them, and on the CPU, since the trainer goes on with the one that it has.
    unet = copy.deepcopy(model.unet).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    new = _beside(folder, _NEW)
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        pipeline.save_pretrained(new, safe_serialization=True)
        if classes is not None:
            described = {"classes": classes, "null_class": null_class}
            (new / CLASSES_FILE).write_text(
                json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
            )
        _flush(new)
        _replace(folder, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def check_pipeline_folder(folder: Path) -> None:
    """Accept a folder that is not there, or has a pipeline, which `save_pipeline` would replace.

    Raises:
        FileExistsError: it has something else.
    """
    if folder.exists() and not (folder / "model_index.json").exists():
        raise FileExistsError(f"expected a pipeline or nothing in {str(folder)!r}, got something else")


def _beside(folder: Path, which: str) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{which}")


def _replace(folder: Path, new: Path) -> None:
    old = None
    if folder.exists():
        old = _beside(folder, _OLD)
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old is not None:
            old.rename(folder)
        raise
    _flush_folder(folder.parent)
    _remove(folder, _OLD)


def _flush(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path, which: str) -> None:
    """Remove what this process has put aside, or one that was killed had written or put aside."""
    for path in folder.parent.glob(f".{folder.name}.*.{which}"):
        shutil.rmtree(path, ignore_errors=True)
