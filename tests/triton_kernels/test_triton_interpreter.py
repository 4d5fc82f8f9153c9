"""Triton's interpreter gives the bits of the compiled core, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)


@pytest.mark.parametrize(
    "file",
    [
        "interpreted.py",
        "interpreted_backward.py",
        "interpreted_density.py",
        "interpreted_low_rank.py",
        "interpreted_training.py",
    ],
)
def test_interpreted_kernels_give_the_same_bits(file: str) -> None:
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"Triton {triton.__version__} interprets fma as a multiplication and an addition")
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(here / file),
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
        ],
        cwd=here.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed.group(1)) > 40
    assert "skipped" not in done.stdout
