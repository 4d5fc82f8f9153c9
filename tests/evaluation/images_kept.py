"""The same images in every form that `evaluate` reads; without pytest, because the slow tests' scripts need it too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmmkernel import DDIMSampler, noise_schedule
from gmmkernel.sharding.files import TensorFiles
from gmmkernel.sharding.manifest import describe, manifest_digest, write_manifest


def some_images(count: int, *, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Return coarse random pictures, uint8 [N, H, W, 3], which a network tells apart."""
    cells = np.random.default_rng(seed).integers(
        0, 256, (count, -(-size[0] // 8), -(-size[1] // 8), 3), np.uint8
    )
    return torch.from_numpy(cells.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].copy())


def as_files(folder: Path, images: Tensor) -> Path:
    """Write PNG files, the second half of them in a folder within."""
    for index, image in enumerate(images.numpy()):
        path = folder / ("b" if index >= len(images) // 2 else "a") / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def as_array(path: Path, images: Tensor, *, packed: bool = False) -> Path:
    """Write ADM's form: `arr_0`, and labels that nobody asks for."""
    save = np.savez_compressed if packed else np.savez
    save(path, arr_0=images.numpy(), arr_1=np.arange(len(images)))
    return path


def as_shards(folder: Path, sample: Tensor, batch_size: int = 5) -> Path:
    """Write what `sample_shards` would have, had its sampler drawn this."""
    folder.mkdir(parents=True)
    seeds = torch.arange(len(sample))
    sampler = DDIMSampler(noise_schedule(), 2)
    manifest = describe(sampler, seeds, (1,), batch_size, (), "safetensors", {})
    write_manifest(folder, manifest)
    files = TensorFiles(folder, manifest_digest(manifest))
    for shard, chunk in enumerate(sample.split(batch_size)):
        files.write(shard, chunk, seeds[shard * batch_size :][: len(chunk)])
    return folder
