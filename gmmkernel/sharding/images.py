"""A folder of images, one PNG for each sample, that a run can go on in as it does in a folder of shards."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmmkernel._files import write_whole
from gmmkernel.sharding.files import LABEL, damaged

_IMAGE = re.compile(r"(\d{6,})\.png")
_END = b"IEND\xaeB`\x82"


class ImageFiles:
    """A PNG for each sample, named by its place among the seeds; a shard is there when all of its images are.

    Each carries its manifest, place and seed as text. They are renamed into place, so a kill leaves none in part; but
    they are not flushed to the disk one by one, so a loss of power may, which the next run finds.

    Args:
        folder: where they are.
        manifest: the digest of the manifest that they belong to.
        count: how many samples there are.
        batch_size: how many of them are one shard.

    Raises:
        ImportError: there is no Pillow.
    """

    def __init__(self, folder: Path, manifest: str, count: int, batch_size: int) -> None:
        self._folder, self._manifest = folder, manifest
        self._count, self._batch_size = count, batch_size
        self._pillow = _pillow()

    def path(self, place: int) -> Path:
        """Return the name of a sample's image."""
        return self._folder / f"{place:06d}.png"

    def there(self) -> list[int]:
        """Return the shards that are there; see `Files`."""
        places = set()
        for path in self._folder.glob("[!.]*.png"):
            match = _IMAGE.fullmatch(path.name)
            if match is None or self.path(int(match[1])) != path or int(match[1]) >= self._count:
                raise damaged(
                    path, f"expected names from {self.path(0).name} to {self.path(self._count - 1).name}"
                )
            places.add(int(match[1]))
        shards = range(-(-self._count // self._batch_size))
        return [shard for shard in shards if places.issuperset(self._places(shard))]

    def check(self, shard: int, seeds: Tensor) -> None:
        """Check the text and the end of a shard's images; see `Files`."""
        for place, seed in zip(self._places(shard), seeds.tolist(), strict=True):
            path = self.path(place)
            data = path.read_bytes()
            if not data.endswith(_END):
                raise damaged(path, "it has no end")
            try:
                with self._pillow.Image.open(io.BytesIO(data)) as image:
                    text = image.info.get(LABEL)
            except (OSError, SyntaxError) as error:
                raise damaged(path, str(error)) from error
            if text != self._label(place, seed):
                raise damaged(path, f"it was not written as sample {place} of the manifest beside it")

    def write(self, shard: int, sample: Tensor, seeds: Tensor) -> None:
        """Write the images of a shard, uint8 [B, H, W, 3] or [B, H, W]; see `Files`.

        Raises:
            OSError: one cannot be written.
            TypeError: the samples are no images.
        """
        if (
            sample.dtype != torch.uint8
            or sample.ndim not in (3, 4)
            or (sample.ndim == 4 and sample.shape[3] != 3)
        ):
            raise TypeError(
                "decode: expected uint8 [B, H, W, 3] or [B, H, W] for images, got "
                f"{str(sample.dtype).removeprefix('torch.')} {list(sample.shape)}"
            )
        arrays = sample.cpu().numpy()
        for place, array, seed in zip(self._places(shard), arrays, seeds.tolist(), strict=True):
            text = self._pillow.PngImagePlugin.PngInfo()
            text.add_text(LABEL, self._label(place, seed))
            data = io.BytesIO()
            self._pillow.Image.fromarray(array).save(data, "PNG", pnginfo=text)
            write_whole(self.path(place), data.getvalue(), flush=False)

    def _places(self, shard: int) -> range:
        first = shard * self._batch_size
        return range(first, min(first + self._batch_size, self._count))

    def _label(self, place: int, seed: int) -> str:
        return f"{self._manifest} {place} {seed}"


def _pillow() -> Any:
    try:
        import PIL
        import PIL.Image
        import PIL.PngImagePlugin
    except ImportError as error:
        raise ImportError(
            f'files: "png" needs Pillow: pip install "gmmkernel[pipelines]" ({error})'
        ) from error
    return PIL
