"""Launches of the Triton kernels for log-densities."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import LogProbGradients, LogProbInputs, StepInputs
from gmmkernel.backends.triton.density import density_sums_kernel, log_prob_kernel
from gmmkernel.backends.triton.density_backward import (
    add_density_entries_kernel,
    add_weights_kernel,
    density_backward_kernel,
)
from gmmkernel.backends.triton.grid import PTX, launch_grid, sample_index, tiles_of
from gmmkernel.backends.triton.launch import ABSENT
from gmmkernel.backends.triton.launch_backward import (
    add_coefficients,
    entries_of,
    gradients_of_samples,
    new_sums,
)
from gmmkernel.backends.triton.launch_sums import levels, sum_levels
from gmmkernel.backends.triton.program import Program

_DENSITY_SUMS, _LOG_PROB, _DENSITY_BACKWARD, _ADD_DENSITY_ENTRIES, _ADD_WEIGHTS = map(
    Program,
    (
        density_sums_kernel,
        log_prob_kernel,
        density_backward_kernel,
        add_density_entries_kernel,
        add_weights_kernel,
    ),
)


def _samples(inputs: LogProbInputs) -> list[Tensor | None]:
    read = (inputs.sample, inputs.model_output, inputs.model_output_uncond, *inputs.history)
    read = (*read, *ABSENT[len(inputs.history) :], inputs.prev_sample)
    return [None if tensor is None else by_sample(tensor) for tensor in read]


def _sizes(inputs: LogProbInputs) -> tuple[int, ...]:
    """Return rows of the offsets, and rows, components and elements of the std."""
    if inputs.offsets is None or inputs.std is None:
        return 1, 1, 1, 0
    return inputs.offsets.shape[0], *inputs.std.shape


def log_prob(
    inputs: LogProbInputs,
    result: Tensor,
    responsibilities: Tensor | None = None,
    energies: Tensor | None = None,
    penalties: Tensor | None = None,
) -> None:
    """Write the log-density of each sample, [B], and each component's share of it, [B, K]; see `Backend`."""
    batch, weights = len(inputs.sample), inputs.weights
    elements = inputs.sample.numel() // max(batch, 1)
    tiles = max(1, tiles_of(elements, SUM_TILE))
    rows, *row_numbers = sample_index(inputs.row)
    k = 0 if weights is None else weights.shape[1]
    sums = inputs.coefficients.new_empty(batch, sum(levels(tiles)), k + 1)
    samples = _samples(inputs)
    numbers = (inputs.coefficients.shape[0], *row_numbers)
    device = result.get_device()
    launch_grid(
        _DENSITY_SUMS,
        tiles,
        batch,
        (*samples, sums, inputs.coefficients, rows, inputs.offsets, inputs.std),
        (
            *(0 if tensor is None else tensor.stride()[0] for tensor in samples),
            sums.shape[1],
            *numbers,
            *_sizes(inputs),
            k,
            k + 1,
            elements,
        ),
        (PTX,),
        device,
    )
    sum_levels(sums, tiles)
    launch_grid(
        _LOG_PROB,
        1,
        batch,
        (result, responsibilities, sums, weights, energies, penalties, rows),
        (sums.shape[1], *numbers, 1 if weights is None else weights.shape[0], k, k + 1, elements),
        (),
        device,
    )


def log_prob_backward(
    inputs: LogProbInputs,
    responsibilities: Tensor | None,
    grad: Tensor,
    gradients: LogProbGradients,
) -> None:
    """Write gradients of a loss, given its gradients [B] of the log-densities; see `Backend`."""
    of_step, weights = gradients.step, inputs.weights
    batch, device = len(inputs.sample), inputs.sample.get_device()
    rows, *row_numbers = sample_index(inputs.row)
    numbers = (inputs.coefficients.shape[0], *row_numbers)
    k = 0 if weights is None else weights.shape[1]
    if gradients.weights is not None and weights is not None:
        launch_grid(
            _ADD_WEIGHTS,
            1,
            weights.shape[0],
            (gradients.weights, responsibilities, grad, weights, rows),
            (*numbers, weights.shape[0], k, batch),
            (),
            device,
        )
    if inputs.sample.numel() == 0:
        for table in (of_step.coefficients, of_step.offsets, of_step.std):
            if table is not None:
                table.zero_()
        return
    elements = inputs.sample[0].numel()
    samples = _samples(inputs)
    distance, flow = inputs.coefficients.new_empty(2, batch, elements)
    # What draws is not looked at.
    seeds = inputs.coefficients.new_empty(0, dtype=torch.int64)
    step = StepInputs(
        *inputs[:3],
        seeds,
        inputs.row,
        0,
        inputs.model_output_uncond,
        inputs.history,
        None,
        inputs.offsets,
        inputs.std,
    )
    sums = None if of_step.coefficients is None else new_sums(step)
    launch_grid(
        _DENSITY_BACKWARD,
        tiles_of(elements, SUM_TILE),
        batch,
        (
            *samples,
            distance,
            flow,
            gradients.prev_sample,
            sums,
            responsibilities,
            grad,
            inputs.coefficients,
            rows,
            inputs.offsets,
            inputs.std,
        ),
        (
            *(0 if tensor is None else tensor.stride()[0] for tensor in samples),
            0 if sums is None else sums.shape[1],
            *numbers,
            *_sizes(inputs),
            k,
            elements,
        ),
        (PTX,),
        device,
    )
    back = (*samples[:3], flow, None)
    gradients_of_samples(step, back, 0, of_step, grad)
    if sums is not None and of_step.coefficients is not None:
        add_coefficients(step, back, 0, entries_of(step, grad), None, sums, of_step.coefficients)
    for table in (of_step.offsets, of_step.std):
        if table is not None and table.numel() > 0:
            launch_grid(
                _ADD_DENSITY_ENTRIES,
                tiles_of(table.shape[2], SUM_TILE),
                table.shape[0] * table.shape[1],
                (
                    table,
                    distance,
                    responsibilities,
                    grad,
                    inputs.coefficients,
                    rows,
                    inputs.offsets,
                    inputs.std,
                ),
                (*numbers, *_sizes(inputs), k, *table.shape, batch, elements),
                (table is of_step.std, PTX),
                device,
            )
