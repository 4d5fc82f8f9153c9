"""The manifest of a folder of shards: what its samples depend on, and so what every run there must share."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmmkernel._checks import plain
from gmmkernel._files import write_whole
from gmmkernel.samplers import Sampler
from gmmkernel.sharding.files import digest

Manifest = dict[str, Any]

_FORMAT = "gmmkernel shards, version 3"

_LONGEST = 40
"""Characters of a value that a message repeats; of longer ones, as digests are, it has the name alone."""

_NO_PART_OF_A_STEP = ("_mixture", "backend")
"""Attributes of a sampler that its samples do not depend on: its tables are the mixture as a step reads it, and every
backend gives the same bits."""


def describe(
    sampler: Sampler,
    seeds: Tensor,
    shape: Sequence[int],
    batch_size: int,
    conditioning: Sequence[Tensor],
    files: str,
    description: Mapping[str, Any],
) -> Manifest:
    """Return the manifest of a run, as `read_manifest` would return it; the arguments have been checked.

    Raises:
        TypeError: `description` has something that JSON does not.
    """
    own = {name: value for name, value in vars(sampler).items() if name not in _NO_PART_OF_A_STEP}
    made = {
        "format": _FORMAT,
        "count": seeds.shape[0],
        "batch_size": batch_size,
        "shape": list(shape),
        "files": files,
        "seeds": digest(seeds),
        "conditioning": [digest(entries) for entries in conditioning],
        "sampler": {"class": _name(type(sampler)), **_fingerprint(own)},
        "description": dict(description),
        "environment": _environment(sampler.coefficients.device),
    }
    try:
        again: Manifest = json.loads(json.dumps(made, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"description: expected what JSON can hold, got {description!r}: {error}") from error
    return again


def _fingerprint(value: Any) -> Any:
    """Return what JSON can hold and tells values apart: all that a sampler is made of, whatever its attributes are.

    Raises:
        TypeError: there is something in it that cannot be told apart.
    """
    value = plain(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, partial):
        return {"function": _name(value.func), "given": _fingerprint([list(value.args), value.keywords])}
    if isinstance(value, Mapping):
        return {str(name).lstrip("_"): _fingerprint(entry) for name, entry in value.items()}
    if hasattr(value, "_asdict"):
        return _fingerprint(value._asdict())
    if isinstance(value, Sequence):
        return [_fingerprint(entry) for entry in value]
    if is_dataclass(value):
        return _fingerprint(vars(value))
    raise TypeError(f"sampler: expected one of tensors and plain values, got a {type(value).__name__} in it")


def _name(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def _environment(device: torch.device) -> dict[str, Any]:
    """Return what a network's bits, though not a step's, may depend on."""
    found = {"gmmkernel": version("gmmkernel"), "torch": torch.__version__}
    if device.type == "cuda":
        return {**found, "device": torch.cuda.get_device_name(device)}
    return {**found, "device": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def manifest_digest(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest, which its shards carry."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def shard_count(manifest: Manifest) -> int:
    """Return how many shards there are when all are made."""
    count: int = -(-manifest["count"] // manifest["batch_size"])
    return count


class OtherRunError(ValueError):
    """A folder has the samples of a run that differs.

    Attributes:
        kept: "images" or "shards".
        differences: see `differences`.
    """

    def __init__(self, folder: Path, there: Manifest, here: Manifest) -> None:
        self.kept = "images" if there["files"] == "png" else "shards"
        self.differences = differences(there, here)
        super().__init__(
            f"{str(folder)!r} has {self.kept} of another run ({listed(self.differences)}); give another folder, or the "
            "same arguments"
        )


def differences(there: Manifest, here: Manifest) -> dict[str, str]:
    """Return the entries in which two manifests differ, and how: "4 there, 6 here", or "" where that is long."""
    found = {}
    for name, *values in _differences((), there, here):
        old, new = ("none" if value is None else json.dumps(value) for value in values)
        found[name] = f"{old} there, {new} here" if max(len(old), len(new)) <= _LONGEST else ""
    if "count" in found:  # these have an entry for each sample, so that they differ too
        found.pop("seeds", None)
        found.pop("conditioning", None)
    return found


def _differences(names: tuple[str, ...], there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from _differences((*names, key), there.get(key), here.get(key))
    elif there != here:
        yield ".".join(names), there, here


def listed(differences: Mapping[str, str]) -> str:
    """Return differences as text."""
    return "; ".join(f"{name}: {how}" if how else name for name, how in differences.items())


def manifest_path(folder: Path) -> Path:
    """Return the name of a folder's manifest."""
    return folder / "manifest.json"


def check_begun(folder: Path) -> None:
    """Accept a folder that is not there or empty, hidden files aside, or has a manifest.

    Raises:
        FileExistsError: it has files of something else, which samples would get mixed up with.
    """
    if not folder.is_dir() or manifest_path(folder).exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign:
        raise FileExistsError(
            f"{str(folder)!r} has files of something else ({foreign[0]!r}, and no {manifest_path(folder).name}); give "
            "an empty or a new folder"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest."""
    write_whole(manifest_path(folder), (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another format.
    """
    path = manifest_path(folder)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder}: expected a folder of shards, got none with a {path.name}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged or foreign: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: damaged or foreign: expected one of the format {_FORMAT!r}")
    return manifest
