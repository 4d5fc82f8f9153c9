"""The files of a folder of shards: whole or absent at every moment, and checked before they are believed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gmmkernel._files import write_whole

_SHARD = re.compile(r"shard-(\d{6,})\.safetensors")
_LABEL = "gmmkernel"


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and elements."""
    own = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{own.dtype} {tuple(own.shape)} ".encode())
    found.update(own.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def shard_path(folder: Path, shard: int) -> Path:
    """Return the name of a shard's file."""
    return folder / f"shard-{shard:06d}.safetensors"


def shards_in(folder: Path) -> list[int]:
    """Return the shards that a folder has, in order.

    Raises:
        ValueError: a file is called like a shard, but is none.
    """
    found = []
    for path in folder.glob("shard-*"):
        match = _SHARD.fullmatch(path.name)
        if match is None or shard_path(folder, int(match[1])) != path:
            raise _damaged(path, f"expected names such as {shard_path(folder, 0).name}")
        found.append(int(match[1]))
    return sorted(found)


def write_shard(folder: Path, shard: int, manifest: str, sample: Tensor, seeds: Tensor) -> None:
    """Write a shard.

    Args:
        folder: where.
        shard: its index.
        manifest: the digest of the manifest that it belongs to.
        sample: [B, ...].
        seeds: int64 [B] on the CPU.
    """
    tensors = {"sample": sample.cpu().contiguous(), "seeds": seeds.contiguous()}
    # One entry of metadata, because the order of several in the file is random.
    label = f"{manifest} {shard} {digest(tensors['sample'])}"
    write_whole(shard_path(folder, shard), save(tensors, {_LABEL: label}))


def check_shard(folder: Path, shard: int, manifest: str, seeds: Tensor) -> None:
    """Check that a shard's file is of its full length and belongs where it is, without reading its samples.

    Args:
        folder: where it is.
        shard: its index.
        manifest: the digest of the manifest.
        seeds: int64 [B], what its seeds have to be.

    Raises:
        ValueError: the file is damaged, or belongs to another manifest, place or seeds.
    """
    with _opened(folder, shard, manifest) as (file, _):
        if not torch.equal(file.get_tensor("seeds"), seeds):
            raise _damaged(shard_path(folder, shard), "its seeds are not those of the manifest")


def read_shard(folder: Path, shard: int, manifest: str) -> tuple[Tensor, Tensor]:
    """Return the samples and seeds of a shard; the samples are checked to the last bit.

    Raises:
        ValueError: the file is damaged, or belongs to another manifest or place.
    """
    with _opened(folder, shard, manifest) as (file, expected):
        sample, seeds = file.get_tensor("sample"), file.get_tensor("seeds")
        if digest(sample) != expected:
            raise _damaged(shard_path(folder, shard), "its samples are not those that were written")
    return sample, seeds


@contextmanager
def _opened(folder: Path, shard: int, manifest: str) -> Iterator[tuple[Any, str]]:
    """Give a shard's file and the digest of its samples."""
    path = shard_path(folder, shard)
    try:
        with safe_open(path, framework="pt") as file:
            place, _, sample = (file.metadata() or {}).get(_LABEL, "").rpartition(" ")
            if place != f"{manifest} {shard}":
                raise _damaged(path, f"it was not written as shard {shard} of the manifest beside it")
            yield file, sample
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: damaged or foreign: {what}; remove the file to go on without it")
