"""The user's images: files in a folder or an array in an .npz, cut, resized and with their classes."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gmmkernel.recipes.settings import Settings

Picture = Any
"""A `PIL.Image.Image`; Pillow is an extra."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What the names of image files end in, in small or capital letters."""

_ROTATED = range(5, 9)
"""Values of EXIF's orientation that exchange width and height."""
_ORIENTATION = 0x0112


class DamagedImageError(ValueError):
    """A file whose header is right cannot be decoded."""


class Images(Dataset[Any], ABC):
    """Images in a fixed order, each the same whenever it is asked for: a sample, or (sample, label) with classes.

    A sample is float32 [3, size, size] in [-1, 1]. With `flip` there are twice as many; item N + i is item i mirrored.

    Attributes:
        settings: what they were loaded with.
        classes: names of the classes, which labels count; None without classes.
        digest: says which images these are, and of which classes.
    """

    def __init__(self, settings: Settings, classes: list[str] | None, labels: list[int], digest: str) -> None:
        self.settings, self.classes, self.digest = settings, classes, digest
        self._labels = labels

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images there are, those that are mirrored not counted."""

    @abstractmethod
    def _image(self, index: int) -> Picture:
        """Return an image as RGB."""

    def __len__(self) -> int:
        return (2 if self.settings.flip else 1) * self.count

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        mirrored, index = divmod(index, self.count)
        pixels = np.asarray(self._resized(self._image(index)), dtype=np.float32)
        if mirrored:
            pixels = pixels[:, ::-1]
        sample = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - 1)
        return sample if self.classes is None else (sample, self._labels[index])

    def _resized(self, image: Picture) -> Picture:
        from PIL.Image import Resampling

        settings = self.settings
        left, top, side = _square(settings.crop, image.size)
        if image.size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        if side == settings.size:
            return image
        return image.resize((settings.size, settings.size), Resampling[settings.filter.upper()])


def load_images(path: Path | str, settings: Settings) -> Images:
    """Find images, and look at what each is before any work.

    Args:
        path: a folder of images, in folders within it too, in the order of their names; or an .npz with uint8
            [N, H, W, 3], [N, H, W, 1] or [N, H, W] in `arr_0` or `images`.
        settings: `size`, `crop`, `filter`, `flip` and `classes` are used. Classes "folders" are the folders that the
            path has, in the order of their names; "labels" are integers [N] in the .npz, `arr_1` or `labels`, that
            count classes from 0.

    Returns:
        The images; files are decoded when they are asked for. Grey ones become RGB, transparent ones get a white
        background, those that EXIF says are turned are turned back, of those that move the first is taken.

    Raises:
        OSError: the path is not there, or cannot be read.
        ValueError: there are no images, something else is among them, one has a damaged header or more than 8 bits a
            channel or is smaller than `crop`; or labels do not fit.
        ImportError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('images need Pillow: pip install "gmmkernel[pipelines]"') from error
    place = Path(path)
    if place.is_dir():
        if settings.classes == "labels":
            raise ValueError(
                f"classes: expected 'folders' or 'none' for images in a folder, got 'labels', which an .npz has: "
                f"{str(place)!r}"
            )
        return _Files(place, settings)
    if not place.exists():
        raise FileNotFoundError(
            f"images: expected a folder or an .npz, got {str(place)!r}, which is not there"
        )
    if place.suffix.lower() != ".npz":
        raise ValueError(f"images: expected a folder or an .npz, got the file {str(place)!r}")
    if settings.classes == "folders":
        raise ValueError(
            f"classes: expected 'labels' or 'none' for an .npz, got 'folders', which a folder has: {str(place)!r}"
        )
    return _Array(place, settings)


def _square(crop: tuple[int, ...] | None, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return left, top and side of what is cut out of an image of (width, height)."""
    width, height = size
    side = min(width, height) if crop is None else crop[0]
    if crop is not None and len(crop) == 3:
        return crop[1], crop[2], side
    return (width - side) // 2, (height - side) // 2, side


def _check_size(name: str, crop: tuple[int, ...] | None, size: tuple[int, int]) -> None:
    left, top, side = _square(crop, size)
    if min(left, top) < 0 or left + side > size[0] or top + side > size[1]:
        assert crop is not None
        raise ValueError(
            f"crop: expected a square within every image, got {','.join(map(str, crop))}, and {name} has "
            f"{size[0]}x{size[1]} pixels"
        )


class _Files(Images):
    def __init__(self, folder: Path, settings: Settings) -> None:
        found = sorted(_files(folder), key=lambda file: file.relative_to(folder).parts)
        if not found:
            raise ValueError(
                f"images: expected files in {str(folder)!r} that end in {', '.join(SUFFIXES)}, got none"
            )
        names = [file.relative_to(folder) for file in found]
        classes, labels = None, [0] * len(found)
        if settings.classes == "folders":
            outside = [str(name) for name in names if len(name.parts) == 1]
            if outside:
                raise ValueError(
                    f"images: expected all images of {str(folder)!r} in a folder for each class, got {outside[0]!r} "
                    f"({len(outside)} of {len(names)} are in none)"
                )
            empty = sorted(
                entry.name
                for entry in folder.iterdir()
                if entry.is_dir() and not entry.name.startswith(".") and not any(True for _ in _files(entry))
            )
            if empty:
                raise ValueError(
                    f"images: expected images in each class of {str(folder)!r}, got none in {empty[0]!r}"
                )
            classes = sorted({name.parts[0] for name in names})
            index = {name: label for label, name in enumerate(classes)}
            labels = [index[name.parts[0]] for name in names]
        digest = hashlib.sha256()
        for file, name in zip(found, names, strict=True):
            _check_size(repr(str(file)), settings.crop, _header(file))
            digest.update(f"{name.as_posix()}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        self._found = found
        super().__init__(settings, classes, labels, digest.hexdigest())

    @property
    def count(self) -> int:
        return len(self._found)

    def _image(self, index: int) -> Picture:
        from PIL import Image, ImageOps

        file = self._found[index]
        try:
            with Image.open(file) as image:
                return _on_white(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise DamagedImageError(
                f"images: expected an image in {str(file)!r}, got a damaged file: {error}"
            ) from error


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the image files of a folder and of those within it, hidden ones left out."""
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(
            f"images: expected folders that end somewhere, got {str(folder)!r}, a link to one above it"
        )
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry
        elif _is_manifest(entry):
            continue
        else:
            raise ValueError(
                f"images: expected image files ({', '.join(SUFFIXES)}) and folders alone, got {str(entry)!r}"
            )


def _is_manifest(file: Path) -> bool:
    """Return whether a file is the manifest that images drawn by this package have beside them."""
    if file.name != "manifest.json":
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and str(found.get("format")).startswith("gmmkernel ")


def _header(file: Path) -> tuple[int, int]:
    """Return width and height of an image, as it is shown, from the head of its file."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            size, mode = image.size, image.mode
            # A PNG without EXIF would be decoded to its end in search of it.
            exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            turned = exif.get(_ORIENTATION) in _ROTATED
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        problem = "an empty file" if file.stat().st_size == 0 else f"a damaged one, or none: {error}"
        raise ValueError(f"images: expected an image in {str(file)!r}, got {problem}") from error
    if mode.startswith(("I", "F")):
        raise ValueError(f"images: expected 8 bits a channel in {str(file)!r}, got Pillow's mode {mode!r}")
    return (size[1], size[0]) if turned else size


def _on_white(image: Picture) -> Picture:
    """Return an image as RGB, what is transparent white."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


class _Array(Images):
    def __init__(self, path: Path, settings: Settings) -> None:
        try:
            file = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"images: expected an .npz, got the damaged {str(path)!r}: {error}") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(f"images: expected an .npz, got an array alone in {str(path)!r}")
        with file:
            pixels = _entry(path, file, "images", ("images", "arr_0"))
            labels = (
                _entry(path, file, "classes", ("labels", "arr_1")) if settings.classes == "labels" else None
            )
        allowed = "uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]"
        good = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))
        if pixels.dtype != np.uint8 or not good or pixels.size == 0:
            raise ValueError(
                f"images: expected {allowed}, none of them 0, in {str(path)!r}, got {pixels.dtype} {list(pixels.shape)}"
            )
        if pixels.ndim == 4 and pixels.shape[3] == 1:
            pixels = pixels[..., 0]
        _check_size(f"each in {str(path)!r}", settings.crop, (pixels.shape[2], pixels.shape[1]))
        digest = hashlib.sha256(str(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).data)
        classes = None
        if labels is not None:
            classes = _check_labels(path, labels, len(pixels))
            digest.update(labels.astype(np.int64).data)
        self._pixels = pixels
        values = [0] * len(pixels) if labels is None else labels.tolist()
        super().__init__(settings, classes, values, digest.hexdigest())

    @property
    def count(self) -> int:
        return len(self._pixels)

    def _image(self, index: int) -> Picture:
        from PIL import Image

        return Image.fromarray(self._pixels[index]).convert("RGB")


def _entry(path: Path, file: Any, argument: str, names: tuple[str, str]) -> np.ndarray[Any, np.dtype[Any]]:
    there = [name for name in names if name in file.files]
    if len(there) != 1:
        got = "both" if there else f"{', '.join(file.files) or 'nothing'}"
        raise ValueError(f"{argument}: expected {' or '.join(map(repr, names))} in {str(path)!r}, got {got}")
    try:
        array: np.ndarray[Any, np.dtype[Any]] = file[there[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{argument}: expected numbers in {there[0]!r} of {str(path)!r}: {error}") from error
    return array


def _check_labels(path: Path, labels: np.ndarray[Any, np.dtype[Any]], count: int) -> list[str]:
    """Return the classes' names: their numbers."""
    where = f"classes: expected labels in {str(path)!r}"
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{where} that are integers [{count}], one for each image, got {labels.dtype} {list(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"{where} that are >= 0, got {labels.min()} at index {labels.argmin()}")
    classes = int(labels.max()) + 1
    present = np.unique(labels)
    if len(present) != classes:
        missing = next(n for n, label in enumerate([*present.tolist(), -1]) if n != label)
        raise ValueError(
            f"{where} that count the classes from 0 without a gap, got {labels.max()} at index {labels.argmax()} and "
            f"no image of class {missing}"
        )
    return [str(label) for label in range(classes)]
