"""Launches of the Triton kernels for log-densities."""

from __future__ import annotations

from torch import Tensor

from gmmkernel.backends.compiled import by_sample
from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.backends.triton.density import density_sums_kernel, log_prob_kernel
from gmmkernel.backends.triton.launch import ABSENT, PTX, launch_grid, sample_index, tiles_of
from gmmkernel.backends.triton.launch_sums import levels, sum_levels
from gmmkernel.backends.triton.program import Program

_DENSITY_SUMS, _LOG_PROB = map(Program, (density_sums_kernel, log_prob_kernel))


def log_prob(
    inputs: StepInputs,
    prev_sample: Tensor,
    weights: Tensor | None,
    result: Tensor,
    responsibilities: Tensor | None = None,
) -> None:
    """Write the log-density of each sample, [B], and each component's share of it, [B, K]; see `Backend`."""
    batch = len(inputs.sample)
    elements = inputs.sample.numel() // max(batch, 1)
    tiles = max(1, tiles_of(elements, SUM_TILE))
    rows, *row_numbers = sample_index(inputs.row)
    k = 0 if weights is None else weights.shape[1]
    sums = inputs.coefficients.new_empty(batch, sum(levels(tiles)), k + 1)
    read = (inputs.sample, inputs.model_output, inputs.model_output_uncond, *inputs.history)
    read = (*read, *ABSENT[len(inputs.history) :], prev_sample)
    samples = [None if tensor is None else by_sample(tensor) for tensor in read]
    if inputs.offsets is None or inputs.std is None:
        sizes = (1, 1, 1, 0)
    else:
        sizes = (inputs.offsets.shape[0], *inputs.std.shape)
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
            *sizes,
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
        (result, responsibilities, sums, weights, rows),
        (sums.shape[1], *numbers, 1 if weights is None else weights.shape[0], k, k + 1, elements),
        (),
        device,
    )
