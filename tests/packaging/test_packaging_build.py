"""What setup.py asks of CMake: options quoted as for a shell, wherever the checkout lies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

# Writes down the words of each call, one list a line; builds nothing.
CMAKE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setuptools reads of the repository, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cmake").write_text(CMAKE)
    (tmp_path / "bin" / "cmake").chmod(0o755)
    return folder


def build(checkout: Path, cmake_args: str) -> subprocess.CompletedProcess[str]:
    """Build the extensions with a CMake that only writes down what it is asked for."""
    environment = os.environ | {
        "CALLS": str(checkout / "calls"),
        "CMAKE_ARGS": cmake_args,
        "PATH": f"{checkout.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    words = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "made here"]
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)


def test_options_are_words_as_a_shell_takes_them(checkout: Path) -> None:
    done = build(
        checkout,
        """-DGMM_CUDA=OFF "-DCUDA_HOME=/opt/cuda 13" -DCMAKE_CXX_FLAGS='-O2 -g' """
        "-DGMM_CUDA_ARCHITECTURES='80;90'",
    )
    assert done.returncode == 0, done.stderr
    configure, compile_all = map(json.loads, (checkout / "calls").read_text().splitlines())
    assert configure[-4:] == [
        "-DGMM_CUDA=OFF",
        "-DCUDA_HOME=/opt/cuda 13",
        "-DCMAKE_CXX_FLAGS=-O2 -g",
        "-DGMM_CUDA_ARCHITECTURES=80;90",
    ]
    assert configure[configure.index("-S") + 1] == str(checkout)
    folder = configure[configure.index("-B") + 1]
    assert Path(folder).is_relative_to(checkout / "made here")
    assert compile_all == ["--build", folder]
    # What an earlier build was told goes before anything this one is.
    assert configure.index("-UGMM_*") < min(map(configure.index, [w for w in configure if w[:2] == "-D"]))


def test_quotes_that_do_not_close_are_an_error_that_names_the_variable(checkout: Path) -> None:
    done = build(checkout, "-DCMAKE_CXX_FLAGS='-O2 -g")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "error: CMAKE_ARGS: expected words as a shell takes them, "
        """got "-DCMAKE_CXX_FLAGS='-O2 -g": No closing quotation"""
    )
    assert not (checkout / "calls").exists()
