"""Launches of the Triton kernels for training."""

from __future__ import annotations

from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import NoiseInputs, TrainingGradients, TrainingInputs
from gmmkernel.backends.triton.grid import PTX, launch_grid, sample_index, tiles_of
from gmmkernel.backends.triton.launch import SMALL_TILE, is_whole, tile_for
from gmmkernel.backends.triton.launch_sums import levels, sum_levels
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.training import (
    add_noise_kernel,
    finish_loss_kernel,
    scale_residual_kernel,
    skip_loss_backward_kernel,
    skip_loss_kernel,
)

_ADD_NOISE, _SKIP_LOSS, _FINISH_LOSS, _SCALE_RESIDUAL, _SKIP_LOSS_BACKWARD = map(
    Program,
    (
        add_noise_kernel,
        skip_loss_kernel,
        finish_loss_kernel,
        scale_residual_kernel,
        skip_loss_backward_kernel,
    ),
)


def add_noise(inputs: NoiseInputs, result: Tensor, noise: Tensor | None = None) -> None:
    """Write the training sample x_t of the data x0, and on request the noise in it; see `Backend`."""
    sample, coefficients, seeds, row, step = inputs
    if result.numel() == 0:
        return
    target, source = by_sample(result), by_sample(sample)
    batch, elements, device = len(target), target[0].numel(), target.get_device()
    strides = source.stride()[0], target.stride()[0]
    plain = noise is None and target.itemsize < 8
    tile = tile_for(batch, elements, device) if plain else SMALL_TILE
    whole = is_whole(elements, tile, (source, target, noise), (*strides, elements))
    rows, *row_numbers = sample_index(row)
    steps, *step_numbers = sample_index(step)
    launch_grid(
        _ADD_NOISE,
        tiles_of(elements, tile),
        batch,
        (source, target, noise, coefficients, rows, steps, seeds),
        (*strides, coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (tile, whole, PTX),
        device,
    )
    if target is not result:
        result.copy_(target)


def _read(inputs: TrainingInputs) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
    """Return the model's output and x_t, samples of each contiguous, and their strides."""
    output = by_sample(inputs.model_output)
    sample = None if inputs.sample is None else by_sample(inputs.sample)
    return output, sample, (output.stride()[0], 0 if sample is None else sample.stride()[0])


def skip_step_loss(inputs: TrainingInputs, result: Tensor, residual: Tensor | None = None) -> None:
    """Write the loss of each sample, [B], and on request the weighted residual of its elements; see `Backend`."""
    output, sample, strides = _read(inputs)
    batch, device = len(output), output.get_device()
    elements = output.numel() // max(batch, 1)
    tiles = max(1, tiles_of(elements, SUM_TILE))
    sums = result.new_empty(batch, sum(levels(tiles)), 1)
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    whole = is_whole(elements, SUM_TILE, (output, sample, residual), (*strides, elements))
    launch_grid(
        _SKIP_LOSS,
        tiles,
        batch,
        (output, sample, sums, residual, inputs.coefficients, rows, steps, inputs.seeds),
        (
            *strides,
            sums.shape[1],
            inputs.coefficients.shape[0],
            *row_numbers,
            *step_numbers,
            elements,
        ),
        (whole, PTX),
        device,
    )
    sum_levels(sums, tiles)
    launch_grid(_FINISH_LOSS, 1, batch, (result, sums), (sums.shape[1], elements), (), device)


def scale_residual(
    residual: Tensor, coefficients: Tensor, row: int | Tensor, step: int | Tensor, grad: Tensor
) -> None:
    """Make the gradient of the model's output of a loss's weighted residual, in place; see `Backend`."""
    if residual.numel() == 0:
        return
    elements = residual[0].numel()
    rows, *row_numbers = sample_index(row)
    steps, *step_numbers = sample_index(step)
    launch_grid(
        _SCALE_RESIDUAL,
        tiles_of(elements, SMALL_TILE),
        len(residual),
        (residual, grad, coefficients, rows, steps),
        (coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (SMALL_TILE, is_whole(elements, SMALL_TILE, [residual], [elements]), PTX),
        residual.get_device(),
    )


def skip_step_loss_backward(inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients) -> None:
    """Write gradients of a loss, given its gradients [B] of the samples' losses; see `Backend`."""
    output, sample, strides = _read(inputs)
    if output.numel() == 0 or gradients == TrainingGradients():
        return
    batch, elements = len(output), output[0].numel()
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    tensors = (output, sample, *gradients)
    whole = is_whole(elements, SMALL_TILE, tensors, (*strides, elements, elements))
    launch_grid(
        _SKIP_LOSS_BACKWARD,
        tiles_of(elements, SMALL_TILE),
        batch,
        (output, sample, grad, *gradients, inputs.coefficients, rows, steps, inputs.seeds),
        (*strides, inputs.coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (SMALL_TILE, whole, PTX),
        output.get_device(),
    )
