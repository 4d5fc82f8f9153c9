"""Launches of the Triton kernels for exact moment matching."""

from __future__ import annotations

from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE
from gmmkernel.backends.protocol import PenaltyInputs, StepInputs
from gmmkernel.backends.triton.grid import PTX, launch_grid, most, sample_index, tiles_of
from gmmkernel.backends.triton.launch_sums import levels, sum_levels
from gmmkernel.backends.triton.low_rank import (
    offset_weights_kernel,
    penalties_kernel,
    project_kernel,
    pulls_kernel,
)
from gmmkernel.backends.triton.program import Program

_PROJECT, _PULLS, _OFFSET_WEIGHTS, _PENALTIES = map(
    Program, (project_kernel, pulls_kernel, offset_weights_kernel, penalties_kernel)
)


def offset_weights(inputs: StepInputs) -> Tensor:
    """Return what each sample's offsets are multiplied with, [B, K]; of samples without directions, anything."""
    basis, std_delta, offsets, cdf = inputs.basis, inputs.std_delta, inputs.offsets, inputs.cdf
    assert basis is not None
    assert std_delta is not None
    assert offsets is not None
    assert cdf is not None
    batch = inputs.sample.shape[0]
    elements = inputs.sample.numel() // max(batch, 1)
    tiles, k, directions = tiles_of(elements, SUM_TILE), offsets.shape[1], basis.shape[1]
    device = inputs.sample.get_device()
    rows, *row_numbers = sample_index(inputs.row)
    steps, *step_numbers = sample_index(inputs.step)
    drawn = (rows, steps, inputs.seeds)
    numbers = (inputs.coefficients.shape[0], *row_numbers, *step_numbers)
    sums = inputs.coefficients.new_empty(batch, sum(levels(tiles)), k)
    launch_grid(
        _PROJECT,
        tiles,
        batch,
        (sums, inputs.coefficients, *drawn, offsets),
        (sums.shape[1], *numbers, offsets.shape[0], k, elements),
        (PTX,),
        device,
    )
    sum_levels(sums, tiles)
    pulls = sums.new_empty(batch, directions)
    launch_grid(
        _PULLS,
        1,
        batch,
        (pulls, sums, basis, std_delta, *drawn, cdf),
        (
            sums.shape[1],
            k,
            *numbers,
            cdf.shape[0],
            basis.shape[0],
            *std_delta.shape[:2],
            directions,
            k,
        ),
        (most(k),),
        device,
    )
    weights = sums.new_empty(batch, k)
    launch_grid(
        _OFFSET_WEIGHTS,
        1,
        batch,
        (weights, pulls, basis, inputs.coefficients, *drawn, cdf),
        (*numbers, cdf.shape[0], basis.shape[0], directions, k),
        (most(k),),
        device,
    )
    return weights


def penalties_of(inputs: StepInputs, sums: Tensor, penalties: PenaltyInputs) -> Tensor:
    """Return what components lose of their log-densities, [B, K], given sums as `log_prob` has them."""
    basis, slopes, shifts, half_logdet = penalties
    batch, places, columns = sums.shape
    k, directions = columns - 1, basis.shape[1]
    device = sums.get_device()
    rows, *row_numbers = sample_index(inputs.row)
    numbers = (inputs.coefficients.shape[0], *row_numbers)
    along = sums.new_empty(batch, directions)
    launch_grid(
        _PULLS,
        1,
        batch,
        (along, sums, basis, None, rows, None, None, None),
        (places, columns, *numbers, 0, 0, 1, basis.shape[0], 1, 1, directions, k),
        (most(k),),
        device,
    )
    made = sums.new_empty(batch, k)
    launch_grid(
        _PENALTIES,
        1,
        batch,
        (made, along, slopes, shifts, half_logdet, inputs.coefficients, rows),
        (*numbers, *slopes.shape[:2], shifts.shape[0], *half_logdet.shape, directions, k),
        (),
        device,
    )
    return made
