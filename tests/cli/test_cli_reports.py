"""`info`, `verify`, `--version` and help: what is here, and whether its bits are right."""

from __future__ import annotations

import os
import pkgutil
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gmmkernel import backends, golden
from gmmkernel.backends import cpu
from gmmkernel.cli import main

CaptureText = pytest.CaptureFixture[str]


def run_outside(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as its own process, in another folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_info_names_versions_backends_and_choices(capsys: CaptureText) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"gmmkernel {metadata.version('gmmkernel')}, torch {torch.__version__}, numpy "
    )
    assert platform.python_version() in lines[1]
    for status in backends.available_backends():
        (line,) = (line for line in lines if line.startswith(f"{status.name:10s} "))
        assert ("available" if status.available else "missing") in line
        assert line.endswith(status.detail)
    usable = [s.name for s in backends.available_backends() if s.available and s.device_type == "cuda"]
    assert (f"cuda:0 tensors use: {usable[0]}" if usable else "cuda tensors: no backend") in lines
    assert "cpu tensors use: cpu" in lines


def test_verify_finds_every_bit_on_every_backend(capsys: CaptureText) -> None:
    assert main(["verify"]) == 0
    out = capsys.readouterr().out.splitlines()
    count = len(golden.expected_digests())
    assert count >= 30
    labels = [*(f"cpu {name}" for name in cpu.instruction_sets()), "reference"]
    elsewhere = [status for status in backends.available_backends() if status.device_type == "cuda"]
    assert out == [
        *(f"{label}: {count} of {count} digests hold" for label in labels),
        *(
            f"{s.name}: {count} of {count} digests hold" if s.available else f"{s.name}: not here: {s.detail}"
            for s in elsewhere
        ),
        "every bit as committed",
    ]


A_FEW = ("noise/float32", "components/8", "mixture/rand")


@pytest.fixture
def a_few_cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Three golden cases, and their digests to change."""
    chosen = {name: case for name, case in golden.cases() if name in A_FEW}
    digests = {name: golden.expected_digests()[name] for name in chosen}
    monkeypatch.setattr(golden, "cases", lambda: iter(chosen.items()))
    monkeypatch.setattr(golden, "expected_digests", lambda: digests)
    return digests


def test_verify_names_what_differs(capsys: CaptureText, a_few_cases: dict[str, str]) -> None:
    assert main(["verify"]) == 0
    capsys.readouterr()
    a_few_cases["components/8"] = "0" * 64
    assert main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "reference: 2 of 3 digests hold" in out
    assert "DIFFERS reference: components/8" in out
    assert "DIFFERS cpu portable: components/8" in out
    assert "noise" not in out
    assert out.endswith(f"{len(cpu.instruction_sets()) + 1} differences\n")


@pytest.mark.parametrize(
    "change", [lambda digests: digests.pop("noise/float32"), lambda digests: digests.update(more="0" * 64)]
)
def test_verify_wants_the_same_cases(
    capsys: CaptureText, a_few_cases: dict[str, str], change: Callable[[dict[str, str]], object]
) -> None:
    change(a_few_cases)
    assert main(["verify"]) == 1
    assert "the cases are not those of golden.json" in capsys.readouterr().out


def test_verify_uses_the_backend_it_names(
    capsys: CaptureText, a_few_cases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core that computes something else is found on all of its instruction sets, and only there."""
    right = cpu.standard_normal

    def wrong(result: torch.Tensor, *arguments: object) -> None:
        right(result, *arguments)  # type: ignore[arg-type]
        result.view(-1)[7] += 1

    monkeypatch.setattr(cpu, "standard_normal", wrong)
    assert main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "reference: 3 of 3 digests hold" in out
    for name in cpu.instruction_sets():
        assert f"DIFFERS cpu {name}: noise/float32" in out
        assert f"DIFFERS cpu {name}: mixture/rand" in out  # which is made of noise too


def test_version(capsys: CaptureText) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"gmmkernel {metadata.version('gmmkernel')}\n"


@pytest.mark.parametrize("command", [[], ["sample"], ["compare"], ["verify"], ["info"]])
def test_help_is_there(command: list[str], capsys: CaptureText) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['python -m gmmkernel', *command])} ")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_says_in_a_few_lines_what_there_is(words: list[str], capsys: CaptureText) -> None:
    try:
        status = main(words)
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("positional arguments:") < 8
    assert {"sample", "compare", "train", "evaluate", "verify", "info"} <= {
        line.split()[0] for line in lines if line.startswith("    ")
    }


def test_the_console_command_is_this_one() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert pkgutil.resolve_name(project["scripts"]["gmmkernel"]) is main


def test_without_the_compiled_core_the_reference_is_used(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["gmmkernel._core"] = None
from gmmkernel.cli import main
sys.exit(main(["info"]))
"""
    done = run_outside(tmp_path, "-c", code)
    assert done.returncode == 0
    assert re.search(r"^cpu +missing +.*_core", done.stdout, re.MULTILINE)
    assert re.search(r"^reference +available +the specification, NumPy ", done.stdout, re.MULTILINE)
    assert "cpu tensors use: reference\n" in done.stdout
    assert done.stderr == ""


def test_a_bad_option_as_a_process(tmp_path: Path) -> None:
    done = run_outside(
        tmp_path, "-m", "gmmkernel", "sample", "--sampler", "ddim", "--variant", "ortho", "--components", "65"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --components: expected at most elements = 64")
    assert list(tmp_path.iterdir()) == []
