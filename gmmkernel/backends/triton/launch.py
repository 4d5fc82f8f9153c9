"""Launches of the Triton kernels: which specialisation, how many programs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
import triton
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.step import step_kernel

SMALL_TILE, LARGE_TILE = 1024, 4096  # elements of a program: 8 or 32 a thread
LARGEST_GRID = 65535  # samples in one launch

_STEP, _NOISE, _COMPONENTS = map(Program, (step_kernel, standard_normal_kernel, draw_components_kernel))

# Interpreted kernels run on CPU tensors, for tests; inline PTX is for NVIDIA's compiler.
INTERPRETED = _STEP.interpreted
PTX = not INTERPRETED and torch.version.hip is None

ABSENT = (None,) * 4  # predictions stored


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
    if not INTERPRETED and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch_grid(program, tiles, batch, tensors, numbers, constants, device)
    for first in range(0, batch, LARGEST_GRID):
        samples = min(LARGEST_GRID, batch - first)
        program.launch((tiles, samples), device, tensors, (*numbers, first), constants)


@cache
def _multiprocessors(device: int) -> int:
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def tile_for(batch: int, elements: int, device: int) -> int:
    """Return the elements of a program: many where tiles are full and each multiprocessor still has enough of them."""
    tiles = batch * (elements // LARGE_TILE)
    large = elements % LARGE_TILE == 0 and tiles >= 8 * _multiprocessors(device)
    return LARGE_TILE if large else SMALL_TILE


def is_whole(elements: int, tile: int, tensors: Iterable[Tensor | None], strides: Iterable[int]) -> bool:
    """Return whether tiles are full and every sample of the tensors begins at a multiple of 16 bytes."""
    if elements == 0 or elements % tile != 0:
        return False
    for tensor, stride in zip(tensors, strides, strict=True):
        if tensor is not None and (tensor.data_ptr() | stride * tensor.itemsize) % 16 != 0:
            return False
    return True


def most(components: int) -> int:
    """Return how many thresholds are read at once: few specialisations for all numbers of components."""
    return 64 if components <= 65 else 1024


def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction and the components drawn; see `Backend`."""
    sample, output, coefficients, seeds, row, step, uncond, history, thresholds, offsets, std = inputs
    target = by_sample(result)
    batch = target.shape[0]
    elements = target.numel() // batch if batch else 0
    if elements == 0 and components is None:
        return
    read = [None if tensor is None else by_sample(tensor) for tensor in (sample, output, uncond, *history)]
    samples = (*read, *ABSENT[len(history) :], target, prediction)
    strides = [0 if tensor is None else tensor.stride()[0] for tensor in samples]
    # With more tensors, a large tile's elements do not fit into registers.
    plain = uncond is None and not history and prediction is None and target.dtype is not torch.float64
    device = target.get_device()
    tile = tile_for(batch, elements, device) if plain else SMALL_TILE
    whole = is_whole(elements, tile, samples, strides)
    rows, *row_numbers = sample_index(row)
    steps, *step_numbers = sample_index(step)
    if thresholds is None or offsets is None or std is None:
        sizes, k = (1, 1, 1, 1, 0, 1), 1
    else:
        offset_rows, k, _ = offsets.shape
        std_rows, std_components, std_elements = std.shape
        sizes = (thresholds.shape[0], offset_rows, std_rows, std_components, std_elements, k)
        whole = whole and (offsets.data_ptr() | std.data_ptr()) % 16 == 0 and std_elements % 4 == 0
    launch_grid(
        _STEP,
        max(1, tiles_of(elements, tile)),
        batch,
        (*samples, components, coefficients, rows, steps, seeds, thresholds, offsets, std),
        (*strides, coefficients.shape[0], *row_numbers, *step_numbers, *sizes, elements),
        (tile, int(prediction_kind) if prediction is not None else 0, most(k), whole, PTX),
        device,
    )
    if target is not result:
        result.copy_(target)


def standard_normal(result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    target = by_sample(result)
    batch = target.shape[0]
    elements = target.numel() // batch if batch else 0
    if elements == 0:
        return
    device = target.get_device()
    tile = tile_for(batch, elements, device)
    stride = target.stride()[0]
    steps, *step_numbers = sample_index(step)
    launch_grid(
        _NOISE,
        tiles_of(elements, tile),
        batch,
        (target, seeds, steps),
        (stride, *step_numbers, elements),
        (int(stream), tile, is_whole(elements, tile, [target], [stride]), PTX),
        device,
    )
    if target is not result:
        result.copy_(target)


def draw_components(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    k = thresholds.shape[1] + 1
    rows, *row_numbers = sample_index(row)
    steps, *step_numbers = sample_index(step)
    launch_grid(
        _COMPONENTS,
        1,
        result.shape[0],
        (result, seeds, rows, steps, thresholds),
        (*row_numbers, *step_numbers, thresholds.shape[0], k),
        (most(k),),
        result.get_device(),
    )


def why_unusable() -> str | None:
    """Return why no tensor can be given to this backend here, or None."""
    return None if torch.cuda.is_available() else "this PyTorch finds no CUDA device"


def describe() -> str:
    """Return one line on what the kernels run on here."""
    names = ", ".join(torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count()))
    return f"Triton {triton.__version__}; devices: {names}"
