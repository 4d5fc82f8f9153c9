"""What becomes of the user's images: cut, resized and mirrored as by NumPy; classes; all that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from PIL import Image
from small import pictures, small, write

from gmmkernel import DDIMSampler, noise_schedule, sample_shards
from gmmkernel.recipes import DamagedImageError, load_images
from gmmkernel.recipes.settings import FILTERS

NOISE = np.random.default_rng(5).integers(0, 256, (3, 31, 23, 3), dtype=np.uint8)


def levels(sample: Any) -> np.ndarray:
    """Return a sample as [H, W, 3] from 0 to 255."""
    assert sample.dtype == torch.float32
    assert sample.is_contiguous()
    return (sample.double().numpy().transpose(1, 2, 0) + 1) * 127.5


def lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def bicubic(x: np.ndarray) -> np.ndarray:
    x = abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def bilinear(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - abs(x), 0, None)


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


KERNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lanczos": lanczos,
    "bicubic": bicubic,
    "bilinear": bilinear,
    "box": box,
}


def resized(image: np.ndarray, size: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Resize a square: along each axis a weighted mean, the kernel as wide as a new pixel where there are fewer."""
    scale = len(image) / size
    centres, old = (np.arange(size) + 0.5) * scale, np.arange(len(image)) + 0.5
    weights = kernel((old - centres[:, None]) / max(scale, 1))
    weights /= weights.sum(axis=1, keepdims=True)
    wide = np.clip(np.einsum("ij,kjc->kic", weights, image.astype(float)), 0, 255)  # Pillow's order
    return np.clip(np.einsum("ij,jkc->ikc", weights, wide), 0, 255)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [8, 40])
def test_resizing_is_numpys(tmp_path: Path, name: str, size: int) -> None:
    write(tmp_path, NOISE)
    images = load_images(tmp_path, small(size=size, filter=name))
    for picture, sample in zip(NOISE, images, strict=True):
        wanted = resized(picture[4:27], size, KERNELS[name])
        assert (
            abs(levels(sample) - wanted).max() <= 1.25
        )  # Pillow rounds to a level, and to another what weights beyond 1 made of that


@pytest.mark.parametrize(
    ("crop", "top", "left"), [(None, 4, 0), ((16,), 7, 3), ((16, 5, 2), 2, 5), ((16, 7, 15), 15, 7)]
)
def test_what_is_cut_out(tmp_path: Path, crop: Any, top: int, left: int) -> None:
    side = 23 if crop is None else 16
    write(tmp_path / "files", NOISE)
    np.savez(tmp_path / "array.npz", NOISE)
    for path in (tmp_path / "files", tmp_path / "array.npz"):
        images = load_images(path, small(size=side, crop=crop))
        for picture, sample in zip(NOISE, images, strict=True):
            assert_same_bits(
                sample,
                torch.from_numpy(
                    picture[top : top + side, left : left + side].transpose(2, 0, 1) / np.float32(127.5) - 1
                ),
            )
            assert sample.min() >= -1
            assert sample.max() <= 1


def test_the_second_half_is_mirrored_and_items_repeat(tmp_path: Path) -> None:
    write(tmp_path, NOISE)
    settings = small(size=8, flip=True)
    images = load_images(tmp_path, settings)
    assert (len(images), images.count) == (6, 3)
    for number in range(3):
        assert_same_bits(images[3 + number], images[number].flip(2))
        assert_same_bits(images[number], load_images(tmp_path, small(size=8))[number])
        assert_same_bits(images[3 + number], load_images(tmp_path, settings)[3 + number])
    assert not torch.equal(images[0], images[3])
    with pytest.raises(IndexError, match="expected 0 to 5, got 6"):
        images[6]


def test_files_come_in_the_order_of_names_from_folders_within(tmp_path: Path) -> None:
    made = pictures(6)
    places = ["b/2.png", "a.png", "b/10.PNG", "c/d/e/x.bmp", ".hidden/x.png", "b/.x.png"]
    for place, picture in zip(places, made, strict=True):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / place)
    images = load_images(tmp_path, small())
    for sample, number in zip(images, (1, 2, 0, 3), strict=True):
        np.testing.assert_allclose(levels(sample), made[number], atol=1e-4)


def test_the_manifest_of_images_that_were_drawn_is_none_of_them(tmp_path: Path) -> None:
    sampler = DDIMSampler(noise_schedule(), 1)
    sample_shards(
        sampler,
        lambda x, t: x,
        torch.arange(2),
        (8, 8),
        tmp_path / "cat",
        batch_size=2,
        decode=lambda x: x.abs().to(torch.uint8),
        files="png",
        progress=False,
    )
    drawn = load_images(tmp_path, small())
    (tmp_path / "cat" / "manifest.json").rename(tmp_path / ".hidden")
    assert (len(drawn), drawn.digest) == (2, load_images(tmp_path, small()).digest)
    (tmp_path / "cat" / "manifest.json").write_text("{}")  # somebody else's
    with pytest.raises(
        ValueError, match=r"images: expected image files .* and folders alone, got '.*manifest\.json'"
    ):
        load_images(tmp_path, small())


def test_what_is_no_rgb_becomes_it(tmp_path: Path) -> None:
    grey = pictures(1)[0, :, :, 0]
    see_through = np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)
    see_through[2:5, 3:6, 3] = 255
    two = [Image.fromarray(picture) for picture in pictures(2)]
    turned = Image.fromarray(NOISE[0, :12, :8])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(see_through).save(tmp_path / "1.webp", lossless=True, exact=True)
    two[0].save(tmp_path / "2.tiff", save_all=True, append_images=two[1:])
    turned.save(tmp_path / "3.png", exif=exif)
    np.savez(tmp_path / "grey.npz", images=grey[None])
    np.savez(tmp_path / "one.npz", images=grey[None, ..., None])
    array = load_images(tmp_path / "grey.npz", small())
    one = load_images(tmp_path / "one.npz", small())
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    images = load_images(tmp_path, small(crop=(8, 0, 0)))
    white = np.where(see_through[..., 3:] == 255, see_through[..., :3], 255)
    wanted = [
        np.repeat(grey[..., None], 3, axis=2),
        white,
        pictures(2)[0],
        np.rot90(NOISE[0, :12, :8], -1)[:8, :8],
    ]
    for sample, picture in zip(images, wanted, strict=True):
        np.testing.assert_allclose(levels(sample), picture, atol=1e-4)
    assert_same_bits(array[0], images[0])
    assert_same_bits(one[0], images[0])


def test_classes_are_folders(tmp_path: Path) -> None:
    write(tmp_path / "dog", pictures(2))
    write(tmp_path / "cat" / "young", pictures(1, seed=1))
    write(tmp_path / "Zebra", pictures(1, seed=2))
    images = load_images(tmp_path, small(classes="folders", flip=True))
    assert images.classes == ["Zebra", "cat", "dog"]
    assert [label for _, label in images] == [0, 1, 2, 2] * 2
    assert load_images(tmp_path, small()).classes is None


def test_classes_are_labels(tmp_path: Path) -> None:
    for names in (("arr_0", "arr_1"), ("images", "labels")):
        np.savez_compressed(
            tmp_path / "file.npz", **dict(zip(names, (pictures(4), np.array([2, 0, 1, 0])), strict=True))
        )
        images = load_images(tmp_path / "file.npz", small(classes="labels"))
        assert images.classes == ["0", "1", "2"]
        assert [label for _, label in images] == [2, 0, 1, 0]
        assert load_images(tmp_path / "file.npz", small()).classes is None


def test_the_digest_tells_images_apart(tmp_path: Path) -> None:
    digests = set()
    for seed, places in enumerate((("a", "b"), ("a", "c"), ("a", "c"))):
        for place in places:
            write(tmp_path / f"{min(seed, 1)}" / place, pictures(2))
        digests.add(load_images(tmp_path / f"{min(seed, 1)}", small()).digest)
    for number, labels in enumerate(([0, 1], [1, 0])):
        np.savez(tmp_path / "x.npz", pictures(2, seed=number // 2), np.array(labels))
        digests |= {
            load_images(tmp_path / "x.npz", small(classes=kind)).digest for kind in ("none", "labels")
        }
    np.savez(tmp_path / "x.npz", pictures(2, seed=3))
    digests.add(load_images(tmp_path / "x.npz", small()).digest)
    assert len(digests) == 2 + 3 + 1


def damaged(folder: Path) -> None:
    write(folder, pictures(3))
    (folder / "01.png").write_bytes(b"\x89PNG and so on")


def empty_file(folder: Path) -> None:
    write(folder, pictures(3))
    (folder / "02.png").write_bytes(b"")


def something_else(folder: Path) -> None:
    write(folder, pictures(3))
    (folder / "labels.csv").write_text("0,1,2")


def sixteen_bits(folder: Path) -> None:
    write(folder, pictures(1))
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(folder / "x.png")


def looped(folder: Path) -> None:
    write(folder / "a", pictures(1))
    (folder / "a" / "back").symlink_to(folder, target_is_directory=True)


def beside(folder: Path) -> None:
    write(folder / "a", pictures(2))
    write(folder, pictures(1))


def empty_class(folder: Path) -> None:
    write(folder / "a", pictures(2))
    (folder / "b").mkdir()


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (
            lambda folder: folder.mkdir(),
            {},
            r"images: expected files in '.*folder' that end in .*\.png.*, got none",
        ),
        (damaged, {}, r"images: expected an image in '.*01\.png', got a damaged one, or none"),
        (empty_file, {}, r"images: expected an image in '.*02\.png', got an empty file"),
        (something_else, {}, r"images: expected image files \(.*\) and folders alone, got '.*labels\.csv'"),
        (sixteen_bits, {}, r"images: expected 8 bits a channel in '.*x\.png', got Pillow's mode 'I;16'"),
        (looped, {}, r"images: expected folders that end somewhere, got '.*back', a link to one above it"),
        (
            beside,
            {"classes": "folders"},
            r"images: expected all images .* in a folder for each class, got '00\.png' \(1 of 3",
        ),
        (
            empty_class,
            {"classes": "folders"},
            r"images: expected images in each class of .*, got none in 'b'",
        ),
        (something_else, {"classes": "labels"}, r"classes: expected 'folders' or 'none' .*, got 'labels'"),
        (
            lambda folder: write(folder, pictures(1)),
            {"crop": (9,)},
            r"crop: expected a square within every image, got 9, and '.*00\.png' has 8x8 pixels",
        ),
        (lambda folder: write(folder, pictures(1)), {"crop": (4, 5, 0)}, r"crop: .* got 4,5,0, and"),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, make: Any, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "folder")
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "folder", small(**changes))


IMAGES = pictures(3)


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"x": IMAGES}, {}, r"images: expected 'images' or 'arr_0' in '.*', got x"),
        ({"images": IMAGES, "arr_0": IMAGES}, {}, r"images: .* got both"),
        ({"arr_0": IMAGES / 255}, {}, r"images: expected uint8 \[N, H, W, 3\].*, got float64 \[3, 8, 8, 3\]"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, {}, r"got uint8 \[3, 3, 8, 8\]"),
        ({"arr_0": IMAGES[:0]}, {}, r"none of them 0, in .*, got uint8 \[0, 8, 8, 3\]"),
        ({"arr_0": np.array([{}, {}])}, {}, r"images: expected numbers in 'arr_0' of .*: Object arrays"),
        ({"arr_0": IMAGES}, {"crop": (9,)}, r"crop: .*, and each in '.*' has 8x8 pixels"),
        (
            {"arr_0": IMAGES},
            {"classes": "folders"},
            r"classes: expected 'labels' or 'none' .*, got 'folders'",
        ),
        ({"arr_0": IMAGES}, {"classes": "labels"}, r"classes: expected 'labels' or 'arr_1' in .*, got arr_0"),
        (
            {"arr_0": IMAGES, "arr_1": np.arange(2)},
            {"classes": "labels"},
            r"integers \[3\].*, got int64 \[2\]",
        ),
        (
            {"arr_0": IMAGES, "arr_1": np.ones(3)},
            {"classes": "labels"},
            r"integers \[3\].*, got float64 \[3\]",
        ),
        ({"arr_0": IMAGES, "arr_1": np.array([0, 1, -1])}, {"classes": "labels"}, r">= 0, got -1 at index 2"),
        (
            {"arr_0": IMAGES, "arr_1": np.array([0, 7, 1])},
            {"classes": "labels"},
            r"without a gap, got 7 at index 1 and no image of class 2",
        ),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "file.npz", small(**changes))


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"images: expected a folder or an \.npz, got '.*none', which is not"
    ):
        load_images(tmp_path / "none", small())
    (tmp_path / "file.tar").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"images: expected a folder or an \.npz, got the file '.*file\.tar'"
    ):
        load_images(tmp_path / "file.tar", small())
    np.save(tmp_path / "file.npy", IMAGES)
    (tmp_path / "file.npy").rename(tmp_path / "file.npz")
    with pytest.raises(ValueError, match="got an array alone"):
        load_images(tmp_path / "file.npz", small())
    np.savez(tmp_path / "file.npz", IMAGES)
    whole = (tmp_path / "file.npz").read_bytes()
    for cut in (b"", whole[:-40], whole[:200] + b"?" + whole[201:]):
        (tmp_path / "file.npz").write_bytes(cut)
        with pytest.raises(ValueError, match=r"images: expected .*file\.npz"):
            load_images(tmp_path / "file.npz", small())


def test_an_image_whose_end_is_missing_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, NOISE)
    file = tmp_path / "01.png"
    file.write_bytes(file.read_bytes()[:-900])
    images = load_images(tmp_path, small())
    assert images[0].shape == (3, 8, 8)
    with pytest.raises(
        DamagedImageError, match=r"images: expected an image in '.*01\.png', got a damaged file"
    ):
        images[1]
