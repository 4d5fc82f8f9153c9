"""Images of a folder of files, of a folder of shards or of an .npz, read a part at a time however many there are."""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gmmkernel.sharding.files import TensorFiles
from gmmkernel.sharding.manifest import Manifest, manifest_digest, read_manifest, shard_count

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that become RGB without loss of range; of the others `convert` would cut the values off."""

_FLOATS = ("F16", "BF16", "F32", "F64")
_LARGEST = 10.0
"""What no sample in [-1, 1] is, however far it was overshot: such values are meant otherwise, as 0 to 255 maybe."""

_FILES = 32
_BYTES = 2**26
_READERS = min(8, os.cpu_count() or 1)


class Images(ABC):
    """Images of one size, in a fixed order.

    Attributes:
        name: the argument they were given by, for errors.
        path: where they are.
        form: what they are kept in, in words.
        count: how many there are, or are taken.
        size: height and width.
    """

    form: str

    def __init__(self, name: str, path: Path, count: int, size: tuple[int, int]) -> None:
        self.name, self.path, self.count, self.size = name, path, count, size

    @abstractmethod
    def _parts(self) -> Iterator[Tensor]:
        """Yield all images in order, uint8 [B, H, W, 3] with any B."""

    def take(self, count: int) -> None:
        """Leave only the first `count`.

        Raises:
            ValueError: there are fewer.
        """
        if count > self.count:
            raise ValueError(f"count: expected at most the {self.count} images of {self.path}, got {count}")
        self.count = count

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the images as uint8 [B, 3, H, W]; B is `batch_size` but for the last, whatever they are kept in.

        Raises:
            ValueError: one cannot be read, or has another size or values that are not an image's.
        """
        missing, held = self.count, torch.zeros(0, *self.size, 3, dtype=torch.uint8, device="cpu")
        for part in self._parts():
            held = torch.cat([held, part])
            while missing and len(held) >= min(batch_size, missing):
                batch, held = held.split([min(batch_size, missing), len(held) - min(batch_size, missing)])
                missing -= len(batch)
                yield batch.permute(0, 3, 1, 2).contiguous()
            if not missing:
                return

    def describe(self) -> dict[str, Any]:
        """Return what the figures depend on, for a report."""
        return {"path": str(self.path), "form": self.form, "count": self.count, "size": list(self.size)}

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"{self.name}: {problem}")


class _Files(Images):
    form = "image files"

    def __init__(self, name: str, path: Path, files: list[Path]) -> None:
        super().__init__(name, path, len(files), (0, 0))
        self._files = files
        with ThreadPoolExecutor(_READERS) as pool:
            for file, size in zip(files, pool.map(self._size, files), strict=True):
                if file == files[0]:
                    self.size = size
                self._check_size(file, size)

    def _check_size(self, file: Path, size: tuple[int, int]) -> None:
        if size != self.size:
            first, other = ("{} x {}".format(*found) for found in (self.size, size))
            self._refuse(
                f"expected images of one size, got {first} in {self._files[0]} and {other} in {file}"
            )

    def _size(self, file: Path) -> tuple[int, int]:
        """Read the beginning of a file."""
        found: tuple[int, int] = self._open(file, lambda image: (image.height, image.width))
        return found

    def _pixels(self, file: Path) -> Tensor:
        pixels = self._open(file, lambda image: np.array(image.convert("RGB")))
        self._check_size(file, pixels.shape[:2])
        return torch.from_numpy(pixels)

    def _open(self, file: Path, use: Any) -> Any:
        from PIL import Image

        try:
            with Image.open(file) as image:
                mode, found = image.mode, use(image)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self.name}: expected images, got {file}, damaged or foreign: {error}"
            ) from error
        if mode not in _EIGHT_BITS:
            self._refuse(f"expected images of 8 bits a channel, got {file} of Pillow's mode {mode!r}")
        return found

    def _parts(self) -> Iterator[Tensor]:
        """Decode one part while the one before is used."""
        waiting: deque[list[Future[Tensor]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            for first in range(0, self.count, _FILES):
                files = self._files[first : min(first + _FILES, self.count)]
                waiting.append([pool.submit(self._pixels, file) for file in files])
                if len(waiting) > 1:
                    yield torch.stack([image.result() for image in waiting.popleft()])
            while waiting:
                yield torch.stack([image.result() for image in waiting.popleft()])


class _Shards(Images):
    form = "shards"

    def __init__(self, name: str, path: Path, manifest: Manifest) -> None:
        self._kept = TensorFiles(path, manifest_digest(manifest))
        self._shards = list(range(shard_count(manifest)))
        try:
            missing = sorted({*self._shards} - {*self._kept.there()})
            if missing:
                raise ValueError(
                    f"expected a finished folder of shards, got {path} with {len(missing)} of {len(self._shards)} "
                    f"missing, the first of them {self._kept.path(missing[0]).name}"
                )
            with safe_open(self._kept.path(0), framework="pt") as file:
                sample = file.get_slice("sample")
                shape, kind = list(sample.get_shape()), sample.get_dtype()
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{name}: {error}") from error
        self._real = kind in _FLOATS and len(shape) == 4 and shape[1] in (1, 3)
        if not self._real and not (kind == "U8" and shape[3:] in ([], [3]) and len(shape) > 2):
            raise ValueError(
                f"{name}: expected shards of images, uint8 [B, H, W, 3] or [B, H, W], or floats [B, 1 or 3, H, W] in "
                f"[-1, 1], got {kind} {shape} in {path}"
            )
        height, width = shape[2:] if self._real else shape[1:3]
        super().__init__(name, path, manifest["count"], (height, width))

    def _parts(self) -> Iterator[Tensor]:
        for shard in self._shards:
            try:
                sample, _ = self._kept.read(shard)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
            where = self._kept.path(shard)
            sample = self._eight_bits(sample, where) if self._real else sample
            if sample.ndim == 3:
                sample = sample.unsqueeze(3).expand(-1, -1, -1, 3)
            if sample.dtype != torch.uint8 or sample.shape[1:] != (*self.size, 3):
                self._refuse(f"expected images of one size, got others in {where}")
            yield sample

    def _eight_bits(self, sample: Tensor, where: Path) -> Tensor:
        """Return floats [B, C, H, W] as uint8 [B, H, W, 3]."""
        sample = sample.float()
        if not sample.isfinite().all():
            self._refuse(f"expected finite values, got NaN or infinity in {where}")
        if sample.abs().max() > _LARGEST:
            self._refuse(
                f"expected floats in [-1, 1], cut off beyond, got {sample.min():g} to {sample.max():g} in {where}"
            )
        whole = sample.add(1).div(2).mul(255).round().clamp(0, 255).to(torch.uint8)
        return whole.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


class _Array(Images):
    form = ".npz"

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as stream:
                shape, in_columns, kind = _header(stream)
        except KeyError:
            self._refuse(f"expected an .npz with arr_0, uint8 [N, H, W, 3], got {path} without it")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{name}: expected an .npz, got {path}, damaged or foreign: {error}") from error
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape or in_columns:
            order = " in Fortran's order" if in_columns else ""
            self._refuse(
                f"expected arr_0 as uint8 [N, H, W, 3], N >= 1, got {kind} {list(shape)}{order} in {path}"
            )
        super().__init__(name, path, shape[0], (shape[1], shape[2]))

    def _parts(self) -> Iterator[Tensor]:
        """Read the array as a stream: it may be compressed, and larger than the memory."""
        image = self.size[0] * self.size[1] * 3
        at_once = max(1, _BYTES // image)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
                _header(stream)
                for first in range(0, self.count, at_once):
                    count = min(at_once, self.count - first)
                    data = bytearray(stream.read(count * image))
                    if len(data) < count * image:
                        raise EOFError("it ends early")
                    yield torch.frombuffer(data, dtype=torch.uint8).view(count, *self.size, 3)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.name}: expected an .npz, got {self.path}, damaged: {error}") from error


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether it is in Fortran's order, and the type of an array that a stream begins with."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def check_place(name: str, path: str | os.PathLike[str]) -> Path:
    """Return where images may be, a folder or an .npz.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is another file.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(
            f"{name}: expected a folder or an .npz, got {str(path)!r}, which is not there"
        )
    if not place.is_dir() and place.suffix != ".npz":
        raise ValueError(f"{name}: expected a folder or an .npz, got the file {str(path)!r}")
    return place


def open_images(name: str, path: str | os.PathLike[str]) -> Images:
    """Open images; sizes are checked, pixels not yet read.

    Args:
        name: the argument that names them, for errors.
        path: a folder of image files, read with its subfolders in the order of their names; a folder of shards that
            `sample_shards` has finished, of uint8 [B, H, W, 3] or [B, H, W], or of floats [B, 1 or 3, H, W] in
            [-1, 1]; or an .npz with `arr_0`, uint8 [N, H, W, 3].

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is something else, or it is damaged; sizes differ.
        ImportError: Pillow is missing, which image files need.
    """
    place = check_place(name, path)
    if not place.is_dir():
        return _Array(name, place)
    manifest = _manifest(name, place)
    if manifest is not None and manifest["files"] == "safetensors":
        return _Shards(name, place, manifest)
    found = sorted(
        file
        for file in place.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not found:
        raise ValueError(
            f"{name}: expected images ({', '.join(SUFFIXES)}) or shards with their manifest.json, got the folder "
            f"{str(path)!r} with neither"
        )
    if manifest is not None and len(found) != manifest["count"]:
        raise ValueError(
            f"{name}: expected a finished folder of {manifest['count']} images, as its manifest.json says, got {path} "
            f"with {len(found)}"
        )
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('image files need Pillow: pip install "gmmkernel[evaluate]"') from error
    return _Files(name, place, found)


def _manifest(name: str, folder: Path) -> Manifest | None:
    """Read a folder's manifest; None: it has none, or another program's."""
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        if any(folder.glob("shard-*")):
            raise ValueError(f"{name}: {error}") from error
        return None
