"""Launches of the Triton kernels: which specialisation, how many programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel
from gmmkernel.backends.triton.step import step_kernel

SMALL_TILE, LARGE_TILE = 1024, 4096  # elements of a program: 8 or 32 a thread
WARPS = 4
LARGEST_GRID = 65535  # samples in one launch

# Interpreted kernels run on CPU tensors, for tests; inline PTX is for NVIDIA's compiler.
INTERPRETED = not isinstance(step_kernel, triton.runtime.JITFunction)
PTX = not INTERPRETED and torch.version.hip is None


def _options() -> dict[str, Any]:
    """Return what every launch passes: no multiplication and addition may be fused unasked."""
    return {} if INTERPRETED else {"num_warps": WARPS, "enable_fp_fusion": False}


def _width(dtype: torch.dtype) -> int:
    """Return how many elements 16 bytes hold, 4 at least."""
    return 8 if dtype.itemsize == 2 else 4


def _index(index: int | Tensor, like: Tensor) -> tuple[Tensor, int, int]:
    """Return an index as the tensor (or any other), its stride and its value."""
    if isinstance(index, Tensor):
        return index, 0 if index.numel() == 1 else 1, 0
    return like, 0, index


def _chunks(batch: int, like: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (first sample, samples) of launches that a grid can hold, with the tensor's device current."""
    # Triton launches on the current device, which is nearly always the tensor's: asking is cheaper than setting it.
    elsewhere = not INTERPRETED and like.get_device() != torch.cuda.current_device()
    with torch.cuda.device(like.get_device()) if elsewhere else nullcontext():
        for first in range(0, batch, LARGEST_GRID):
            yield first, min(LARGEST_GRID, batch - first)


@cache
def _multiprocessors(device: int) -> int:
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def _tile(batch: int, elements: int, like: Tensor) -> int:
    """Return the elements of a program: many where tiles are full and each multiprocessor still has enough of them."""
    tiles = batch * (elements // LARGE_TILE)
    large = elements % LARGE_TILE == 0 and tiles >= 8 * _multiprocessors(like.get_device())
    return LARGE_TILE if large else SMALL_TILE


def _is_whole(elements: int, tile: int, *tensors: Tensor) -> bool:
    """Return whether tiles are full and every sample of the tensors begins at a multiple of 16 bytes."""
    if elements == 0 or elements % tile != 0:
        return False
    return all(
        tensor.data_ptr() % 16 == 0 and tensor.stride(0) * tensor.element_size() % 16 == 0
        for tensor in tensors
    )


def _most(components: int) -> int:
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
    sample, model_output, target = by_sample(inputs.sample), by_sample(inputs.model_output), by_sample(result)
    uncond = sample if inputs.model_output_uncond is None else by_sample(inputs.model_output_uncond)
    history = [by_sample(stored) for stored in inputs.history]
    stored = [*history, *[sample] * (4 - len(history))]
    made = target if prediction is None else prediction
    drawn = inputs.seeds if components is None else components
    batch = sample.shape[0]
    elements = sample.numel() // batch if batch else 0
    if elements == 0 and components is None:
        return
    double = sample.dtype == torch.float64
    mixture = inputs.offsets is not None and inputs.thresholds is not None and inputs.std is not None
    none = inputs.coefficients
    thresholds = inputs.thresholds if inputs.thresholds is not None else inputs.seeds
    offsets = inputs.offsets if inputs.offsets is not None else none
    std = inputs.std if inputs.std is not None else none
    std_sizes = inputs.std.shape if inputs.std is not None else (1, 1, 0)
    k = inputs.offsets.shape[1] if inputs.offsets is not None else 1
    # With more tensors, a large tile's elements do not fit into registers.
    few_tensors = not (history or inputs.model_output_uncond is not None or prediction is not None or double)
    tile = _tile(batch, elements, sample) if few_tensors else SMALL_TILE
    whole = _is_whole(elements, tile, sample, model_output, uncond, *stored, target, made)
    if mixture:
        whole = whole and offsets.data_ptr() % 16 == 0 and std.data_ptr() % 16 == 0 and std_sizes[2] % 4 == 0
    for first, samples in _chunks(batch, sample):
        step_kernel[max(1, triton.cdiv(elements, tile)), samples](
            sample, sample.stride(0),
            model_output, model_output.stride(0),
            uncond, uncond.stride(0),
            *(part for tensor in stored for part in (tensor, tensor.stride(0))),
            target, target.stride(0),
            made, made.stride(0),
            drawn,
            inputs.coefficients,
            inputs.coefficients.shape[0],
            *_index(inputs.row, inputs.seeds),
            *_index(inputs.step, inputs.seeds),
            inputs.seeds,
            thresholds, thresholds.shape[0],
            offsets, offsets.shape[0],
            std, *std_sizes,
            k,
            elements,
            first,
            T=tl.float64 if double else tl.float32,
            TILE=tile,
            WIDTH=_width(sample.dtype),
            ROWS=isinstance(inputs.row, Tensor), STEPS=isinstance(inputs.step, Tensor),
            UNCOND=inputs.model_output_uncond is not None,
            HISTORY=len(history),
            PREDICTION=int(prediction_kind) if prediction is not None else 0,
            COMPONENTS=components is not None,
            MIXTURE=mixture,
            MOST=_most(k),
            WHOLE=whole,
            PTX=PTX,
            **_options(),
        )  # fmt: skip
    if target is not result:
        result.copy_(target)


def standard_normal(result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    target = by_sample(result)
    batch = target.shape[0]
    elements = target.numel() // batch if batch else 0
    if elements == 0:
        return
    tile = _tile(batch, elements, target)
    whole = _is_whole(elements, tile, target)
    for first, samples in _chunks(batch, target):
        standard_normal_kernel[triton.cdiv(elements, tile), samples](
            target, target.stride(0),
            seeds,
            *_index(step, seeds),
            elements,
            first,
            STREAM=int(stream),
            TILE=tile,
            WIDTH=_width(target.dtype),
            STEPS=isinstance(step, Tensor),
            WHOLE=whole,
            PTX=PTX,
            **_options(),
        )  # fmt: skip
    if target is not result:
        result.copy_(target)


def draw_components(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    for first, samples in _chunks(result.shape[0], result):
        draw_components_kernel[(samples,)](
            result,
            seeds,
            *_index(row, seeds),
            *_index(step, seeds),
            thresholds, thresholds.shape[0],
            thresholds.shape[1] + 1,
            first,
            ROWS=isinstance(row, Tensor),
            STEPS=isinstance(step, Tensor),
            MOST=_most(thresholds.shape[1] + 1),
            **_options(),
        )  # fmt: skip


def why_unusable() -> str | None:
    """Return why no tensor can be given to this backend here, or None."""
    return None if torch.cuda.is_available() else "this PyTorch finds no CUDA device"


def describe() -> str:
    """Return one line on what the kernels run on here."""
    names = ", ".join(torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count()))
    return f"Triton {triton.__version__}; devices: {names}"
