"""Launches of the Triton kernels: which specialisation, how many programs.

What each function does says `gmmkernel.backends.protocol.Backend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import MAX_HISTORY, SUM_TILE, Prediction
from gmmkernel.backends.protocol import (
    NoiseInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)
from gmmkernel.backends.triton.backward import step_backward_kernel
from gmmkernel.backends.triton.coefficient_sums import coefficient_sums_kernel
from gmmkernel.backends.triton.density import log_prob_kernel
from gmmkernel.backends.triton.grid import PTX, launch_grid, most, sample_index, tiles_of
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel
from gmmkernel.backends.triton.program import Program
from gmmkernel.backends.triton.project import project_kernel
from gmmkernel.backends.triton.step import step_kernel
from gmmkernel.backends.triton.sums import sum_level_kernel
from gmmkernel.backends.triton.tables import ENTRIES, add_entries_kernel, add_rows_kernel, entries_kernel
from gmmkernel.backends.triton.training import (
    add_noise_kernel,
    finish_loss_kernel,
    scale_residual_kernel,
    skip_loss_backward_kernel,
    skip_loss_kernel,
)

SMALL_TILE, LARGE_TILE = 1024, 4096  # elements of a program: 8 or 32 a thread

_STEP, _NOISE, _COMPONENTS = map(Program, (step_kernel, standard_normal_kernel, draw_components_kernel))
_SUM_LEVEL, _PROJECT = map(Program, (sum_level_kernel, project_kernel))
_STEP_BACKWARD, _COEFFICIENT_SUMS = map(Program, (step_backward_kernel, coefficient_sums_kernel))
_ENTRIES, _ADD_ROWS, _ADD_ENTRIES = map(Program, (entries_kernel, add_rows_kernel, add_entries_kernel))
LOG_PROB = Program(log_prob_kernel)
_ADD_NOISE, _SKIP_LOSS, _FINISH_LOSS = map(Program, (add_noise_kernel, skip_loss_kernel, finish_loss_kernel))
_SCALE_RESIDUAL, _SKIP_LOSS_BACKWARD = map(Program, (scale_residual_kernel, skip_loss_backward_kernel))


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def is_whole(elements: int, tile: int, tensors: Sequence[Tensor | None]) -> bool:
    """Return whether tiles are full and every sample of the tensors begins at a multiple of 16 bytes."""
    if elements == 0 or elements % tile != 0:
        return False
    for tensor in tensors:
        if tensor is not None and (tensor.data_ptr() | tensor.stride()[0] * tensor.itemsize) % 16 != 0:
            return False
    return True


def tile_for(
    batch: int, elements: int, tensors: Sequence[Tensor | None], large: bool = True
) -> tuple[int, bool]:
    """Return the elements of a program, and whether tiles are `is_whole`.

    There are many where tiles are whole and each multiprocessor still has enough of them, if `large` allows that.
    """
    tiles = batch * (elements // LARGE_TILE) if large else 0
    if tiles > 0 and tensors[0] is not None and tiles >= 8 * _multiprocessors(tensors[0].get_device()):
        if is_whole(elements, LARGE_TILE, tensors):
            return LARGE_TILE, True
    return SMALL_TILE, is_whole(elements, SMALL_TILE, tensors)


def by_samples(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return tensors, or copies of them, such that each sample is contiguous."""
    return [None if tensor is None else by_sample(tensor) for tensor in tensors]


def stored(history: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return four tensors, the last of them absent where a history is shorter."""
    return (*history, *(None,) * (MAX_HISTORY - len(history)))


def _is_shard(first_element: int | Tensor) -> bool:
    return isinstance(first_element, Tensor) or first_element != 0


def _valid(index: int | Tensor, first_element: int | Tensor) -> int | Tensor:
    """Return an index such that it is out of range where the first element is, so that kernels look at one of them."""
    if not isinstance(first_element, Tensor):
        return index
    return torch.where(first_element >= 0, index, -1)


def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
    log_prob: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction, the components drawn and the log-density; see `Backend`."""
    output, coefficients, seeds, uncond, history = inputs[1], inputs.coefficients, inputs.seeds, *inputs[7:9]
    cdf, offsets, std = inputs.cdf, inputs.offsets, inputs.std
    target = by_sample(result)
    batch = target.shape[0]
    elements = target.numel() // batch if batch else 0
    if elements == 0 and components is None and log_prob is None:
        return
    samples = by_samples((inputs.sample, output, uncond, *stored(history), target, prediction))
    # A large tile's float64 does not fit into registers, and log-densities are summed by tiles of the small size.
    large = target.dtype is not torch.float64 and log_prob is None
    rows, *row_numbers = sample_index(_valid(inputs.row, inputs.first_element))
    steps, *step_numbers = sample_index(inputs.step)
    firsts, *first_numbers = sample_index(inputs.first_element)
    if cdf is None or offsets is None or std is None:
        sizes, k, tables_aligned = (1, 1, 1, 1, 0, 1), 1, True
    else:
        offset_rows, k, _ = offsets.shape
        std_rows, std_components, std_elements = std.shape
        sizes = (cdf.shape[0], offset_rows, std_rows, std_components, std_elements, k)
        tables_aligned = (offsets.data_ptr() | std.data_ptr()) % 16 == 0 and std_elements % 4 == 0
    tile, whole = tile_for(batch, elements, samples, large and tables_aligned)
    tiles = max(1, tiles_of(elements, tile))
    sums = None if log_prob is None else coefficients.new_empty(batch, sum(levels(tiles)), 1)
    launch_grid(
        _STEP,
        tiles,
        batch,
        samples,
        (components, sums, coefficients, rows, steps, firsts, seeds, cdf, offsets, std),
        (
            0 if sums is None else sums.shape[1],
            coefficients.shape[0],
            *row_numbers,
            *step_numbers,
            *first_numbers,
            *sizes,
            elements,
        ),
        (
            tile,
            _is_shard(inputs.first_element),
            int(prediction_kind) if prediction is not None else 0,
            most(k),
            whole and tables_aligned,
            PTX,
        ),
    )
    if sums is not None and log_prob is not None:
        sum_levels(sums, tiles)
        numbers = (sums.shape[1], coefficients.shape[0], *row_numbers, 1, 0, 1, elements)
        launch_grid(LOG_PROB, 1, batch, (), (log_prob, None, sums, None, None, None, rows), numbers)
    if target is not result:
        result.copy_(target)


def standard_normal(
    result: Tensor, seeds: Tensor, step: int | Tensor, stream: int, first_element: int | Tensor = 0
) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    target = by_sample(result)
    batch = target.shape[0]
    elements = target.numel() // batch if batch else 0
    if elements == 0:
        return
    tile, whole = tile_for(batch, elements, [target])
    steps, *step_numbers = sample_index(_valid(step, first_element))
    firsts, *first_numbers = sample_index(first_element)
    launch_grid(
        _NOISE,
        tiles_of(elements, tile),
        batch,
        [target],
        (seeds, steps, firsts),
        (*step_numbers, *first_numbers, elements),
        (int(stream), _is_shard(first_element), tile, whole, PTX),
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
        (),
        (result, seeds, rows, steps, cdf),
        (*row_numbers, *step_numbers, cdf.shape[0], k),
        (most(k),),
    )


# ---- sums over elements ----


def levels(tiles: int) -> list[int]:
    """Return how many sums each level has, from that of the tiles to the one number."""
    counts = [tiles]
    while counts[-1] > 1:
        counts.append(tiles_of(counts[-1], SUM_TILE))
    return counts


def sum_levels(sums: Tensor, tiles: int) -> None:
    """Fill the places after the tiles' sums, the last with the sum of all.

    Args:
        sums: [B, places, columns], contiguous; as many places as `levels` has sums, the tiles' first.
        tiles: how many these are.
    """
    batch, places, columns = sums.shape
    counts, below = levels(tiles), 0
    for count, above in pairwise(counts):
        numbers = (places, below, count, below + count, above, columns)
        launch_grid(_SUM_LEVEL, columns, batch, (), (sums,), numbers)
        below += count


def project(sample: Tensor, table: Tensor, row: int | Tensor, result: Tensor) -> None:
    """Fill `result` [B, K] with the sums over elements of samples times the rows of a table; see `Backend`."""
    batch, (table_rows, k, elements) = result.shape[0], table.shape
    tiles = max(1, tiles_of(elements, SUM_TILE))
    sums = result.new_empty(batch, sum(levels(tiles)), k)
    rows, *row_numbers = sample_index(row)
    numbers = (sums.shape[1], *row_numbers, table_rows, k, elements)
    launch_grid(_PROJECT, tiles, batch, [by_sample(sample)], (sums, table, rows), numbers)
    sum_levels(sums, tiles)
    result.copy_(sums[:, -1])


# ---- gradients of the step ----


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
    samples = by_samples(read)
    kind = int(prediction_kind) if grad_prediction is not None else 0
    step_gradients(inputs, samples, kind, gradients)
    if any(table is not None for table in tables):
        _of_tables(inputs, samples, kind, gradients)


def step_gradients(
    inputs: StepInputs,
    samples: Sequence[Tensor | None],
    kind: int,
    gradients: StepGradients,
    of_density: Tensor | None = None,
) -> None:
    """Write the elementwise gradients: 0 where `of_density` [B], a loss's of log-densities, is."""
    of_outputs = gradients.model_output, gradients.model_output_uncond
    targets = (gradients.sample, *of_outputs, *stored(gradients.history))
    if not any(target is not None for target in targets):
        return
    batch, elements = len(inputs.sample), inputs.sample[0].numel()
    rows, *row_numbers = sample_index(_valid(inputs.row, inputs.first_element))
    steps, *step_numbers = sample_index(inputs.step)
    grads = 1 if of_density is None else of_density.numel() // batch
    # A density's gradients may be those of the small size's tiles.
    large = inputs.sample.dtype is not torch.float64 and grads == 1
    tile, whole = tile_for(batch, elements, (*samples, *targets), large)
    launch_grid(
        _STEP_BACKWARD,
        tiles_of(elements, tile),
        batch,
        samples,
        (*targets, inputs.coefficients, rows, steps, of_density),
        (inputs.coefficients.shape[0], *row_numbers, *step_numbers, grads, elements),
        (tile, kind, whole, PTX),
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
    rows, *row_numbers = sample_index(_valid(inputs.row, inputs.first_element))
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
        (),
        (entries, rows, steps, inputs.seeds, inputs.cdf, of_density),
        (*row_numbers, *step_numbers, inputs.coefficients.shape[0], *sizes),
        (most(k),),
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
    of_tiles: Tensor | None = None,
) -> None:
    """Write the gradients of coefficients. Without `seeds`, the tiles' sums of SIGMA and OFFSET are in `sums`.

    Tiles whose `of_tiles` is 0 take no part.
    """
    batch, places, _ = sums.shape
    elements = inputs.sample[0].numel()
    tiles = tiles_of(elements, SUM_TILE)
    read = (*samples[:3], *by_samples(stored(inputs.history)), *samples[3:])
    steps, *step_numbers = sample_index(inputs.step)
    firsts, *first_numbers = sample_index(inputs.first_element)
    std_elements = 0 if inputs.std is None else inputs.std.shape[2]
    launch_grid(
        _COEFFICIENT_SUMS,
        tiles,
        batch,
        read,
        (sums, inputs.coefficients, entries, steps, firsts, seeds, of_tiles, inputs.offsets),
        (places, *step_numbers, *first_numbers, std_elements, elements),
        (_is_shard(inputs.first_element), kind, PTX),
    )
    sum_levels(sums, tiles)
    launch_grid(_ADD_ROWS, 1, table.shape[0], (), (table, sums, entries), (places, batch))


def _add_entries(inputs: StepInputs, grad: Tensor, entries: Tensor, table: Tensor, *, is_std: bool) -> None:
    """Add up the gradients of offsets, or of std."""
    elements = table.shape[2]
    steps, *step_numbers = sample_index(inputs.step)
    launch_grid(
        _ADD_ENTRIES,
        tiles_of(elements, SMALL_TILE),
        table.shape[0] * table.shape[1],
        [grad],
        (table, inputs.coefficients, entries, steps, inputs.seeds),
        (*step_numbers, len(grad), elements),
        (is_std, SMALL_TILE, is_whole(elements, SMALL_TILE, [table.flatten(0, 1), grad]), PTX),
    )


# ---- training ----


def add_noise(inputs: NoiseInputs, result: Tensor, noise: Tensor | None = None) -> None:
    """Write the training sample x_t of the data x0, and on request the noise in it; see `Backend`."""
    sample, coefficients, seeds, row, step, first_element = inputs
    if result.numel() == 0:
        return
    target, source = by_sample(result), by_sample(sample)
    batch, elements = len(target), target[0].numel()
    plain = noise is None and target.itemsize < 8
    tile, whole = tile_for(batch, elements, (source, target, noise), large=plain)
    rows, *row_numbers = sample_index(_valid(row, first_element))
    steps, *step_numbers = sample_index(step)
    firsts, *first_numbers = sample_index(first_element)
    launch_grid(
        _ADD_NOISE,
        tiles_of(elements, tile),
        batch,
        (source, target),
        (noise, coefficients, rows, steps, firsts, seeds),
        (coefficients.shape[0], *row_numbers, *step_numbers, *first_numbers, elements),
        (_is_shard(first_element), tile, whole, PTX),
    )
    if target is not result:
        result.copy_(target)


def skip_step_loss(inputs: TrainingInputs, result: Tensor, residual: Tensor | None = None) -> None:
    """Write the loss of each sample, [B], and on request the weighted residual of its elements; see `Backend`."""
    samples, batch = by_samples((inputs.model_output, inputs.sample)), len(inputs.model_output)
    elements = inputs.model_output.numel() // max(batch, 1)
    tiles = max(1, tiles_of(elements, SUM_TILE))
    sums = result.new_empty(batch, sum(levels(tiles)), 1)
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    whole = is_whole(elements, SUM_TILE, (*samples, residual))
    launch_grid(
        _SKIP_LOSS,
        tiles,
        batch,
        samples,
        (sums, residual, inputs.coefficients, rows, steps, inputs.seeds),
        (sums.shape[1], inputs.coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (whole, PTX),
    )
    sum_levels(sums, tiles)
    launch_grid(_FINISH_LOSS, 1, batch, (), (result, sums), (sums.shape[1], elements))


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
        (),
        (residual, grad, coefficients, rows, steps),
        (coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (SMALL_TILE, is_whole(elements, SMALL_TILE, [residual]), PTX),
    )


def skip_step_loss_backward(inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients) -> None:
    """Write gradients of a loss, given its gradients [B] of the samples' losses; see `Backend`."""
    if inputs.model_output.numel() == 0 or gradients == TrainingGradients():
        return
    samples, batch = by_samples((inputs.model_output, inputs.sample)), len(inputs.model_output)
    elements = inputs.model_output[0].numel()
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    whole = is_whole(elements, SMALL_TILE, (*samples, *gradients))
    launch_grid(
        _SKIP_LOSS_BACKWARD,
        tiles_of(elements, SMALL_TILE),
        batch,
        samples,
        (grad, *gradients, inputs.coefficients, rows, steps, inputs.seeds),
        (inputs.coefficients.shape[0], *row_numbers, *step_numbers, elements),
        (SMALL_TILE, whole, PTX),
    )
