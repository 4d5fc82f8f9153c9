"""Launches over (tile, sample), and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from gmmkernel.backends.triton.program import Program

LARGEST_GRID = 65535  # samples in one launch

PTX = torch.version.hip is None  # inline PTX is for NVIDIA's compiler


def tiles_of(elements: int, tile: int) -> int:
    """Return how many tiles hold that many elements."""
    return -(-elements // tile)


def sample_index(index: int | Tensor) -> tuple[Tensor | None, int, int]:
    """Return an index as its tensor, or None, the tensor's stride and the value for all samples."""
    if isinstance(index, Tensor):
        return index, 0 if index.numel() == 1 else 1, 0
    return None, 0, index


def launch_grid(
    program: Program,
    tiles: int,
    batch: int,
    samples: Sequence[Tensor | None],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    constants: tuple[int, ...] = (),
) -> None:
    """Launch over (tile, sample), as often as grids of `LARGEST_GRID` samples take, on the tensors' device.

    Args:
        program: its kernel takes the samples, the tensors, the samples' strides, the numbers, the first sample of a
            launch, and the constants.
        tiles: of a sample.
        batch: samples.
        samples: [B, ...], each sample contiguous; None where absent.
        tensors: all others.
        numbers: ints that nothing is specialised on.
        constants: ints that each make another program.
    """
    tensors = (*samples, *tensors)
    numbers = (*(0 if tensor is None else tensor.stride()[0] for tensor in samples), *numbers)
    device = next(tensor for tensor in tensors if tensor is not None).get_device()
    # What is launched goes to the current device, nearly always the tensors': asking is cheaper than setting it.
    current = torch.cuda.current_device()
    with nullcontext() if device == current else torch.cuda.device(device):
        for first in range(0, batch, LARGEST_GRID):
            count = min(LARGEST_GRID, batch - first)
            program.launch((tiles, count), device, tensors, (*numbers, first), constants)


def most(components: int) -> int:
    """Return how many values of the cdf are read at once: few specialisations for all numbers of components."""
    return 64 if components <= 65 else 1024
