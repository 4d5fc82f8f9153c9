"""A small run to shard, and what the tests look at in its folder; without pytest, because a worker imports it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmmkernel import DDIMSampler, Sampler, gaussian_mixture, noise_schedule, sample_shards
from gmmkernel.sharding import ShardReport

SHAPE = (3, 5)
SEEDS = torch.tensor([5, -7, 2**62, 11, 3, 3, 8, 1, 0, -1, 12, 13, 14])
BATCH_SIZE = 2
SHARDS = 7


def whole_batch(x: Tensor, timestep: Tensor) -> Tensor:
    """A network of which every bit depends on all of its batch, as a real one's may."""
    return torch.tanh(x * 0.75 + timestep.to(x.dtype)[:, None, None] / 4096 + x.mean() / 16)


def make_sampler(make: Any = DDIMSampler, **options: Any) -> Sampler:
    """Make a sampler, of DDIM with a mixture at eta = 1 unless the options say otherwise."""
    mixture = gaussian_mixture("ortho", elements=15, n_components=4, scale=0.5, n_steps=3)
    defaults = {"eta": 1.0} if make is DDIMSampler else {}
    options = {**defaults, "mixture": mixture, **options}
    made: Sampler = make(noise_schedule(), 3, **{k: v for k, v in options.items() if v is not None})
    return made


def run(folder: Path, *, model: Any = whole_batch, seeds: Tensor = SEEDS, **options: Any) -> ShardReport:
    """Call `sample_shards`; options are its own, or a `sampler`."""
    sampler = options.pop("sampler", None) or make_sampler()
    shape = options.pop("shape", SHAPE)
    return sample_shards(
        sampler, model, seeds, shape, folder, **({"batch_size": BATCH_SIZE, "progress": False} | options)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return what every file holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what changes when a file is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def shard_names(*shards: int) -> list[str]:
    return [f"shard-{shard:06d}.safetensors" for shard in shards]
