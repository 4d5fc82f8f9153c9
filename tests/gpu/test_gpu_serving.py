"""The engine of the serving example, captured in a CUDA graph, and shards drawn on the device by ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits
from layouts import DEVICE

from examples.continuous_batching import Engine, elementwise, make_kinds, make_requests, run_by_kind
from gmmkernel import load_shards

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guided", [False, True])
def test_every_sample_has_the_bits_of_its_request_alone(guided: bool) -> None:
    """On the CPU too: the network's arithmetic is the same there."""
    samplers, on_cpu = (make_kinds(device, guided=guided) for device in (str(DEVICE), "cpu"))
    requests = make_requests(20, len(samplers), seed=1)
    served = Engine(elementwise, samplers, 6, graph=True).serve(requests)
    alone = run_by_kind(elementwise, samplers, requests, 1)
    for sample, own, elsewhere in zip(
        served.samples, alone.samples, run_by_kind(elementwise, on_cpu, requests, 1).samples, strict=True
    ):
        assert_same_bits(sample.cpu(), own.cpu())
        assert_same_bits(sample.cpu(), elsewhere)


@pytest.mark.parametrize("graph", [False, True])
def test_neither_tick_nor_admission_waits_for_the_device(graph: bool) -> None:
    engine = Engine(elementwise, make_kinds(str(DEVICE)), 6, graph=graph)
    requests = make_requests(20, 4, seed=1)
    engine.serve(requests)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.serve(requests)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_shards_by_ranks_with_nccl(tmp_path: Path) -> None:
    """As many as there are GPUs, up to two; a second run finds all of it."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words += [str(min(torch.cuda.device_count(), 2)), "-m", "gmmkernel", "sample", "--device", "cuda"]
    words += ["--count", "20", "--batch-size", "8", "--steps", "3", "--shards", str(tmp_path / "shards")]
    for made, found in ((3, 0), (0, 3)):
        done = subprocess.run(
            words,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert f"shards: {made} made in " in done.stdout
        assert f", {found} were there before" in done.stdout
    assert load_shards(tmp_path / "shards").sample.shape == (20, 1, 8, 8)
