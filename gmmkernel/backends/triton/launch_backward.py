"""Launches of the Triton kernels for the gradients of the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import StepGradients, StepInputs
from gmmkernel.backends.triton.backward import step_backward_kernel
from gmmkernel.backends.triton.coefficient_sums import coefficient_sums_kernel
from gmmkernel.backends.triton.grid import PTX, launch_grid, most, sample_index, tiles_of
from gmmkernel.backends.triton.launch import ABSENT, SMALL_TILE, is_whole
from gmmkernel.backends.triton.launch_sums import levels, sum_levels
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.tables import ENTRIES, add_entries_kernel, add_rows_kernel, entries_kernel

_STEP_BACKWARD, _ENTRIES, _COEFFICIENT_SUMS, _ADD_ROWS, _ADD_ENTRIES = map(
    Program,
    (
        step_backward_kernel,
        entries_kernel,
        coefficient_sums_kernel,
        add_rows_kernel,
        add_entries_kernel,
    ),
)


def gmm_step_backward(
    inputs: StepInputs,
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    gradients: StepGradients,
) -> None:
    """Write gradients of a loss, given its gradients of the next sample and of the prediction; see `Backend`."""
    tables = [gradients.coefficients, gradients.offsets, gradients.std]
    if inputs.sample.numel() == 0:
        for table in tables:
            if table is not None:
                table.zero_()
        return
    read = [inputs.sample, inputs.model_output, inputs.model_output_uncond, grad, grad_prediction]
    samples = [None if tensor is None else by_sample(tensor) for tensor in read]
    kind = int(prediction_kind) if grad_prediction is not None else 0
    gradients_of_samples(inputs, samples, kind, gradients)
    if any(table is not None for table in tables):
        _of_tables(inputs, samples, kind, gradients)


def _strides(samples: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.stride()[0] for tensor in samples]


def gradients_of_samples(
    inputs: StepInputs,
    samples: Sequence[Tensor | None],
    kind: int,
    gradients: StepGradients,
    of_density: Tensor | None = None,
) -> None:
    """Write the elementwise gradients: 0 where `of_density` [B], a loss's of log-densities, is."""
    history = (*gradients.history, *ABSENT[len(gradients.history) :])
    targets = (gradients.sample, gradients.model_output, gradients.model_output_uncond, *history)
    if not any(target is not None for target in targets):
        return
    batch, elements = len(inputs.sample), inputs.sample[0].numel()
    strides = _strides(samples)
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    whole = is_whole(elements, SMALL_TILE, (*samples, *targets), (*strides, *(elements,) * len(targets)))
    launch_grid(
        _STEP_BACKWARD,
        tiles_of(elements, SMALL_TILE),
        batch,
        (*samples, *targets, inputs.coefficients, rows, steps, of_density),
        (*strides, inputs.coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (SMALL_TILE, kind, whole, PTX),
        inputs.sample.get_device(),
    )


def _of_tables(
    inputs: StepInputs, samples: Sequence[Tensor | None], kind: int, gradients: StepGradients
) -> None:
    """Add up the gradients of tables, entry by entry, from what each sample used of them."""
    entries = entries_of(inputs)
    if gradients.coefficients is not None:
        sums = new_sums(inputs)
        add_coefficients(inputs, samples, kind, entries, inputs.seeds, sums, gradients.coefficients)
    grad = samples[3]
    for table in (gradients.offsets, gradients.std):
        if table is not None and grad is not None and table.numel() > 0:
            _add_entries(inputs, grad, entries, table, is_std=table is gradients.std)


def entries_of(inputs: StepInputs, of_density: Tensor | None = None) -> Tensor:
    """Return which entries of the tables each sample used: none where `of_density` [B] is 0."""
    entries = inputs.coefficients.new_empty(len(inputs.sample), ENTRIES.value, dtype=torch.int64)
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    if inputs.cdf is None or inputs.offsets is None or inputs.std is None:
        sizes, k = (1, 1, 1, 1, 1), 1
    else:
        k = inputs.offsets.shape[1]
        sizes = (inputs.cdf.shape[0], inputs.offsets.shape[0], *inputs.std.shape[:2], k)
    launch_grid(
        _ENTRIES,
        1,
        len(entries),
        (entries, rows, steps, inputs.seeds, inputs.cdf, of_density),
        (*row_numbers, *step_numbers, inputs.coefficients.shape[0], *sizes),
        (most(k),),
        entries.get_device(),
    )
    return entries


def new_sums(inputs: StepInputs) -> Tensor:
    """Return room for each sample's sums: [B, places, 16], those of tiles, of every level above them, and of all."""
    tiles = tiles_of(inputs.sample[0].numel(), SUM_TILE)
    return inputs.coefficients.new_empty(len(inputs.sample), sum(levels(tiles)), inputs.coefficients.shape[1])


def add_coefficients(
    inputs: StepInputs,
    samples: Sequence[Tensor | None],
    kind: int,
    entries: Tensor,
    seeds: Tensor | None,
    sums: Tensor,
    table: Tensor,
) -> None:
    """Write the gradients of coefficients. Without `seeds`, the tiles' sums of SIGMA and OFFSET are in `sums`."""
    batch, places, _ = sums.shape
    elements = inputs.sample[0].numel()
    tiles = tiles_of(elements, SUM_TILE)
    history = (*map(by_sample, inputs.history), *ABSENT[len(inputs.history) :])
    tensors = (*samples[:3], *history, *samples[3:])
    steps, *step_numbers = sample_index(inputs.step)
    device = sums.get_device()
    launch_grid(
        _COEFFICIENT_SUMS,
        tiles,
        batch,
        (*tensors, sums, inputs.coefficients, entries, steps, seeds, inputs.offsets),
        (
            *_strides(tensors),
            places,
            *step_numbers,
            0 if inputs.std is None else inputs.std.shape[2],
            elements,
        ),
        (kind, PTX),
        device,
    )
    sum_levels(sums, tiles)
    launch_grid(_ADD_ROWS, 1, table.shape[0], (table, sums, entries), (places, batch), (), device)


def _add_entries(inputs: StepInputs, grad: Tensor, entries: Tensor, table: Tensor, *, is_std: bool) -> None:
    """Add up the gradients of offsets, or of std."""
    elements = table.shape[2]
    stride = grad.stride()[0]
    steps, *step_numbers = sample_index(inputs.step)
    launch_grid(
        _ADD_ENTRIES,
        tiles_of(elements, SMALL_TILE),
        table.shape[0] * table.shape[1],
        (table, grad, inputs.coefficients, entries, steps, inputs.seeds),
        (stride, *step_numbers, len(grad), elements),
        (is_std, SMALL_TILE, is_whole(elements, SMALL_TILE, [table, grad], [elements, stride]), PTX),
        table.get_device(),
    )
