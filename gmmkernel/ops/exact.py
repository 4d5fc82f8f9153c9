"""Exact moment matching: a step and a log-density made of a backend's kernels, and the gradients of its tables.

A component of covariance sigma^2 I - sum_r lambda_r q_r q_r^T, with orthonormal q_r = sum_l basis_rl delta_l, is drawn
as

    x_s = mean + sigma z + sum_l y_l delta_l    y_l = [l = c] w + sum_r basis_rl u_r
    u_r = std_delta_r sum_l basis_rl (delta_l . z)    std_delta_r = sqrt(sigma^2 - lambda_r) - sigma

where u_r is 0 if w or sigma is. Its log-density is less than that of covariance sigma^2 I by a penalty

    C_k = half_logdet_k + sum_r (slope_kr e_r + shift_kr)^2    e_r = sum_l basis_rl (E_l - E_0)

0 where w is, of the energies E_l of the components (`gmmkernel.backends.reference.density`): q_r . (a - w delta_k) is
linear in e_r, because the coefficients of a direction add up to 0.

Sums are taken by the fixed tree, and of nothing but separate products: the bits are the same on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel.backends.constants import MAX_HISTORY, SUM_TILE, Column, Prediction, Stream
from gmmkernel.backends.protocol import Backend, LogProbInputs, StepInputs


class StepTables(NamedTuple):
    """The tables of a step whose moments are matched exactly, or their gradients."""

    offsets: Tensor
    basis: Tensor
    std_delta: Tensor


class DensityTables(NamedTuple):
    """The tables of a log-density whose moments are matched exactly, or their gradients."""

    weights: Tensor
    basis: Tensor
    slopes: Tensor
    shifts: Tensor
    half_logdet: Tensor


def tree_sum(values: Tensor) -> Tensor:
    """Sum over the last dimension in the order of `gmmkernel.backends.reference.sums.tree_sum`."""
    while True:
        tiles = max(1, -(-values.shape[-1] // SUM_TILE))
        values = torch.nn.functional.pad(values, (0, tiles * SUM_TILE - values.shape[-1]))
        level = values.unflatten(-1, (tiles, SUM_TILE))
        width = SUM_TILE
        while width > 1:
            width //= 2
            level = level[..., :width] + level[..., width:]
        values = level[..., 0]
        if tiles == 1:
            return values[..., 0]


def row_of_each(row: int | Tensor, like: Tensor) -> Tensor:
    """Return an index as a tensor with an entry for each sample, like a tensor [B, ...]."""
    if isinstance(row, Tensor):
        return row.expand(like.shape[0])
    return torch.full((like.shape[0],), row, dtype=torch.int64, device=like.device)


class _Rows:
    """Where the entries of a batch are in tables [S or 1, ...]: one for all, or one for each sample.

    `invalid` says of which samples there is none: None where the values are on the CPU, which raise an error.
    """

    def __init__(self, row: int | Tensor, entries: int) -> None:
        self.invalid: Tensor | None = None
        if not isinstance(row, Tensor):
            self._index: Tensor | slice = slice(row, row + 1)
            return
        invalid = (row < 0) | (row >= entries)
        self._index = row.reshape(-1)
        if row.device.type != "cpu":
            self._index, self.invalid = torch.where(invalid, 0, row).reshape(-1), invalid
        elif bool(invalid.any()):
            sample = int(invalid.reshape(-1).to(torch.uint8).argmax())
            value = int(self._index[sample])
            raise IndexError(f"row: expected 0 to {entries - 1}, got {value} for sample {sample}")

    def of(self, table: Tensor) -> Tensor:
        """Return the entries, [1 or B, ...]."""
        return table if table.shape[0] == 1 else table[self._index]


def step(
    kernels: Backend,
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None,
    prediction_kind: int,
    components: Tensor | None,
) -> None:
    """Do a step whose moments are matched exactly: what `Backend.gmm_step` is without.

    The noise is drawn first, in memory of its own, and projected on the offsets. Then the offsets are added to it, four
    at a time, as a step adds the history of a multistep sampler; the last ones and the sum so far, by the step itself.
    """
    cdf, offsets, basis, std_delta = inputs.cdf, inputs.offsets, inputs.basis, inputs.std_delta
    assert cdf is not None
    assert offsets is not None
    assert basis is not None
    assert std_delta is not None
    seeds = inputs.seeds
    batch, k = len(seeds), offsets.shape[1]
    if batch == 0:
        return
    rows = _Rows(inputs.row, len(inputs.coefficients))
    drawn = torch.empty_like(seeds)
    kernels.draw_components(drawn, seeds, cdf, inputs.row, inputs.step)
    noise = inputs.coefficients.new_empty(inputs.sample.shape)
    kernels.standard_normal(noise, seeds, inputs.step, Stream.TRANSITION)

    each, numbers = torch.arange(batch, device=noise.device), torch.arange(k, device=noise.device)
    row = rows.of(inputs.coefficients)
    weight, sigma = row[:, Column.OFFSET, None], row[:, Column.SIGMA, None]
    projections, along = noise.new_empty(batch, k), noise.new_empty(batch, basis.shape[1])
    kernels.project(noise, offsets, inputs.row, projections)
    kernels.project(projections, basis, inputs.row, along)
    factors = rows.of(std_delta)
    factors = (
        factors[:, 0] if factors.shape[1] == 1 else factors.expand(batch, -1, -1)[each, drawn.clamp(min=0)]
    )
    along = torch.where((weight != 0) & (sigma != 0), factors * along, 0)
    y = torch.empty_like(projections)
    kernels.project(along, rows.of(basis).mT.contiguous(), each, y)
    y = torch.where(numbers == drawn[:, None], y + weight, y)

    def history(first: int, last: int) -> list[Tensor]:
        return [rows.of(offsets[:, at]).expand(batch, -1).view_as(noise) for at in range(first, last)]

    stored = len(inputs.history)
    added_last = min(k, MAX_HISTORY - stored)
    sums = row.new_zeros(batch, row.shape[1])
    sums[:, Column.CLIP_MIN], sums[:, Column.CLIP_MAX] = -math.inf, math.inf
    scale = sigma
    for first in range(0, k - added_last, MAX_HISTORY):
        last = min(first + MAX_HISTORY, k - added_last)
        sums[:, Column.SAMPLE, None] = scale
        sums[:, Column.HISTORY_0 : Column.HISTORY_0 + last - first] = y[:, first:last]
        of_sums = StepInputs(noise, noise, sums, seeds, each, 0, history=history(first, last))
        kernels.gmm_step(of_sums, noise)
        scale = torch.ones_like(sigma)

    row = row.expand(batch, -1).clone()
    row[:, Column.SIGMA] = 0
    row[:, Column.OFFSET, None] = scale
    row[:, Column.HISTORY_0 + stored : Column.HISTORY_0 + stored + added_last] = y[:, k - added_last :]
    of_each = inputs._replace(
        coefficients=row,
        row=each if rows.invalid is None else torch.where(rows.invalid, -1, each),
        history=[*inputs.history, *history(k - added_last, k)],
        cdf=cdf.new_empty(1, 0),
        offsets=noise.view(batch, 1, offsets.shape[2]),
        std=noise.new_empty(1, 1, 0),
        basis=None,
        std_delta=None,
    )
    if prediction_kind == Prediction.MEAN and prediction is not None:
        kernels.gmm_step(
            of_each._replace(history=inputs.history, cdf=None, offsets=None, std=None), prediction
        )
        prediction, prediction_kind = None, Prediction.NONE
    kernels.gmm_step(of_each, result, prediction, prediction_kind)
    if components is not None:
        components.copy_(drawn if rows.invalid is None else torch.where(rows.invalid, -1, drawn))


def penalties(kernels: Backend, energies: Tensor, inputs: LogProbInputs, chunk: int = 2**22) -> Tensor:
    """Return C [B, K] of energies [B, K]; about `chunk` numbers are looked at at a time."""
    basis, slopes, shifts, half_logdet = _density_tables(inputs)[1:]
    if len(energies) == 0:
        return energies
    rows = _Rows(inputs.row, len(inputs.coefficients))
    along = energies.new_empty(len(energies), basis.shape[1])
    kernels.project(energies - energies[:, :1], basis, inputs.row, along)
    has_offset = rows.of(inputs.coefficients)[:, Column.OFFSET, None] != 0
    made = torch.empty_like(energies)
    samples = max(1, chunk // (energies.shape[1] * SUM_TILE))
    for first in range(0, len(energies), samples):
        part = slice(first, first + samples)
        slope, shift, volume = (
            of if len(of) == 1 else of[part] for of in map(rows.of, (slopes, shifts, half_logdet))
        )
        h = slope * along[part, None] + shift
        made[part] = volume + tree_sum(h * h)
    return torch.where(has_offset, made, 0)


class _Row:
    """Where one sample's entries of tables are; one that is out of range, or has no `part`, adds nothing to them."""

    def __init__(self, rows: Tensor, sample: int, coefficients: Tensor, part: Tensor | None = None) -> None:
        index = rows[sample : sample + 1]
        is_valid = (index >= 0) & (index < coefficients.shape[0])
        self._index = torch.where(is_valid, index, 0)
        self._adds = is_valid if part is None else is_valid & part
        self.coefficients = coefficients.index_select(0, self._index)[0]

    def of(self, table: Tensor) -> Tensor:
        """Return the sample's entry of a table [S or 1, ...]."""
        return table[0] if table.shape[0] == 1 else table.index_select(0, self._index)[0]

    def add(self, table: Tensor, value: Tensor) -> None:
        """Add to the sample's entry of a table [S or 1, ...], or of one that components share [S or 1, 1, ...]."""
        if table.dim() > 1 and table.shape[1] < value.shape[0]:
            value = tree_sum(value.movedim(0, -1))[None]
        value = torch.where(self._adds.view(-1, *[1] * value.dim()), value, 0)
        if table.shape[0] == 1:
            table += value
        else:
            table.index_add_(0, self._index, value)


def step_gradients(
    grad: Tensor,
    noise: Tensor,
    components: Tensor,
    coefficients: Tensor,
    rows: Tensor,
    tables: StepTables,
) -> StepTables:
    """Return the gradients of a step's tables, sample by sample.

    Args:
        grad: [B, D] of the step's result.
        noise: [B, D], what the step drew, of the coefficients' dtype.
        components: int64 [B], what it drew.
        coefficients: [S, 16].
        rows: int64 [B].
        tables: contiguous.

    Returns:
        Like the tables: sums over the samples in the order of the batch.
    """
    made = StepTables(*map(torch.zeros_like, tables))
    for b in range(grad.shape[0]):
        row = _Row(rows, b, coefficients)
        offsets, basis, std_delta = map(row.of, tables)
        weight, sigma = row.coefficients[Column.OFFSET], row.coefficients[Column.SIGMA]
        component = components[b : b + 1].clamp(min=0)
        is_drawn = torch.arange(offsets.shape[0], device=grad.device) == component
        own = torch.where(is_drawn, weight, 0)
        is_shared = std_delta.shape[0] == 1
        factors = std_delta[0] if is_shared else std_delta.index_select(0, component)[0]
        is_active = (weight != 0) & (sigma != 0)
        factors = torch.where(is_active, factors, 0)
        g, z = grad[b].to(noise.dtype), noise[b]
        of_noise, of_grad = tree_sum(offsets * z), tree_sum(offsets * g)
        along_noise, along_grad = tree_sum(basis * of_noise), tree_sum(basis * of_grad)
        y = own + tree_sum((basis * (factors * along_noise)[:, None]).T)
        pulled = tree_sum((basis * (factors * along_grad)[:, None]).T)
        row.add(made.offsets, y[:, None] * g + pulled[:, None] * z)
        of_basis = along_noise[:, None] * of_grad + along_grad[:, None] * of_noise
        row.add(made.basis, factors[:, None] * of_basis)
        of_factors = torch.where(is_active, along_noise * along_grad, 0)
        if is_shared:
            row.add(made.std_delta, of_factors[None])
        else:
            row.add(made.std_delta, torch.where(is_drawn[:, None], of_factors, 0))
    return made


def _density_tables(inputs: LogProbInputs) -> DensityTables:
    tables = inputs.weights, inputs.basis, inputs.slopes, inputs.shifts, inputs.half_logdet
    return DensityTables(*tables)  # type: ignore[arg-type]


def density_gradients(
    grad: Tensor, responsibilities: Tensor, energies: Tensor, inputs: LogProbInputs
) -> tuple[Tensor, DensityTables]:
    """Return what stands for the components' shares in a log-density's gradients, and the gradients of its tables.

    Minus the derivative of log p with respect to E_l is share_l without penalties; these are functions of the energies.

    Args:
        grad: [B] of the log-densities.
        responsibilities: [B, K].
        energies: [B, K].
        inputs: of the log-density.

    Returns:
        [B, K], with sum 1 like the shares; and gradients like the tables.
    """
    tables, rows = _density_tables(inputs), row_of_each(inputs.row, responsibilities)
    made = DensityTables(*map(torch.zeros_like, tables))
    shares = torch.empty_like(responsibilities)
    for b in range(grad.shape[0]):
        row = _Row(rows, b, inputs.coefficients, grad[b] != 0)
        weights, basis, slopes, shifts, _ = map(row.of, tables)
        share, energy = responsibilities[b], energies[b] - energies[b, 0]
        is_active = row.coefficients[Column.OFFSET] != 0
        e = tree_sum(basis * energy)
        h = slopes * e + shifts
        of_h = torch.where(is_active, share[:, None] * (-2 * h), 0)
        of_e = tree_sum((of_h * slopes).T)
        of_energy = tree_sum((basis * of_e[:, None]).T)
        of_energy[0] -= tree_sum(of_energy)
        shares[b] = share - of_energy
        pulled = grad[b] * of_h
        row.add(made.weights, grad[b] * share / weights)
        row.add(made.basis, (grad[b] * of_e)[:, None] * energy)
        row.add(made.slopes, pulled * e)
        row.add(made.shifts, pulled)
        row.add(made.half_logdet, torch.where(is_active, -grad[b] * share, 0))
    return shares, made


def offset_weights(
    noise: Tensor,
    components: Tensor,
    row: Tensor,
    offsets: Tensor,
    basis: Tensor,
    std_delta: Tensor,
) -> Tensor:
    """Return y [B, K], differentiable.

    Args:
        noise: [B, D].
        components: int64 [B].
        row: [B, 16].
        offsets: [B, K, D], each sample's, like the others.
        basis: [B, R, K].
        std_delta: [B, R], of the component drawn.
    """
    weight = row[:, Column.OFFSET, None]
    own = weight * torch.nn.functional.one_hot(components, offsets.shape[1])
    along_noise = torch.einsum("brk,bkd,bd->br", basis, offsets, noise)
    removed = torch.einsum("brk,br->bk", basis, std_delta * along_noise)
    return own + torch.where((weight != 0) & (row[:, Column.SIGMA, None] != 0), removed, 0)


def eager_penalties(energies: Tensor, row: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Return C [B, K], differentiable.

    Args:
        energies: [B, K].
        row: [B, 16].
        tables: basis [B, R, K], slopes [B, 1 or K, R], shifts [B, K, R] and half_logdet [B, 1 or K], each sample's.
    """
    basis, slopes, shifts, half_logdet = tables
    along = torch.einsum("brk,bk->br", basis, energies - energies[:, :1])
    total = half_logdet + (slopes * along[:, None] + shifts).square().sum(2)
    return torch.where(row[:, Column.OFFSET, None] != 0, total, 0)
