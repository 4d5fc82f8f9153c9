"""Launches of the Triton kernels: which specialisation, how many programs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.backends.triton.grid import (
    PTX,
    launch_grid,
    most,
    sample_index,
    tiles_of,
)
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.step import step_kernel

SMALL_TILE, LARGE_TILE = 1024, 4096  # elements of a program: 8 or 32 a thread

_STEP, _NOISE, _COMPONENTS = map(Program, (step_kernel, standard_normal_kernel, draw_components_kernel))

ABSENT = (None,) * 4  # predictions stored


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


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


def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction and the components drawn; see `Backend`."""
    sample, output, coefficients, seeds, row, step, uncond, history, cdf, offsets, std, *_ = inputs
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
    if cdf is None or offsets is None or std is None:
        sizes, k = (1, 1, 1, 1, 0, 1), 1
    else:
        offset_rows, k, _ = offsets.shape
        std_rows, std_components, std_elements = std.shape
        sizes = (cdf.shape[0], offset_rows, std_rows, std_components, std_elements, k)
        whole = whole and (offsets.data_ptr() | std.data_ptr()) % 16 == 0 and std_elements % 4 == 0
    launch_grid(
        _STEP,
        max(1, tiles_of(elements, tile)),
        batch,
        (*samples, components, coefficients, rows, steps, seeds, cdf, offsets, std),
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
    result: Tensor, seeds: Tensor, cdf: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    k = cdf.shape[1] + 1
    rows, *row_numbers = sample_index(row)
    steps, *step_numbers = sample_index(step)
    launch_grid(
        _COMPONENTS,
        1,
        result.shape[0],
        (result, seeds, rows, steps, cdf),
        (*row_numbers, *step_numbers, cdf.shape[0], k),
        (most(k),),
        result.get_device(),
    )
