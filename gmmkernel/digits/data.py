"""Scikit-learn's digits as tensors: needed to train and to check, not to sample or to measure."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel.digits.unet import NUM_CLASSES

SPLITS = ("all", "train", "test")
"""All 1,797 images; the 1,442 for training; the 355 held out."""


def load_digits(split: str = "all") -> tuple[Tensor, Tensor]:
    """Load the 1,797 real digits (UCI optical digits, test part, as packed in scikit-learn).

    Within each class, in the order of the data set, every fifth image is held out; nothing is random.

    Args:
        split: "all", "train" (1,442 images) or "test" (the 355 others).

    Returns:
        images: float32 [N, 1, 8, 8], pixels 0..16 mapped to [-1, 1] by `pixel / 8 - 1`, which is exact.
        labels: int64 [N], 0 to 9.

    Raises:
        ValueError: `split` is not one of the three names.
        ImportError: scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('load_digits needs scikit-learn: pip install "gmmkernel[train]"') from error
    data = datasets.load_digits()
    images = torch.from_numpy(data.images).to(torch.float32).div(8).sub(1).unsqueeze(1)
    labels = torch.from_numpy(data.target).to(torch.int64)
    if split == "all":
        return images, labels
    held_out = _every_fifth_of_each_class(labels)
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen]


def _every_fifth_of_each_class(labels: Tensor) -> Tensor:
    """Mark, among the images of each class, those at positions 4, 9, 14, ...: bool [N]."""
    marked = torch.zeros_like(labels, dtype=torch.bool)
    for digit in range(NUM_CLASSES):
        marked[torch.nonzero(labels == digit).flatten()[4::5]] = True
    return marked
