"""Two ranks see, sample for sample, what one process sees, and end with its weights up to rounding."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import assert_same_bits
from safetensors.torch import load_file
from torch import nn
from trainings import Plain, fit, new_network, new_trainer

STEPS, RESUMED_AT = 7, 3


def _train(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    for stop in (RESUMED_AT, STEPS):
        network = new_network(Plain)
        fit(
            new_trainer(nn.parallel.DistributedDataParallel(network)),
            path / "training",
            steps=stop,
            log_every=2,
        )
        torch.save(network.calls, path / f"calls-{rank}-{stop}.pt")
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 2, the ranks, got 5"):
        new_trainer(nn.parallel.DistributedDataParallel(new_network(Plain)), batch_size=5)
    dist.barrier()  # nobody leaves while another one still talks to it
    dist.destroy_process_group()


def test_two_ranks(tmp_path: Path, set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    network = new_network(Plain)
    fit(new_trainer(network), tmp_path / "single", steps=STEPS, log_every=2)
    # What both import is imported once, before they part.
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    mp.start_processes(_train, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    seen = [
        [call for stop in (RESUMED_AT, STEPS) for call in torch.load(tmp_path / f"calls-{rank}-{stop}.pt")]
        for rank in range(2)
    ]
    assert len(network.calls) == len(seen[0]) == len(seen[1]) == STEPS
    for call, *shares in zip(network.calls, *seen, strict=True):
        for whole, *parts in zip(call, *shares, strict=True):
            assert_same_bits(torch.cat(parts), whole)
    single, double = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("single", "training")
    )
    assert sorted(single) == sorted(double)
    for name, tensor in single.items():
        torch.testing.assert_close(double[name], tensor, rtol=1e-4, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("single", "training")]
    assert len(logs[0]) == len(logs[1]) == -(-STEPS // 2)
    for one, two in zip(*logs, strict=True):
        assert json.loads(two) == pytest.approx(json.loads(one), rel=1e-4)
