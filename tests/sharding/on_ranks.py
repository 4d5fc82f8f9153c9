"""Work on ranks that are real processes, forked from the test, with gloo between them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

PATIENCE = 60


def _rank(work: Callable[[int], Any], rank: int, ranks: int, store: Path, results: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        told = work(rank)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    results.put((rank, told))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, store: Path, work: Callable[[int], Any]) -> list[Any]:
    """Call `work` with each rank in forks of this process; return what they returned, or the errors as text."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    started = [
        context.Process(target=_rank, args=(work, rank, ranks, store, results)) for rank in range(ranks)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + PATIENCE
    for process in started:
        process.join(max(end - time.monotonic(), 0))
    hanging = [process for process in started if process.exitcode is None]
    for process in hanging:
        process.kill()
    assert not hanging
    assert [process.exitcode for process in started] == [0] * ranks
    return [told for _, told in sorted(results.get() for _ in started)]
