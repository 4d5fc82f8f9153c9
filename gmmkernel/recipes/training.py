"""The trainer that settings and images describe."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from gmmkernel._checks import check_device
from gmmkernel.recipes.images import Images
from gmmkernel.recipes.settings import Settings
from gmmkernel.recipes.unet import new_unet
from gmmkernel.schedules import noise_schedule
from gmmkernel.training import Trainer

_OF_IMAGES = ("size", "crop", "filter", "flip", "classes")
"""Settings that decide what the images are."""

_NOTED = (
    *_OF_IMAGES,
    *("channels", "multipliers", "layers", "attention", "head_dim", "dropout"),
)
"""Settings that decide the numbers and are no arguments of the trainer."""


def null_class(settings: Settings, images: Images) -> int | None:
    """Return the label that stands for a dropped one, the number of classes; None where none is dropped."""
    return len(images.classes) if images.classes is not None and settings.dropped_labels else None


def image_trainer(
    settings: Settings,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    distributed: bool = False,
) -> Trainer:
    """Return the trainer of a new U-Net for images.

    Args:
        settings: all of them.
        images: what `load_images` made of them.
        device: where to train.
        distributed: do this rank's share: put the model in DistributedDataParallel, with the default process group.

    Returns:
        The trainer; call its `fit(images, settings.steps, ...)`. Its `average` is a `Denoiser`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: settings do not fit each other, the images were loaded with others, or `device` is not there.
        ImportError: diffusers is not installed.
    """
    if not isinstance(settings, Settings):
        raise TypeError(f"settings: expected Settings, got {type(settings).__name__}")
    if not isinstance(images, Images):
        raise TypeError(f"images: expected what load_images returns, got {type(images).__name__}")
    for name in _OF_IMAGES:
        own, loaded = getattr(settings, name), getattr(images.settings, name)
        if own != loaded:
            raise ValueError(
                f"images: expected some loaded with {name} = {own!r} like the settings, got {name} = {loaded!r}"
            )
    device = check_device("device", device)
    dropped = null_class(settings, images)
    taken = None if images.classes is None else len(images.classes) + (dropped is not None)
    schedule = noise_schedule(
        settings.schedule,
        num_train_timesteps=settings.timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
    )
    loss = {"skip": 1, "tau": 1.0, "target": "independent"}  # of DDPM, whatever else they are
    if settings.loss == "skip":
        loss = {
            "skip": 9 if settings.skip is None else settings.skip,
            "tau": 0.99 if settings.tau is None else settings.tau,
            "target": settings.target or "independent",
        }
    unet = new_unet(settings, taken, device=device)
    return Trainer(
        DistributedDataParallel(unet) if distributed else unet,
        schedule,
        **loss,  # type: ignore[arg-type]
        prediction_type=settings.prediction_type,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup or None,
        cosine_steps=settings.steps if settings.decay == "cosine" else None,
        max_grad_norm=settings.max_grad_norm,
        ema_decay=settings.ema_decay,
        conditioning_dropout=settings.dropped_labels,
        null_conditioning=[] if dropped is None else [dropped],
        seed=settings.seed,
        autocast=torch.bfloat16 if settings.precision == "bfloat16" else None,
        notes={name: getattr(settings, name) for name in _NOTED} | {"images": images.digest},
    )
