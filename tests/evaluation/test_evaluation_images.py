"""Images are read alike from every form, in parts, and what is no image is an error that says where."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from images_kept import as_array, as_files, as_shards, some_images
from PIL import Image
from torch import Tensor

from gmmkernel.evaluation import images as reading
from gmmkernel.evaluation.images import Images, open_images

IMAGES = some_images(13, size=(6, 9))
REAL = torch.tensor([-3.0, -1.0, -0.996, 0.0, 0.004, 0.996, 1.0, 1.2])  # to eight bits, with half-way cases


def read(images: Images, batch_size: int = 4) -> Tensor:
    batches = list(images.batches(batch_size))
    whole, rest = divmod(images.count, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * whole + [rest] * (rest > 0)
    assert all(batch.is_contiguous() and batch.dtype == torch.uint8 for batch in batches)
    return torch.cat(batches)


FORMS: dict[str, Callable[[Path], Path]] = {
    "files": lambda folder: as_files(folder / "x", IMAGES),
    "array": lambda folder: as_array(folder / "x.npz", IMAGES),
    "packed array": lambda folder: as_array(folder / "x.npz", IMAGES, packed=True),
    "shards": lambda folder: as_shards(folder / "x", IMAGES),
    "float shards": lambda folder: as_shards(
        folder / "x", IMAGES.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    ),
    "half shards": lambda folder: as_shards(
        folder / "x", IMAGES.permute(0, 3, 1, 2).float().div(127.5).sub(1).half()
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("small", [False, True], ids=["whole parts", "parts of a few"])
def test_every_form_gives_the_same_images(
    form: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(reading, "_FILES", 3)
        monkeypatch.setattr(reading, "_BYTES", 2 * 6 * 9 * 3)
    images = open_images("samples", str(FORMS[form](tmp_path)))
    assert (images.count, images.size) == (13, (6, 9))
    assert_same_bits(read(images), IMAGES.permute(0, 3, 1, 2))
    with torch.device("meta"):  # a default device changes nothing
        assert_same_bits(read(images, 100), IMAGES.permute(0, 3, 1, 2))
    images.take(6)
    assert images.describe()["count"] == 6
    assert_same_bits(read(images), IMAGES[:6].permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"^count: expected at most the 6 images of .*, got 7$"):
        images.take(7)


def test_grey_images_become_three_equal_channels(tmp_path: Path) -> None:
    grey = IMAGES[..., :1].expand(-1, -1, -1, 3).permute(0, 3, 1, 2)
    forms = (
        as_shards(tmp_path / "real", IMAGES[:, None, ..., 0].float().div(127.5).sub(1)),
        as_shards(tmp_path / "whole", IMAGES[..., 0].contiguous()),
    )
    for path in forms:
        assert_same_bits(read(open_images("samples", path)), grey)
    (tmp_path / "files").mkdir()
    for index, image in enumerate(IMAGES[..., 0].numpy()):
        Image.fromarray(image).save(tmp_path / "files" / f"{index:02d}.bmp")
    assert_same_bits(read(open_images("samples", tmp_path / "files")), grey)


def test_floats_are_rounded_and_cut_off(tmp_path: Path) -> None:
    path = as_shards(tmp_path / "x", REAL.expand(1, 3, 1, -1).contiguous())
    expected = [min(255, max(0, round((value + 1) / 2 * 255))) for value in REAL.tolist()]
    assert read(open_images("samples", path))[0, 0, 0].tolist() == expected
    assert expected == [0, 0, 1, 128, 128, 254, 255, 255]


def test_files_are_read_in_the_order_of_their_names_whatever_they_are_kept_as(tmp_path: Path) -> None:
    for name, value, mode in (("b.PNG", 10, "RGBA"), ("a.webp", 20, "RGB"), ("c/a.jpeg", 30, "L")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.new(mode, (8, 8), value if mode == "L" else (value,) * len(mode)).save(
            tmp_path / name, **options
        )
    (tmp_path / "._a.png").write_bytes(b"a shadow that some systems leave")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "manifest.json").write_text('{"name": "of another program"}')
    found = read(open_images("samples", tmp_path))
    assert found[:, 0, 0, 0].tolist() == [20, 10, 30]


def test_memory_does_not_grow_with_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BYTES", 2**20)
    zeros = np.zeros((400, 128, 128, 3), np.uint8)  # 20 MB
    np.savez_compressed(tmp_path / "x.npz", arr_0=zeros)
    tracemalloc.start()
    seen = sum(len(batch) for batch in open_images("samples", tmp_path / "x.npz").batches(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 400
    assert peak < 5 * 2**20


def refused(path: Path, message: str, kind: type[Exception] = ValueError) -> None:
    """Expect an error of opening or reading, which begins with the argument's name."""
    with pytest.raises(kind, match="^samples: expected .*" + message):
        read(open_images("samples", path))


def test_what_is_not_there_or_no_images(tmp_path: Path) -> None:
    refused(tmp_path / "x", "a folder or an .npz, got .*x', which is not there", FileNotFoundError)
    (tmp_path / "x.txt").touch()
    refused(tmp_path / "x.txt", "a folder or an .npz, got the file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"images \(.png.*or shards.*empty' with neither")


def test_images_of_several_sizes(tmp_path: Path) -> None:
    path = as_files(tmp_path / "x", IMAGES)
    Image.new("RGB", (6, 9)).save(path / "b" / "0100.png")
    refused(path, r"of one size, got 6 x 9 in .*a/0000.png and 9 x 6 in .*b/0100.png")


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = as_files(tmp_path / "x", some_images(3, size=(64, 64)))
    whole = (path / "b" / "0002.png").read_bytes()
    (path / "b" / "0002.png").write_bytes(whole[: len(whole) // 2])  # the beginning is whole
    assert open_images("samples", path).count == 3
    refused(path, "images, got .*0002.png, damaged or foreign")
    (path / "b" / "0002.png").write_bytes(b"something else")
    refused(path, "images, got .*0002.png, damaged or foreign")
    Image.fromarray(np.full((64, 64), 60_000, np.uint16)).save(path / "b" / "0002.png")
    refused(path, "8 bits a channel, got .*0002.png of Pillow's mode 'I;16'")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"arr_0 as uint8 \[N, H, W, 3\], N >= 1, got uint8 \[2, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"got uint8 \[2, 3, 8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.float32), r"got float32 \[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got uint8 \[0, 8, 8, 3\]"),
        (np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8)), "in Fortran's order"),
        (np.array([[object()]]), "got object"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", arr_0=array)
    refused(tmp_path / "x.npz", message)


def test_damaged_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", other=IMAGES.numpy())
    refused(tmp_path / "x.npz", "an .npz with arr_0, .*without it")
    (tmp_path / "x.npz").write_bytes(b"something else")
    refused(tmp_path / "x.npz", "an .npz, got .*damaged or foreign")
    as_array(tmp_path / "x.npz", IMAGES)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        data = archive.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", data[:-1])
    refused(tmp_path / "x.npz", "damaged: it ends early")
    as_array(tmp_path / "x.npz", IMAGES)
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(whole)
    refused(tmp_path / "x.npz", "damaged.*Bad CRC-32")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.full((1, 3, 8, 8), float("nan")), "finite values, got NaN or infinity in .*shard-000000"),
        (torch.full((1, 3, 8, 8), float("-inf")), "finite values, got NaN or infinity in .*shard-000000"),
        (
            torch.full((1, 3, 8, 8), 255.0),
            r"floats in \[-1, 1\], cut off beyond, got 255 to 255 in .*shard-000000",
        ),
        (torch.zeros(1, 4, 8, 8), r"shards of images, uint8 .*got F32 \[1, 4, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"got U8 \[1, 3, 8, 8\]"),
        (torch.zeros(1, 64), r"got F32 \[1, 64\]"),
        (torch.zeros(1, 64, dtype=torch.uint8), r"got U8 \[1, 64\]"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), r"got I64 \[1, 8, 8\]"),
    ],
    ids=["NaN", "infinity", "0 to 255", "latents", "planes", "rows", "bytes", "integers"],
)
def test_shards_that_are_no_images(sample: Tensor, message: str, tmp_path: Path) -> None:
    refused(as_shards(tmp_path / "x", sample), message)


def test_shards_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = as_shards(tmp_path / "x", IMAGES)
    data = bytearray((path / "shard-000001.safetensors").read_bytes())
    data[-300] ^= 1
    (path / "shard-000001.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"^samples: .*shard-000001.safetensors: damaged or foreign"):
        read(open_images("samples", path))
    (path / "shard-000001.safetensors").unlink()
    refused(
        path, "a finished folder of shards, .* 1 of 3 missing, the first of them shard-000001.safetensors"
    )
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^samples: .*manifest.json: damaged or foreign"):
        open_images("samples", path)


def test_a_folder_of_images_that_a_run_has_not_finished(tmp_path: Path) -> None:
    path = as_files(tmp_path / "x", IMAGES[:4])
    manifest = as_shards(tmp_path / "y", IMAGES[:5]) / "manifest.json"
    (path / "manifest.json").write_text(manifest.read_text().replace('"safetensors"', '"png"'))
    refused(path, "a finished folder of 5 images, as its manifest.json says, got .* with 4")
    Image.fromarray(IMAGES[4].numpy()).save(path / "b" / "0004.png")
    assert_same_bits(read(open_images("samples", path)), IMAGES[:5].permute(0, 3, 1, 2))
