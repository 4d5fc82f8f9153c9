"""`load_shards`: the samples of a finished folder."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel.sharding.files import TensorFiles, digest
from gmmkernel.sharding.manifest import manifest_digest, manifest_path, read_manifest, shard_count

_NAMED = 10


class ShardedSamples(NamedTuple):
    """The samples of a folder of shards.

    Attributes:
        sample: [N, ...] on the CPU, samples or what `decode` has made of them, in the order of the seeds.
        seeds: int64 [N], in the order in which `sample_shards` was given them.
    """

    sample: Tensor
    seeds: Tensor


def load_shards(folder: str | PathLike[str]) -> ShardedSamples:
    """Load the samples that `sample_shards` has written, checked to the last bit.

    Args:
        folder: a folder whose shards are all there.

    Returns:
        ShardedSamples.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: shards are missing (the message says which), or a file is damaged or foreign (it says which).
    """
    place = Path(folder)
    manifest = read_manifest(place)
    if manifest["files"] != "safetensors":
        raise ValueError(f"{place}: expected a folder of shards, got one of {manifest['files']} images")
    count = shard_count(manifest)
    files = TensorFiles(place, manifest_digest(manifest))
    found = files.there()
    missing = sorted(set(range(count)) - set(found))
    if missing:
        named = ", ".join(map(str, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
        raise ValueError(f"{place}: {len(missing)} of {count} shards are missing: {named}")
    samples, seeds = zip(*(files.read(shard) for shard in found), strict=True)
    loaded = ShardedSamples(torch.cat(samples), torch.cat(seeds))
    if digest(loaded.seeds) != manifest["seeds"]:
        raise ValueError(f"{manifest_path(place)}: damaged or foreign: its seeds are not those of the shards")
    return loaded
