"""Launches over (tile, sample), and what they have in common."""

from __future__ import annotations

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
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    constants: tuple[int, ...],
    device: int,
) -> None:
    """Launch over (tile, sample), as often as grids of `LARGEST_GRID` samples take, on the tensors' device."""
    # What is launched goes to the current device, nearly always the tensors': asking is cheaper than setting it.
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch_grid(program, tiles, batch, tensors, numbers, constants, device)
    for first in range(0, batch, LARGEST_GRID):
        samples = min(LARGEST_GRID, batch - first)
        program.launch((tiles, samples), device, tensors, (*numbers, first), constants)


def most(components: int) -> int:
    """Return how many values of the cdf are read at once: few specialisations for all numbers of components."""
    return 64 if components <= 65 else 1024
