"""What a command has made is not lost: files are tried before the work, kept after it, and printing goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmmkernel.cli import main, outputs
from gmmkernel.training import Trainer

CaptureText = pytest.CaptureFixture[str]
FEW = ("--count", "20", "--steps", "2", "--spacing", "trailing", "--sampler", "ddim")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command begins what takes long."""

    def begin(*arguments: object, **options: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("gmmkernel.cli.sample_digits.load_unet", begin)
    monkeypatch.setattr("gmmkernel.cli.compare.load_unet", begin)
    monkeypatch.setattr(Trainer, "fit", begin)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --npz taken/x.npz", "error: --npz: cannot write 'taken/x.npz': "),
        ("sample --npz taken/deeper/x.npz", "error: --npz: cannot write 'taken/deeper/x.npz': "),
        ("sample --output taken/x.png", "error: --output: cannot write 'taken/x.png': "),
        ("sample --shards taken/x", "error: --shards: cannot write in 'taken/x': "),
        (f"sample --npz {'n' * 252}.npz", "error: --npz: cannot write 'nnn"),
        ("compare --output taken/x.png", "error: --output: cannot write 'taken/x.png': "),
        ("train --output taken/x", "error: --output: cannot write in 'taken/x': "),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_before_the_work(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    deterministic = torch.are_deterministic_algorithms_enabled()
    assert main(words.split()) == 2
    torch.use_deterministic_algorithms(deterministic)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_that_is_protected_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npz").touch()
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode != os.W_OK
    )  # whom nothing is forbidden runs tests too
    with pytest.raises(OSError, match=r"--npz: cannot write .*x\.npz': Permission denied"):
        outputs.check_file("--npz", tmp_path / "x.npz")


@pytest.mark.parametrize("full", [("target",), ("target", "work"), ("target", "work", "temporary")])
def test_what_cannot_be_written_after_the_work_is_kept_elsewhere(
    full: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    write_whole = outputs.write_whole

    def on_a_full_disk(path: Path, data: bytes) -> None:
        if path.parent.name in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(outputs, "write_whole", on_a_full_disk)
    npz = tmp_path / "target" / "x.npz"
    assert main(["sample", *FEW, "--npz", str(npz)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --npz: cannot write '{npz}': No space left on device; ")
    found = list(tmp_path.rglob("*.npz"))
    if "temporary" in full:
        assert found == []
        assert error.endswith("; and nowhere else either")
        return
    (kept,) = found
    assert kept.parent.name == ("temporary" if "work" in full else "work")
    assert error.endswith(f"; what it should have is in '{kept}'")
    with np.load(kept) as arrays:
        assert arrays["samples"].shape == (20, 1, 8, 8)


def test_samples_are_there_before_anything_else_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("figure: no fonts")

    monkeypatch.setattr("gmmkernel.cli.sample_digits.write_panels", fail)
    words = ["sample", *FEW, "--output", str(tmp_path / "x.png"), "--npz", str(tmp_path / "x.NPZ")]
    assert main(words) == 2
    assert "figure: no fonts" in capsys.readouterr().err
    with np.load(tmp_path / "x.NPZ") as arrays:  # under the name that was given
        assert arrays["samples"].shape == (20, 1, 8, 8)


def test_a_table_is_printed_where_its_signs_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    png = tmp_path / "über.png"
    words = ["compare", "--count", "50", "--steps", "2", "--eta", "0", "--output", str(png)]
    assert main(words) == 0
    assert sys.stdout is ascii_only
    assert ascii_only.errors == "strict"
    text = raw.getvalue().decode("ascii")
    assert "mean +- standard error" in text
    assert "2     0  DDIM " in text
    assert text.endswith("\\xfcber.png\n")
    assert png.exists()


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python -u -m gmmkernel sample ... | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    npz = tmp_path / "x.npz"
    with os.fdopen(writing, "w", buffering=1) as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert main(["sample", *FEW, "--npz", str(npz)]) == 0
        monkeypatch.undo()
    assert npz.exists()


def test_a_full_disk_for_the_text_is_an_error_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    npz = tmp_path / "x.npz"
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["sample", *FEW, "--npz", str(npz)]) == 2
        monkeypatch.undo()
    assert npz.exists()
    assert capsys.readouterr().err.endswith("error: standard output: No space left on device\n")


def test_without_any_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    npz = tmp_path / "x.npz"
    assert main(["sample", *FEW, "--npz", str(npz)]) == 0
    assert npz.exists()


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: CaptureText) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gmmkernel.cli.sample_digits.load_unet", interrupt)
    assert main(["sample", "--count", "2"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
