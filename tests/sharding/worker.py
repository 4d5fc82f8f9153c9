"""What torchrun starts in the tests: one rank that stands still in the middle of its work, to be killed there."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from shard_case import run, whole_batch
from torch import Tensor


def main(folder: Path, aside: Path, steps: int) -> None:
    """Do so many steps, then wait in the network until somebody ends it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    calls = []

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > steps:
            name = f"rank-{dist.get_rank()}"
            (aside / f"new-{name}").write_text(str(os.getpid()))
            (aside / f"new-{name}").rename(aside / name)
            time.sleep(600)
        return whole_batch(x, timestep)

    run(folder, model=model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
