"""Progress bars are for terminals; a file or a pipe gets text without control characters."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gmmkernel import golden
from gmmkernel.cli import main
from gmmkernel.cli.progress import shows_progress

CaptureText = pytest.CaptureFixture[str]

COMMANDS = {
    "sample": ("sample --count 20 --steps 3 --batch-size 8", "9/9"),
    "shards": ("sample --count 20 --steps 3 --batch-size 8 --shards shards", "20/20"),
    "compare": (
        "compare --count 50 --steps 2 1 --eta 0 1 --batch-size 30 --output x.png",
        "28/28",
    ),  # 8 calls would repeat DDIM
    "train": ("train --steps 1 --output training", "1/1"),
    "verify": ("verify", "1/1"),
}


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def small_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    chosen = list(golden.cases())[:1]
    digests = {name: golden.expected_digests()[name] for name, _ in chosen}
    monkeypatch.setattr(golden, "cases", lambda: iter(chosen))
    monkeypatch.setattr(golden, "expected_digests", lambda: digests)
    monkeypatch.setattr("gmmkernel.cli.compare.write_panels", lambda *_, **__: None)
    monkeypatch.setattr("gmmkernel.cli.train.denoising_loss", lambda *_, **__: 0.0)
    monkeypatch.chdir(tmp_path)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("name", COMMANDS)
def test_bars_are_shown_on_a_terminal_alone(
    name: str, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, end = COMMANDS[name]
    if name != "verify":  # its bars go when they are done
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal := Terminal())
            assert main([*words.split(), "--output", "again"] if name == "train" else words.split()) == 0
        totals = {*re.findall(r"\d+/(\d+) \[", terminal.getvalue())}
        assert totals == {end.partition("/")[2]}  # one bar, of everything
        assert end in terminal.getvalue()
        capsys.readouterr()
    assert main(words.split()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", printed.out)


def test_lines_of_compare_are_not_written_into_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both streams are one terminal: before a line is printed the bar is taken away."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["compare", "--count", "50", "--steps", "2", "--eta", "0"]) == 0
    lines = re.split(r"[\r\n]", terminal.getvalue())
    assert [line for line in lines if line.startswith("2 steps")] == [
        f"2 steps, eta 0: {method}" for method in ("DDIM", "DDIM-GMM ortho", "DDIM + isotropic noise")
    ]
    assert not [line for line in lines if "2 steps, eta 0:" in line and "call" in line]


def test_without_any_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not shows_progress()
    assert main(COMMANDS["sample"][0].split()) == 0
