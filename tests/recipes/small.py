"""Small images in files, and the settings of a U-Net that trains in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmmkernel.recipes import Settings

SETTINGS: dict[str, Any] = {
    "size": 8,
    "channels": 8,
    "multipliers": (1, 2),
    "layers": 1,
    "attention": (4,),
    "batch_size": 4,
    "learning_rate": 1e-3,
    "ema_decay": 0.5,
    "steps": 3,
}


def small(**changes: Any) -> Settings:
    return Settings(**SETTINGS | changes)


def options(**changes: Any) -> list[str]:
    """Return the same settings as words of the command line."""
    words = []
    for name, value in (SETTINGS | changes).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += ["--" + name.replace("_", "-"), text]
    return words


def pictures(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """Return blots of a colour on a background of another, uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    made = np.zeros((count, height, width, 3), np.uint8)
    for picture in made:
        picture[:] = rng.integers(30, 90, 3)
        distance = np.hypot(y - rng.uniform(2, height - 2), x - rng.uniform(2, width - 2))
        picture[distance < min(height, width) / 4] = rng.integers(150, 250, 3)
    return made


def write(folder: Path, images: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02}{suffix}")
