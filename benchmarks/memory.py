"""Peak memory of forward and backward passes, and of rollouts: python -m benchmarks.memory (Linux).

The most that a call adds to the resident memory of a process of its own, results and gradients included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import gradient_cases, rl_cases, training_cases
from benchmarks.targets import LARGE_SHAPE
from benchmarks.workload import Workload

_RL = {**rl_cases.OWN, **rl_cases.baselines(None)}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], object]) -> int:
    """Return the bytes that a call adds to the resident memory at its peak."""
    _RESET.write_text("5")  # the peak begins again at what is resident now
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _make(name: str, workload: Workload) -> Callable[[int], torch.Tensor]:
    if name in training_cases.FUNCTIONS:
        _, make, tau = training_cases.FUNCTIONS[name]
        return make(workload, torch.float32, tau)
    if name in _RL:
        return _RL[name].make(workload, torch.float32)
    _, function, options = gradient_cases.FUNCTIONS[name]
    return gradient_cases.forward_backward(workload, torch.float32, function(workload), **options)


def _peak_of(name: str, shape: tuple[int, ...]) -> int:
    small = (1, *[4] * (len(shape) - 1))  # first, for what is loaded once
    calls = [_make(name, Workload(size, torch.device("cpu"))) for size in (small, shape)]
    calls[0](0)
    return peak_memory(lambda: calls[1](0))


def _resident(field: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the peaks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--size", default="x".join(map(str, LARGE_SHAPE)), help="batch shape (default: %(default)s)"
    )
    size = parser.parse_args().size
    shape = tuple(map(int, size.split("x")))
    batch = 4 * int(torch.Size(shape).numel())
    print(f"{size} float32: a batch is {batch / 2**20:.1f} MiB")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # so that freed tensors do not stay resident
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for name, (measures, *_) in {**gradient_cases.FUNCTIONS, **training_cases.FUNCTIONS, **_RL}.items():
            peak = processes.apply(_peak_of, (name, shape))
            print(f"{name:34} {peak / 2**20:8.1f} MiB {peak / batch:6.2f} batches  {measures}")


if __name__ == "__main__":
    main()
