"""The digits as tensors, and what is in the package."""

from __future__ import annotations

import re
import sys
from importlib import resources

import pytest
import torch

from gmmkernel import digits


def test_all_digits() -> None:
    images, labels = digits.load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(images * 8, (images * 8).round())
    assert sorted(labels.unique().tolist()) == list(range(digits.NUM_CLASSES))


def test_the_splits_share_nothing_and_leave_nothing_out() -> None:
    everything, labels = digits.load_digits()
    train, train_labels = digits.load_digits("train")
    test, test_labels = digits.load_digits("test")
    assert (len(train), len(test)) == (1442, 355)
    pairs = [
        {(int(label), image.numpy().tobytes()) for image, label in zip(*split, strict=True)}
        for split in ((everything, labels), (train, train_labels), (test, test_labels))
    ]
    assert pairs[1] | pairs[2] == pairs[0]
    assert not pairs[1] & pairs[2]
    assert bool((labels.bincount() // 5 == test_labels.bincount()).all())


def test_unknown_split() -> None:
    with pytest.raises(
        ValueError, match=re.escape("split: expected one of all, train, test, got 'validation'")
    ):
        digits.load_digits("validation")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=re.escape('pip install "gmmkernel[train]"')):
        digits.load_digits()
    images = torch.zeros(4, 1, 8, 8)
    assert digits.load_unet()(images, torch.tensor(3)).shape == images.shape
    assert digits.digit_fid(images) > 0


def test_the_shipped_files_are_small() -> None:
    folder = resources.files("gmmkernel.digits").joinpath("weights")
    sizes = {
        file.name: len(file.read_bytes()) for file in folder.iterdir() if file.name.endswith(".safetensors")
    }
    assert set(sizes) == {f"{name}.safetensors" for name in ("unet", "flow_unet", "classifier", "statistics")}
    assert max(sizes.values()) < 1_000_000
    assert sum(sizes.values()) < 2_500_000
