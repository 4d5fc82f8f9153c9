"""Ranks are real processes: the same files for any number of them, after kills too, and no rank waits for ever."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same_bits
from on_ranks import PATIENCE, on_ranks
from shard_case import SEEDS, SHARDS, contents, identities, run, shard_names, whole_batch
from torch import Tensor

from gmmkernel import load_shards
from gmmkernel.cli import main

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder of one process that nothing stopped."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("expected")
    run(folder)
    torch.set_num_threads(before)
    return contents(folder)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_work_and_never_show(ranks: int, tmp_path: Path, expected: dict[str, bytes]) -> None:
    folder = tmp_path / "shards"
    reports = on_ranks(ranks, tmp_path / "store", lambda rank: run(folder))
    assert [report.made for report in reports] == [tuple(range(rank, SHARDS, ranks)) for rank in range(ranks)]
    assert {(report.shards, report.found) for report in reports} == {(SHARDS, 0)}
    assert contents(folder) == expected


def test_more_ranks_than_shards(tmp_path: Path) -> None:
    folder, alone = tmp_path / "shards", tmp_path / "alone"
    reports = on_ranks(3, tmp_path / "store", lambda rank: run(folder, seeds=SEEDS[:3]))
    assert [report.made for report in reports] == [(0,), (1,), ()]
    run(alone, seeds=SEEDS[:3])
    assert contents(folder) == contents(alone)


def test_what_is_missing_is_shared_evenly(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Not by the shards' own numbers, which could leave all of it to one rank."""
    folder = tmp_path / "shards"
    run(folder)
    for name in shard_names(0, 2, 4, 6):
        (folder / name).unlink()
    before = identities(folder)
    reports = on_ranks(2, tmp_path / "store", lambda rank: run(folder))
    assert [report.made for report in reports] == [(0, 4), (2, 6)]
    assert {report.found for report in reports} == {3}
    assert contents(folder) == expected
    assert before.items() <= identities(folder).items()


def test_an_error_on_one_rank_is_told_to_all(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """After the others have done their own part, which is kept."""
    folder = tmp_path / "shards"

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise ZeroDivisionError("no more")
        return whole_batch(x, timestep)

    told = on_ranks(3, tmp_path / "store", lambda rank: run(folder, model=model))
    other = "RuntimeError: rank 1 failed: ZeroDivisionError: no more"
    assert told == [other, "ZeroDivisionError: no more", other]
    assert sorted(path.name for path in folder.glob("shard*")) == shard_names(0, 2, 3, 5, 6)
    assert run(folder).made == (1, 4)
    assert contents(folder) == expected


def test_a_bad_folder_is_told_to_all(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    run(folder)
    before = identities(folder)
    told = on_ranks(2, tmp_path / "store", lambda rank: run(folder, batch_size=3))
    assert told[0].startswith(
        f"OtherRunError: '{folder}' has shards of another run (batch_size: 2 there, 3 here); "
    )
    assert told[1] == f"RuntimeError: rank 0 failed: {told[0]}"
    assert identities(folder) == before


def test_ranks_must_agree(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    told = on_ranks(2, tmp_path / "store", lambda rank: run(folder, seeds=SEEDS[: 5 + rank]))
    assert "rank 1 there and of rank 0 here: count: 6 there, 5 here" in told[0]
    assert "rank 0 there and of rank 1 here: count: 5 there, 6 here" in told[1]
    told = on_ranks(2, tmp_path / "store2", lambda rank: run(folder, batch_size=rank))
    assert told[0] == "ValueError: batch_size: expected an integer >= 1, got 0"
    assert told[1] == f"RuntimeError: rank 0 failed: {told[0]}"
    assert not folder.exists()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "torchrun ended too early"
        assert time.monotonic() < end
        time.sleep(0.02)


def stopped_in_the_middle(ranks: int, folder: Path, aside: Path, shards_each: int, *, whole: bool) -> None:
    """Start ranks that stand still inside a shard, and kill one of them, or the whole run."""
    aside.mkdir()
    words = (*TORCHRUN, str(ranks), HERE / "worker.py", folder, aside, str(3 * shards_each + 1))
    environment = ENVIRONMENT | {"TMPDIR": str(aside)}  # a launcher leaves files
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids: list[int] = []
    try:
        wait_for(lambda: len(list(aside.glob("rank-*"))) == ranks, process)
        pids = [int((aside / f"rank-{rank}").read_text()) for rank in range(ranks)]
        if whole:
            process.kill()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pids[1], signal.SIGKILL)
        assert process.wait(PATIENCE) != 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def test_a_run_killed_twice_loses_nothing(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Three ranks of which one is killed, then two that are killed with their launcher, then one process."""
    folder = tmp_path / "shards"
    stopped_in_the_middle(3, folder, tmp_path / "one", 1, whole=False)
    first = identities(folder)
    assert sorted(first) == ["manifest.json", *shard_names(0, 1, 2)]
    stopped_in_the_middle(2, folder, tmp_path / "whole", 1, whole=True)
    second = identities(folder)
    assert sorted(second) == ["manifest.json", *shard_names(0, 1, 2, 3, 4)]
    assert first.items() <= second.items()
    assert run(folder) == (SHARDS, 5, (5, 6), 3)
    assert second.items() <= identities(folder).items()
    assert contents(folder) == expected


@contextmanager
def written_to_a_terminal() -> Iterator[tuple[int, list[bytes]]]:
    """Give a terminal, and what is written to it, which is all there when the block has ended."""
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))  # it begins without columns, on which a bar has no text
    written: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # when nobody has the terminal any more
            while part := os.read(ours, 4096):
                written.append(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield terminal, written
    finally:
        os.close(terminal)
        reader.join(PATIENCE)
        os.close(ours)


def test_the_command_line_under_torchrun(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks write the files of one process; the first one alone reports, on a terminal with a bar."""
    words = ["sample", "--sampler", "ddim", "--variant", "ortho", "--eta", "1", "--steps", "2"]
    words += ["--count", "20", "--batch-size", "8", "--shards"]
    alone, shared, npz = tmp_path / "alone", tmp_path / "shared", tmp_path / "x.npz"
    assert main([*words, str(alone)]) == 0
    by_one = capfd.readouterr()
    assert by_one.err == ""  # which is no terminal
    with written_to_a_terminal() as (terminal, written):
        done = subprocess.run(
            [*TORCHRUN, "2", "-m", "gmmkernel", *words, shared, "--npz", npz],
            env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=PATIENCE,
        )
    bars = b"".join(written).decode()
    assert done.returncode == 0, bars
    assert contents(shared) == contents(alone)
    samples, seeds = load_shards(shared)
    with np.load(npz) as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), samples)
        assert arrays["seeds"].tolist() == list(range(20)) == seeds.tolist()

    def figures(out: str) -> list[str]:
        return re.sub(r"made in .* s( by \d ranks)?", "made", out).splitlines()

    assert " s by 2 ranks, " in done.stdout
    assert "ranks" not in by_one.out
    assert figures(done.stdout) == [*figures(by_one.out), f"arrays: {npz}"]
    assert "shards: 3 made, 0 were there before" in figures(done.stdout)
    assert "12/12" in bars  # the first rank's
    assert "8/8" not in bars  # the second's

    assert main([*words, str(alone)]) == 0
    assert "shards: 0 made, 3 were there before" in figures(capfd.readouterr().out)
    assert main([*words, str(alone), "--guidance-scale", "2", "--digit", "3"]) == 2
    error = capfd.readouterr().err
    assert f"--shards: '{alone}' has shards of another run (the sampler (" in error
    assert "the mixture); --digit: none there, 3 here); give another folder, or the same options" in error
