"""Trained models of the study: the digits that ship with the package, and 16x16 patches of two photographs.

Both need scikit-learn, the photographs Pillow too.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gmmkernel import Trainer, noise_schedule
from gmmkernel.digits import IMAGE_SHAPE, NUM_CLASSES, SmallUNet, digit_fid, load_digits, load_unet
from studies.folder import OutOfTimeError, taken
from studies.quality.distances import Reference
from studies.quality.task import Task

PATCH = 16
PATCH_STEPS = 6000
"""Training steps of the patches' model, at 128 patches each."""

_STRIDE = 4


class Digits(Task):
    """8x8 digits, as many of each, from the shipped U-Net; compared by digit-FID."""

    name = "digits"
    shape = IMAGE_SHAPE
    chunk = 500
    thorough = False

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._unet = load_unet(device)

    def predict(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Ask for 0, 1, ..., 9, 0, 1, ...: which digits come up by luck is most of the noise of a distance."""
        labels = torch.arange(sample.shape[0], device=sample.device) % NUM_CLASSES
        noise: Tensor = self._unet(sample, timestep, labels)
        return noise

    @cached_property
    def _held_out(self) -> Tensor:
        """[310, 1, 8, 8]: of the images held out, as many of each digit, in the order that `predict` asks for."""
        images, labels = load_digits("test")
        by_class = [images[labels == digit] for digit in range(NUM_CLASSES)]
        count = min(len(of_class) for of_class in by_class)
        return torch.stack([of_class[:count] for of_class in by_class], 1).flatten(0, 1)

    def held_out(self, count: int, seed: int) -> Tensor:
        """Return images that the model has not seen, again from the first when there are no more."""
        del seed
        return self._held_out.repeat(-(-count // len(self._held_out)), 1, 1, 1)[:count]

    def data(self, count: int, seed: int) -> Tensor:
        """Draw real digits with replacement, as many of each."""
        images, labels = load_digits("all")
        generator = torch.Generator().manual_seed(seed)
        by_class = [images[labels == digit] for digit in range(NUM_CLASSES)]
        rows = count // NUM_CLASSES
        return torch.cat(
            [of_class[torch.randint(len(of_class), (rows,), generator=generator)] for of_class in by_class]
        )

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Return digit-FID, and the distances of the pixels from those of all real digits."""
        images = samples.clamp(-1, 1)
        return {"digit-FID": digit_fid(images), **self._pixels.distances(images.flatten(1).double())}

    @cached_property
    def _pixels(self) -> Reference:
        return Reference(load_digits("all")[0].flatten(1).double())


class PatchesUNet(SmallUNet):
    """The digits' U-Net for 16x16 patches: 2x2 pixels become channels. There are no classes."""

    def __init__(self) -> None:
        super().__init__(channels=4, classes=0)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise in `sample` [B, 1, 16, 16] at `timestep` [B]."""
        labels = torch.zeros(sample.shape[0], dtype=torch.int64, device=sample.device)
        return F.pixel_shuffle(self.predict(F.pixel_unshuffle(sample, 2), timestep, labels), 2)


def load_patches() -> tuple[Tensor, Tensor]:
    """Return patches to train with and patches held out, float32 [N, 1, 16, 16] in [-1, 1], in grey.

    They overlap within each half: left three quarters of both photographs for training, the rest held out.
    """
    from sklearn.datasets import load_sample_images

    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for photograph in load_sample_images().images:
        grey = torch.tensor(photograph, dtype=torch.float64).mean(2).div(127.5).sub(1).float()
        edge = grey.shape[1] * 3 // 4
        for patches, part in zip(halves, (grey[:, :edge], grey[:, edge:]), strict=True):
            windows = part.unfold(0, PATCH, _STRIDE).unfold(1, PATCH, _STRIDE)
            patches.append(windows.reshape(-1, 1, PATCH, PATCH))
    trained, held_out = (torch.cat(patches) for patches in halves)
    return trained, held_out


def train_patches(folder: Path, steps: int, end: float, device: str) -> PatchesUNet:
    """Train the patches' model, or go on with it; return the moving average of its weights.

    Raises:
        OutOfTimeError: the time `end` of `time.monotonic` has come first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = PatchesUNet()
    unet = unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(
        unet,
        noise_schedule("linear"),
        tau=1.0,
        batch_size=128,
        learning_rate=2e-3,
        cosine_steps=steps,
        weight_decay=1e-4,
        ema_decay=0.999,
        seed=0,
    )
    trainer.fit(
        load_patches()[0],
        steps,
        folder=folder / "patches-model",
        progress=False,
        callback=lambda _: time.monotonic() > end,
    )
    if trainer.step < steps:
        raise OutOfTimeError
    average = trainer.average
    assert isinstance(average, PatchesUNet)
    return average.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


class Patches(Task):
    """16x16 patches from a model trained here, compared with all patches that it was trained with."""

    name = "patches"
    shape = (1, PATCH, PATCH)
    chunk = 500
    thorough = False

    def __init__(self, folder: Path, steps: int, end: float, device: str) -> None:
        self.device = torch.device(device)
        # One process trains, others wait for what it has trained.
        with taken(folder / "patches-model.lock", wait=True):
            self._unet = train_patches(folder, steps, end, device)
        self._patches, self._held_out = load_patches()
        self._reference = Reference(self._patches.flatten(1).double())

    def predict(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise."""
        noise: Tensor = self._unet(sample, timestep)
        return noise

    def held_out(self, count: int, seed: int) -> Tensor:
        """Return patches of the parts of the photographs that the model has not seen."""
        return _some(self._held_out, count, seed)

    def data(self, count: int, seed: int) -> Tensor:
        """Return patches that the model was trained with."""
        return _some(self._patches, count, seed)

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Return the distances of the pixels from those of the patches."""
        return self._reference.distances(samples.clamp(-1, 1).flatten(1).double())


def _some(images: Tensor, count: int, seed: int) -> Tensor:
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[chosen[:count]]
