"""`python -m benchmarks.pipelines`: what `sample --pipeline` takes beside the network's own time.

A U-Net for 64x64 images with random weights, saved and loaded as a pipeline. The network's calls are timed inside of
the run that writes the images, in processor time of the one thread, so that neither another process nor the order of
two runs can pass for a difference.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import cpu_model, load_average
from gmmkernel import sample_shards

GOAL = 0.03


def save_pipeline(folder: Path, size: int) -> int:
    """Save a pipeline of pixels and return how many weights its U-Net has."""
    import diffusers

    library: Any = diffusers
    torch.manual_seed(0)
    unet = library.UNet2DModel(
        sample_size=size,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
    )
    library.DDPMPipeline(unet, library.DDPMScheduler()).save_pretrained(folder)
    return sum(parameter.numel() for parameter in unet.parameters())


class Timed(nn.Module):
    """A network that adds up the processor time of its calls."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, *given: Any, **named: Any) -> Any:
        """Call it."""
        begin = time.thread_time()
        made = self.network(*given, **named)
        self.seconds += time.thread_time() - begin
        return made


def overhead(pipeline: Any, sampler: Any, count: int, batch_size: int, files: str) -> float:
    """Return the time of a run beside the network's, as a share of it."""
    network = pipeline.network
    pipeline.network = timed = Timed(network)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.thread_time()
        sample_shards(
            sampler,
            pipeline,
            torch.arange(count),
            pipeline.shape,
            folder,
            batch_size=batch_size,
            decode=pipeline.decode,
            files=files,
            progress=False,
        )
        seconds = time.thread_time() - begin
    pipeline.network = network
    return seconds / timed.seconds - 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    from gmmkernel.pipelines import load_pipeline

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = save_pipeline(Path(folder), given.size)
        pipeline = load_pipeline(folder)
    print(f"{cpu_model()}, PyTorch {torch.__version__}, load {load_average()}")
    print(f"U-Net of {weights:,} weights at {given.size}x{given.size}, {given.steps} steps, one thread")
    for name, method, eta in (("DDIM, eta = 1", "ddim", 1.0), ("DPM-Solver++", "dpm-solver", 0.0)):
        sampler = pipeline.sampler(given.steps, method=method, eta=eta)
        for files in ("png", "safetensors"):
            overhead(pipeline, sampler, given.batch_size, given.batch_size, files)
            shares = [
                overhead(pipeline, sampler, given.count, given.batch_size, files)
                for _ in range(given.repeats)
            ]
            middle = statistics.median(shares)
            print(
                f"{name:14} {files:12} {middle:6.2%} (goal at most {GOAL:.0%}; {min(shares):.2%} to {max(shares):.2%})"
            )


if __name__ == "__main__":
    main()
