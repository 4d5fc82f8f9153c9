"""The files of a folder of samples: whole or absent at every moment, and checked before they are believed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gmmkernel._files import write_whole

LABEL = "gmmkernel"
"""The entry of a file's metadata that says where it belongs."""

_SHARD = re.compile(r"shard-(\d{6,})\.safetensors")


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and elements."""
    own = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{own.dtype} {tuple(own.shape)} ".encode())
    found.update(own.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


class Files(Protocol):
    """How the samples of a folder are kept: shard s has those of the seeds from s B on, B of them at most."""

    def there(self) -> list[int]:
        """Return the shards that are there, in order.

        Raises:
            ValueError: a file is called as if it belonged here, but does not.
        """

    def check(self, shard: int, seeds: Tensor) -> None:
        """Check that a shard that is there belongs there, without reading its samples.

        Raises:
            ValueError: it is damaged, or belongs to another manifest, place or seeds (int64 [B] on the CPU).
        """

    def write(self, shard: int, sample: Tensor, seeds: Tensor) -> None:
        """Write a shard: samples [B, ...], and their seeds, int64 [B] on the CPU.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """


class TensorFiles:
    """A file of safetensors for each shard.

    Args:
        folder: where they are.
        manifest: the digest of the manifest that they belong to.
    """

    def __init__(self, folder: Path, manifest: str) -> None:
        self._folder, self._manifest = folder, manifest

    def path(self, shard: int) -> Path:
        """Return the name of a shard's file."""
        return self._folder / f"shard-{shard:06d}.safetensors"

    def there(self) -> list[int]:
        """Return the shards that are there; see `Files`."""
        found = []
        for path in self._folder.glob("shard-*"):
            match = _SHARD.fullmatch(path.name)
            if match is None or self.path(int(match[1])) != path:
                raise damaged(path, f"expected names such as {self.path(0).name}")
            found.append(int(match[1]))
        return sorted(found)

    def check(self, shard: int, seeds: Tensor) -> None:
        """Check a shard's length and place; see `Files`."""
        with self._opened(shard) as (file, _):
            if not torch.equal(file.get_tensor("seeds"), seeds):
                raise damaged(self.path(shard), "its seeds are not those of the manifest")

    def write(self, shard: int, sample: Tensor, seeds: Tensor) -> None:
        """Write a shard; see `Files`."""
        tensors = {"sample": sample.cpu().contiguous(), "seeds": seeds.contiguous()}
        # One entry of metadata, because the order of several in the file is random.
        label = f"{self._manifest} {shard} {digest(tensors['sample'])}"
        write_whole(self.path(shard), save(tensors, {LABEL: label}))

    def read(self, shard: int) -> tuple[Tensor, Tensor]:
        """Return the samples and seeds of a shard; the samples are checked to the last bit.

        Raises:
            ValueError: the file is damaged, or belongs to another manifest or place.
        """
        with self._opened(shard) as (file, expected):
            sample, seeds = file.get_tensor("sample"), file.get_tensor("seeds")
            if digest(sample) != expected:
                raise damaged(self.path(shard), "its samples are not those that were written")
        return sample, seeds

    @contextmanager
    def _opened(self, shard: int) -> Iterator[tuple[Any, str]]:
        """Give a shard's file and the digest of its samples."""
        path = self.path(shard)
        try:
            with safe_open(path, framework="pt") as file:
                place, _, sample = (file.metadata() or {}).get(LABEL, "").rpartition(" ")
                if place != f"{self._manifest} {shard}":
                    raise damaged(path, f"it was not written as shard {shard} of the manifest beside it")
                yield file, sample
        except SafetensorError as error:
            raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> ValueError:
    """Return the error of a file that is not what its place says."""
    return ValueError(f"{path}: damaged or foreign: {what}; remove the file to go on without it")
