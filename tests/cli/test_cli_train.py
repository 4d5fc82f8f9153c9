"""`train`: resumes, refuses another training's folder, and writes weights that load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits
from safetensors.torch import load_file

from gmmkernel.cli import main
from gmmkernel.digits import DigitsUNet, denoising_loss, digits_trainer, load_digits

CaptureText = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def settings_put_back() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


def train(folder: Path, *words: str) -> int:
    return main(["train", "--output", str(folder), "--steps", "3", "--checkpoint-every", "2", *words])


def test_weights_are_those_of_the_trainer(tmp_path: Path, capsys: CaptureText) -> None:
    words = ("--skip", "3", "--tau", "0.9", "--target", "same", "--seed", "5")
    assert train(tmp_path / "made", *words) == 0
    out = capsys.readouterr().out
    trainer = digits_trainer(3, seed=5, skip=3, tau=0.9, target="same")
    trainer.fit(load_digits("train"), 3, progress=False)
    unet = DigitsUNet()
    unet.load_state_dict(load_file(tmp_path / "made" / "unet.safetensors"))
    for name, tensor in unet.state_dict().items():
        assert_same_bits(tensor, trainer.average.state_dict()[name].contiguous())
    losses = [float(number) for number in re.findall(r"^held-out loss ([\d.]+) with", out, re.MULTILINE)]
    assert losses == pytest.approx(
        [denoising_loss(unet, conditional=conditional) for conditional in (False, True)], abs=1e-4
    )
    assert f"moving average: {tmp_path / 'made' / 'unet.safetensors'}\n" in out


def test_a_training_that_was_stopped_goes_on(tmp_path: Path, capsys: CaptureText) -> None:
    assert train(tmp_path / "whole") == 0
    assert " step" not in capsys.readouterr().out
    trainer = digits_trainer(3)
    trainer.fit(load_digits("train"), 2, folder=tmp_path / "stopped", progress=False)
    assert train(tmp_path / "stopped") == 0
    assert capsys.readouterr().out.startswith("went on after step 2 of 3\n")
    assert train(tmp_path / "stopped") == 0
    assert capsys.readouterr().out.startswith("nothing was left to do: all 3 steps had been done before\n")
    for name in ("checkpoint.safetensors", "unet.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_another_training_is_named(tmp_path: Path, capsys: CaptureText) -> None:
    assert train(tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert train(tmp_path, "--tau", "1", "--seed", "2", "--steps", "7") == 2
    error = capsys.readouterr().err
    assert "tau = 0.99, not 1.0; " in error
    assert "seed = 0, not 2" in error
    assert "cosine_steps = 3, not 7" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--skip", "0"), "--skip: expected an integer >= 1, got '0'"),
        (("--tau", "1.5"), "--tau: expected a number from 0 to 1, got '1.5'"),
        (("--seed", "-1"), "--seed: expected an integer from 0 to"),
        (("--threads", "0"), "--threads: expected an integer from 1 to 1024, got '0'"),
        (("--target", "both"), "--target: expected one of 'independent', 'same', "),
        (
            ("--output", "pyproject.toml"),
            "--output: expected the name of a folder, got the file 'pyproject.toml'",
        ),
        (("--output", ""), "--output: expected the name of a folder, got ''"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: CaptureText, words: tuple[str, str], message: str) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path / "none", *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_skip_beyond_the_schedule_is_refused(tmp_path: Path, capsys: CaptureText) -> None:
    assert train(tmp_path / "none", "--skip", "1000") == 2
    assert capsys.readouterr().err.startswith("error: --skip: expected 1 to 999")
    assert not (tmp_path / "none").exists()
