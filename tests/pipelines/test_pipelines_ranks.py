"""The command under torchrun, and killed in the middle: the images of one rank that nobody stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_pipelines as small

pytestmark = pytest.mark.slow
COUNT = 96
WORDS = ("sample", "--sampler", "ddim", "--eta", "1", "--variant", "ortho", "--components", "4")
RANKS = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def start(pipeline: Path, folder: Path, *launcher: str) -> subprocess.Popen[bytes]:
    """Start the command."""
    words = (
        "gmmkernel",
        *WORDS,
        "--count",
        COUNT,
        "--batch-size",
        2,
        "--pipeline",
        pipeline,
        "--images",
        folder,
    )
    command = [sys.executable, "-m", *launcher, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> str:
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, said
    return said


def kill_in_the_middle(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Send SIGKILL to the launcher and its ranks once there are some images, and more to come."""
    end = time.monotonic() + 120
    while len(list(folder.glob("*.png"))) < 8:
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end
        time.sleep(0.002)
    for entry in Path("/proc").glob("[0-9]*"):  # the ranks are not in the launcher's group
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    process.communicate()
    assert len(list(folder.glob("*.png"))) < COUNT, "nothing was left to do"


def test_two_ranks_and_kills_give_the_same_files(tmp_path: Path) -> None:
    pipeline = small.save("ddpm", tmp_path)
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert f"{COUNT} images made in " in finish(start(pipeline, alone))
    kill_in_the_middle(start(pipeline, stopped, *RANKS), stopped)
    said = finish(start(pipeline, stopped, *RANKS))
    assert f"{COUNT} images made in " not in said
    assert " by 2 ranks: " in said
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == {
        path.name: path.read_bytes() for path in alone.iterdir()
    }
