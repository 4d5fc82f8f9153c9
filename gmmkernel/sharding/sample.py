"""`sample_shards`: draw samples with any number of ranks, into files that a kill cannot spoil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel._checks import check_choice, check_integer
from gmmkernel._files import remove_leftovers
from gmmkernel.ops.checks import check_seeds
from gmmkernel.samplers import Model, Sampler
from gmmkernel.samplers.chunks import check_conditioning
from gmmkernel.samplers.counting import counted
from gmmkernel.sharding.files import Files, TensorFiles
from gmmkernel.sharding.images import ImageFiles
from gmmkernel.sharding.manifest import (
    Manifest,
    OtherRunError,
    check_begun,
    describe,
    differences,
    listed,
    manifest_digest,
    manifest_path,
    read_manifest,
    shard_count,
    write_manifest,
)
from gmmkernel.sharding.ranks import gather, rank_and_size, together

FILES = ("safetensors", "png")
"""What samples can be kept in."""

_NAMED = 10

_BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class ShardReport(NamedTuple):
    """What one rank has done.

    Attributes:
        shards: shards of the folder, all of which are there now.
        found: how many of them were there before.
        made: those that this rank has made, in order.
        samples: how many samples all ranks have made together.
    """

    shards: int
    found: int
    made: tuple[int, ...]
    samples: int


def sample_shards(
    sampler: Sampler,
    model: Model,
    seeds: Tensor,
    shape: Sequence[int],
    folder: str | PathLike[str],
    *,
    batch_size: int,
    conditioning: Sequence[Tensor] = (),
    decode: Callable[[Tensor], Tensor] | None = None,
    files: str = "safetensors",
    description: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ShardReport:
    """Draw one sample for each seed into shard files, on every rank of `torch.distributed`.

    The seeds are cut into chunks of `batch_size`; a chunk is one file, and the network runs on exactly that chunk, so
    that what a file holds does not depend on the number of ranks, nor on which of them made it. Every rank calls this
    with the same arguments; without an initialised process group there is one. Of the shards that are missing, in
    order, rank r of W makes r, r + W, and so on, and waits for the others at the end.

    A file is there whole or not at all, so a run may be killed at any moment; the next one, with any number of ranks,
    makes what is missing. `manifest.json` says what the samples depend on, and a run that differs is refused once
    there is a shard. A file that is not what it should be is an error, never overwritten: a kill leaves no such file,
    so somebody should look at it. One run at a time works in a folder.

    Args:
        sampler: its tables fix the samples, its device is where they are drawn.
        model: as in `sampler.sample`.
        seeds: int64 [N], N >= 1, on any device.
        shape: shape of one sample.
        folder: where the shards go; made where there is none, on a file system that all ranks share.
        batch_size: seeds in a chunk, and the samples that the model is called with at every call; the last file may
            hold fewer.
        conditioning: as in `sampler.sample`: tensors [N, ...], of which the model gets a chunk's entries.
        decode: what is kept instead of a chunk's samples [B, *shape]: a tensor [B, ...], such as images of latents.
        files: "safetensors", a file of tensors for each chunk; or "png", an image for each sample, named by its place
            among the seeds, of which `decode` makes uint8 [B, H, W, 3] or [B, H, W]. Needs Pillow.
        description: what else the samples depend on, for the manifest: the model's name, a prompt, a digest of the
            weights. Anything that JSON can hold.
        progress: show a progress bar, on rank 0, of that rank's samples.

    Returns:
        ShardReport. All shards are there; `load_shards` reads those of tensors.

    Raises:
        ImportError: `files` is "png" and there is no Pillow.
        FileExistsError: the folder has files of something else, and no manifest.
        OSError: a file cannot be written, as on a full disk; those already written stay.
        TypeError: an argument, or what `decode` returns, has the wrong type.
        ValueError: an argument is out of range; `decode` returns more or less than it got; the folder belongs to a run
            that differs (the message says in what); a file in it is damaged or foreign (it says which).
        RuntimeError: samples are not finite (the message has their seeds), which are not written; or another rank
            failed (it says which and why). Every rank raises, none is left waiting. The shards already written stay.
    """
    rank, size = rank_and_size()
    place = Path(folder)
    seeds, manifest = together(
        lambda: _checked(sampler, seeds, shape, batch_size, conditioning, files, description)
    )
    for other, its in enumerate(gather(manifest)):
        if its != manifest:
            raise ValueError(
                f"sample_shards: expected the same arguments on every rank, got, with those of rank {other} "
                f"there and of rank {rank} here: {listed(differences(its, manifest))}"
            )
    missing = gather(together(lambda: _prepare(place, manifest, seeds) if rank == 0 else []))[0]
    mine = missing[rank::size]

    def samples_in(shards: Sequence[int]) -> int:
        return sum(len(_chunk(seeds, shard, batch_size)) for shard in shards)

    def work() -> None:
        kept = _files(place, manifest)
        with tqdm(
            total=samples_in(mine), disable=not progress or rank != 0, unit="sample", bar_format=_BAR
        ) as bar:
            for shard in mine:
                chunk = _chunk(seeds, shard, batch_size)
                made = sampler.sample(
                    counted(model, bar, len(chunk) / len(sampler.timesteps)),
                    chunk,
                    manifest["shape"],
                    conditioning=[_chunk(entries, shard, batch_size) for entries in conditioning],
                    batch_size=batch_size,
                    progress=False,
                ).sample
                check_finite("model", made, chunk)
                images = made if decode is None else _check_decoded(decode(made), len(chunk))
                if images.is_floating_point():
                    check_finite("decode", images, chunk)
                try:
                    kept.write(shard, images, chunk)
                except OSError as error:
                    what = f"{error.strerror}; what was written before stays, and the same call goes on there"
                    raise OSError(error.errno, what, error.filename) from error

    together(work)
    count = shard_count(manifest)
    return ShardReport(count, count - len(missing), tuple(mine), samples_in(missing))


def _check_decoded(images: object, count: int) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"decode: expected it to return a tensor, got {type(images).__name__}")
    if images.shape[:1] != (count,):
        raise ValueError(
            f"decode: expected it to return a tensor with {count} entries, one for each sample, got shape "
            f"{tuple(images.shape)}"
        )
    return images


def check_finite(name: str, made: Tensor, seeds: Tensor) -> None:
    """Check what `name` made of each seed.

    Raises:
        RuntimeError: there is NaN or infinity; the message has the seeds.
    """
    finite = made.isfinite().flatten(1).all(dim=1).cpu()
    if not finite.all():
        wrong = seeds[~finite].tolist()
        named = ", ".join(map(str, wrong[:_NAMED])) + (", ..." if len(wrong) > _NAMED else "")
        raise RuntimeError(
            f"{name}: expected finite samples, got NaN or infinity for {len(wrong)} of {len(seeds)} seeds ({named}); "
            "weights may be damaged, or their dtype too small"
        )


def _files(folder: Path, manifest: Manifest) -> Files:
    own = manifest_digest(manifest)
    if manifest["files"] == "png":
        return ImageFiles(folder, own, manifest["count"], manifest["batch_size"])
    return TensorFiles(folder, own)


def _chunk(entries: Tensor, shard: int, batch_size: int) -> Tensor:
    return entries[shard * batch_size : (shard + 1) * batch_size]


def _checked(
    sampler: Sampler,
    seeds: Tensor,
    shape: Sequence[int],
    batch_size: int,
    conditioning: Sequence[Tensor],
    files: str,
    description: Mapping[str, Any] | None,
) -> tuple[Tensor, Manifest]:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: expected a Sampler, got {type(sampler).__name__}")
    seeds = check_seeds(seeds).cpu()
    if seeds.shape[0] == 0:
        raise ValueError("seeds: expected at least one, got none")
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
    shape = [check_integer(f"shape[{dimension}]", length, 1) for dimension, length in enumerate(shape)]
    batch_size = check_integer("batch_size", batch_size, 1)
    if description is not None and not isinstance(description, Mapping):
        raise TypeError(f"description: expected a mapping or None, got {type(description).__name__}")
    conditioning = check_conditioning(conditioning, seeds.shape[0])
    check_choice("files", files, FILES)
    manifest = describe(sampler, seeds, shape, batch_size, conditioning, files, description or {})
    return seeds, manifest


def _prepare(folder: Path, manifest: Manifest, seeds: Tensor) -> list[int]:
    """Check a folder, write its manifest where it has no shards, and return those that are missing."""
    files = _files(folder, manifest)
    check_begun(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(shard_count(manifest))
    there = read_manifest(folder) if manifest_path(folder).exists() else None
    # Of a run, too: images of a shard that was not finished, or samples kept in the other form.
    if there is None or not any(any(folder.glob(pattern)) for pattern in ("shard-*", "[!.]*.png")):
        remove_leftovers(folder)
        write_manifest(folder, manifest)
        return list(shards)
    if there != manifest:
        raise OtherRunError(folder, there, manifest)
    found = files.there()
    for shard in found:
        files.check(shard, _chunk(seeds, shard, manifest["batch_size"]))
    remove_leftovers(folder)
    return sorted(set(shards) - set(found))
