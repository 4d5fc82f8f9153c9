"""Launches of the Triton kernels of log-densities and log-ratios, and of their gradients.

What each function does says `gmmkernel.backends.protocol.Backend`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import (
    LogProbGradients,
    LogProbInputs,
    LogRatioGradients,
    LogRatioInputs,
    StepInputs,
)
from gmmkernel.backends.triton.density import density_sums_kernel
from gmmkernel.backends.triton.density_backward import (
    add_density_entries_kernel,
    add_weights_kernel,
    density_backward_kernel,
)
from gmmkernel.backends.triton.grid import PTX, launch_grid, sample_index, tiles_of
from gmmkernel.backends.triton.launch import (
    LOG_PROB,
    add_coefficients,
    by_samples,
    entries_of,
    levels,
    new_sums,
    step_gradients,
    stored,
    sum_levels,
)
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.ratio import ratio_backward_kernel, ratio_sums_kernel

_DENSITY_SUMS, _DENSITY_BACKWARD = map(Program, (density_sums_kernel, density_backward_kernel))
_ADD_DENSITY_ENTRIES, _ADD_WEIGHTS = map(Program, (add_density_entries_kernel, add_weights_kernel))
_RATIO_SUMS, _RATIO_BACKWARD = map(Program, (ratio_sums_kernel, ratio_backward_kernel))


def _samples(inputs: LogProbInputs) -> list[Tensor | None]:
    read = (inputs.sample, inputs.model_output, inputs.model_output_uncond)
    return by_samples((*read, *stored(inputs.history), inputs.prev_sample))


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
    numbers = (inputs.coefficients.shape[0], *row_numbers)
    launch_grid(
        _DENSITY_SUMS,
        tiles,
        batch,
        _samples(inputs),
        (sums, inputs.coefficients, rows, inputs.offsets, inputs.std),
        (sums.shape[1], *numbers, *_sizes(inputs), k, k + 1, elements),
        (PTX,),
    )
    if result.dim() == 2:
        torch.neg(sums[:, :tiles, 0], out=result)
        return
    sum_levels(sums, tiles)
    launch_grid(
        LOG_PROB,
        1,
        batch,
        (),
        (result, responsibilities, sums, weights, energies, penalties, rows),
        (sums.shape[1], *numbers, 1 if weights is None else weights.shape[0], k, k + 1, elements),
    )


def log_prob_backward(
    inputs: LogProbInputs,
    responsibilities: Tensor | None,
    grad: Tensor,
    gradients: LogProbGradients,
) -> None:
    """Write gradients of a loss, given its gradients [B] of the log-densities; see `Backend`."""
    of_step, weights = gradients.step, inputs.weights
    batch = len(inputs.sample)
    rows, *row_numbers = sample_index(inputs.row)
    numbers = (inputs.coefficients.shape[0], *row_numbers)
    k = 0 if weights is None else weights.shape[1]
    if gradients.weights is not None and weights is not None:
        launch_grid(
            _ADD_WEIGHTS,
            1,
            weights.shape[0],
            (),
            (gradients.weights, responsibilities, grad, weights, rows),
            (*numbers, weights.shape[0], k, batch),
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
        model_output_uncond=inputs.model_output_uncond,
        history=inputs.history,
        offsets=inputs.offsets,
        std=inputs.std,
    )
    sums = None if of_step.coefficients is None else new_sums(step)
    launch_grid(
        _DENSITY_BACKWARD,
        tiles_of(elements, SUM_TILE),
        batch,
        samples,
        (
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
        (0 if sums is None else sums.shape[1], *numbers, *_sizes(inputs), k, grad.numel() // batch, elements),
        (PTX,),
    )
    back = (*samples[:3], flow, None)
    step_gradients(step, back, 0, of_step, grad)
    if sums is not None and of_step.coefficients is not None:
        # A sample, or a tile, whose gradient is 0 has no part in them.
        by_sample, by_tile = (grad, None) if grad.dim() == 1 else (None, grad)
        entries = entries_of(step, by_sample)
        add_coefficients(step, back, 0, entries, None, sums, of_step.coefficients, by_tile)
    for table in (of_step.offsets, of_step.std):
        if table is not None and table.numel() > 0:
            launch_grid(
                _ADD_DENSITY_ENTRIES,
                tiles_of(table.shape[2], SUM_TILE),
                table.shape[0] * table.shape[1],
                (),
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
            )


# ---- log-ratios ----


def _ratio_samples(inputs: LogRatioInputs) -> list[Tensor | None]:
    read = (inputs.sample, inputs.model_output, inputs.model_output_uncond, *stored(inputs.history))
    return by_samples((*read, inputs.prev_sample, inputs.old_model_output, inputs.old_model_output_uncond))


def log_ratio(inputs: LogRatioInputs, result: Tensor) -> None:
    """Write the log-ratio and the divergence of each sample, or those of its tiles; see `Backend`."""
    batch, elements = len(inputs.sample), inputs.sample.numel() // max(len(inputs.sample), 1)
    tiles = max(1, tiles_of(elements, SUM_TILE))
    rows, *row_numbers = sample_index(inputs.row)
    sums = result.new_empty(batch, sum(levels(tiles)), 2)
    numbers = (sums.shape[1], inputs.coefficients.shape[0], *row_numbers, elements)
    tensors = (sums, inputs.coefficients, rows)
    launch_grid(_RATIO_SUMS, tiles, batch, _ratio_samples(inputs), tensors, numbers, (PTX,))
    if result.dim() == 3:
        result.copy_(sums[:, :tiles])
        return
    sum_levels(sums, tiles)
    result.copy_(sums[:, -1])


def log_ratio_backward(inputs: LogRatioInputs, grad: Tensor, gradients: LogRatioGradients) -> None:
    """Write gradients of a loss, given its gradients [B, 2] of log-ratios and divergences; see `Backend`."""
    if inputs.sample.numel() == 0:
        return
    batch, elements = len(inputs.sample), inputs.sample[0].numel()
    rows, *row_numbers = sample_index(inputs.row)
    *elementwise, history = gradients
    launch_grid(
        _RATIO_BACKWARD,
        tiles_of(elements, SUM_TILE),
        batch,
        _ratio_samples(inputs),
        (*elementwise, *stored(history), grad, inputs.coefficients, rows),
        (inputs.coefficients.shape[0], *row_numbers, grad.numel() // (2 * batch), elements),
        (PTX,),
    )
