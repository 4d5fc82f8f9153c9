"""`train --images`: what it writes, what comes before what, what it refuses; with two ranks; after SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from helpers import assert_same_bits
from safetensors.torch import load_file
from small import options, pictures, small, write

from gmmkernel.cli import main
from gmmkernel.recipes import image_trainer, load_images

ROOT = Path(__file__).resolve().parents[2]
CaptureText = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def settings_put_back() -> Iterator[None]:
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write(tmp_path / "images" / "cat", pictures(5))
    write(tmp_path / "images" / "dog", pictures(4, seed=1))
    return tmp_path / "images"


def train(images: Path, output: Path, *words: str, **changes: Any) -> int:
    own = ["--images", str(images), "--output", str(output), "--workers", "0"]
    return main(["train", *own, *options(**changes), *words])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_trains_and_says_what_it_made(images: Path, tmp_path: Path, capsys: CaptureText) -> None:
    words = ("--classes", "folders", "--flip", "--class-dropout", "0.3", "--warmup", "2")
    assert train(images, tmp_path / "made", *words) == 0
    out = capsys.readouterr().out
    settings = small(classes="folders", flip=True, class_dropout=0.3, warmup=2)
    found = load_images(images, settings)
    trainer = image_trainer(settings, found)
    trainer.fit(found, 3, progress=False)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "made" / "pipeline")
    for name, tensor in trainer.average.unet.state_dict().items():
        assert_same_bits(pipeline.unet.state_dict()[name], tensor.contiguous())
    described = json.loads((tmp_path / "made" / "pipeline" / "gmmkernel.json").read_text())
    assert described == {"classes": ["cat", "dog"], "null_class": 2}
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert out == (
        f"18 images of 2 classes, 9 of them mirrored; a U-Net of {count:,} parameters\n"
        f"pipeline of the weights' moving average: {tmp_path / 'made' / 'pipeline'}\n"
    )


def test_it_goes_on_to_the_same_files(images: Path, tmp_path: Path) -> None:
    """And saves a pipeline with every checkpoint; and again where nothing is left to do."""
    assert train(images, tmp_path / "whole") == 0
    assert train(images, tmp_path / "stopped", "--checkpoint-every", "1", steps=2) == 0
    assert "pipeline/model_index.json" in files(tmp_path / "stopped")
    assert files(tmp_path / "stopped") != files(tmp_path / "whole")
    assert train(images, tmp_path / "stopped", "--workers", "1") == 0
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    (tmp_path / "stopped" / "pipeline" / "model_index.json").rename(tmp_path / "away")
    assert train(images, tmp_path / "stopped") == 2  # what is no pipeline is somebody's
    (tmp_path / "away").rename(tmp_path / "stopped" / "pipeline" / "model_index.json")
    assert train(images, tmp_path / "stopped") == 0
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_options_come_before_a_recipe(images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        "size = 16\nchannels = 8\nmultipliers = [1, 2]\nlayers = 1\nattention = [4]\nbatch_size = 3\nsteps = 2\n"
        'loss = "skip"\nskip = 4\nflip = true\n'
    )
    words = ["train", "--images", str(images), "--recipe", str(recipe), "--workers", "0"]
    words += ["--output", str(tmp_path / "made"), "--size", "8", "--no-flip", "--tau", "0.8"]
    assert main(words) == 0
    settings = small(batch_size=3, loss="skip", skip=4, tau=0.8, ema_decay=0.9999, learning_rate=2e-4)
    found = load_images(images, settings)
    trainer = image_trainer(settings, found)
    trainer.fit(found, 2, progress=False)
    made = load_file(tmp_path / "made" / "checkpoint.safetensors")
    for name, tensor in trainer.average.state_dict().items():
        assert_same_bits(made[f"average.{name}"], tensor.contiguous())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "0"), "--size: expected an integer >= 1, got 0"),
        (("--size", "x"), "--size: expected an integer >= 1, got 'x'"),
        (("--crop", "1,2"), "--crop: expected N, or N, LEFT, TOP, all integers >= 0 and N >= 1, got [1, 2]"),
        (
            ("--multipliers", "1,x"),
            "--multipliers: expected integers >= 1, one for each resolution, got '1,x'",
        ),
        (("--dropout", "1"), "--dropout: expected a number in [0, 1), got 1"),
        (("--precision", "float16"), "--precision: expected 'float32' or 'bfloat16', got 'float16', whose"),
        (("--schedule", "cosine"), "--schedule: expected one of 'linear', "),
        (("--filter", "nearest"), "--filter: expected one of 'lanczos', "),
        (("--workers", "-1"), "--workers: expected an integer >= 0, got '-1'"),
    ],
)
def test_bad_options(
    images: Path, tmp_path: Path, capsys: CaptureText, words: tuple[str, str], message: str
) -> None:
    with pytest.raises(SystemExit):
        train(images, tmp_path / "none", *words)
    assert message in capsys.readouterr().err.replace("argument --", "--")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tau", "0.9"), "error: --tau: expected loss 'skip' beside it"),
        (("--class-dropout", "0.1"), "error: --class-dropout: expected classes beside it"),
        (("--classes", "labels"), "error: --classes: expected 'folders' or 'none'"),
        (("--attention", "16"), "error: --attention: expected some of the resolutions 8, 4, or none, got 16"),
        (("--loss", "skip", "--skip", "1000"), "error: --skip: expected 1 to 999"),
        (("--recipe", "mnist"), "error: --recipe: expected celeba64, cifar10 or a .toml file, got 'mnist'"),
        (
            ("--recipe", "cifar"),
            "error: --recipe: expected celeba64, cifar10 or a .toml file, got 'cifar'; did y",
        ),
        (("--crop", "9"), "error: --crop: expected a square within every image, got 9, and"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    images: Path, tmp_path: Path, capsys: CaptureText, words: tuple[str, ...], message: str
) -> None:
    assert train(images, tmp_path / "none", *words) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "8"), "error: --size: is for images of your own, expected --images beside it, got none"),
        (("--no-flip",), "error: --flip: is for images of your own"),
        (("--recipe", "cifar10"), "error: --recipe: is for images of your own"),
        (("--workers", "1"), "error: --workers: is for images of your own"),
        (("--loss", "simple"), "error: --loss: is for images of your own"),
    ],
)
def test_options_of_images_need_images(
    tmp_path: Path, capsys: CaptureText, words: tuple[str, ...], message: str
) -> None:
    assert main(["train", "--output", str(tmp_path / "none"), *words]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "none").exists()


def test_steps_have_to_be_said(images: Path, tmp_path: Path, capsys: CaptureText) -> None:
    assert main(["train", "--images", str(images), "--output", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: --steps: expected how many to train for")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_decoded_is_named(
    images: Path, tmp_path: Path, capsys: CaptureText, workers: str
) -> None:
    file = images / "cat" / "03.png"
    file.write_bytes(file.read_bytes()[:-60])
    assert train(images, tmp_path / "made", "--workers", workers) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --images: expected an image in {str(file)!r}, got a damaged file: ")


@pytest.mark.parametrize("missing", ["diffusers", "PIL"])
def test_a_missing_library_is_named(
    images: Path, tmp_path: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert train(images, tmp_path / "none") == 2
    assert 'pip install "gmmkernel[pipelines]"' in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def command(images: Path, output: Path, **changes: Any) -> list[str]:
    words = ["-m", "gmmkernel", "train", "--images", str(images), "--output", str(output)]
    return [*words, "--classes", "folders", "--workers", "1", "--checkpoint-every", "5", *options(**changes)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_process_changes_nothing(images: Path, tmp_path: Path) -> None:
    """SIGKILL when a checkpoint and a pipeline are there, and training goes on."""
    for name in ("whole", "killed"):
        folder = tmp_path / name
        process = subprocess.Popen([sys.executable, *command(images, folder, steps=60)], env=environment())
        if name == "killed":
            for wanted in (folder / "checkpoint.safetensors", folder / "pipeline"):
                while not wanted.exists():
                    assert process.poll() is None
                    time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            process = subprocess.Popen(
                [sys.executable, *command(images, folder, steps=60)], env=environment()
            )
        assert process.wait() == 0
    assert files(tmp_path / "whole") == files(tmp_path / "killed")


@pytest.mark.slow
def test_two_ranks(images: Path, tmp_path: Path) -> None:
    """Without dropout, which each rank has of its own, the weights agree up to the rounding of gradients."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        words = command(images, tmp_path / name, steps=6, dropout=0.0)
        subprocess.run([sys.executable, *launcher, *words], env=environment(), check=True)
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert sorted(one) == sorted(two)
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-4, atol=0)
    # Not the weights: those that a normalisation makes count for nothing have gradients of rounding alone.
    samples, made = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for name in ("one", "two"):
        unet = DDPMPipeline.from_pretrained(tmp_path / name / "pipeline").unet
        made.append(unet(samples, torch.tensor([0, 300, 600, 999]), torch.tensor([0, 1, 2, 0])).sample)
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)
    for name, tensor in unet.state_dict().items():
        assert_same_bits(tensor, two[f"average.unet.{name}"])
