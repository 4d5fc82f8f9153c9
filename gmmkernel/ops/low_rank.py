"""Gradients of what exactly matched moments add to a step and its log-density: of its tables, in plain PyTorch.

What has D entries is gone through sample by sample, and every sum has a fixed order, by separate products and sums: the
bits are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE, Column


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
    """Return the gradients of a step's tables.

    With y_l = [l = c] w + sum_r basis_rl u_r and u_r = std_delta_r sum_l basis_rl p_l, p_l = delta_l . z, what a step
    adds to the mean is sum_l y_l delta_l.

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


def density_gradients(
    grad: Tensor,
    responsibilities: Tensor,
    energies: Tensor,
    coefficients: Tensor,
    rows: Tensor,
    tables: DensityTables,
) -> tuple[Tensor, DensityTables]:
    """Return what stands for the components' shares in a log-density's gradients, and the gradients of its tables.

    The penalties C_k = half_logdet_k + sum_r (slope_kr e_r + shift_kr)^2, e_r = sum_l basis_rl (E_l - E_0), are
    functions of the energies; minus the derivative of log p with respect to E_l is share_l without them.

    Args:
        grad: [B] of the log-densities.
        responsibilities: [B, K].
        energies: [B, K].
        coefficients: [S, 16].
        rows: int64 [B].
        tables: contiguous.

    Returns:
        [B, K], with sum 1 like the shares; and gradients like the tables.
    """
    made = DensityTables(*map(torch.zeros_like, tables))
    shares = torch.empty_like(responsibilities)
    for b in range(grad.shape[0]):
        row = _Row(rows, b, coefficients, grad[b] != 0)
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
    """Return y [B, K] of `step_gradients`, differentiable.

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


def penalties(energies: Tensor, row: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Return C [B, K] of `density_gradients`, differentiable.

    Args:
        energies: [B, K].
        row: [B, 16].
        tables: basis [B, R, K], slopes [B, 1 or K, R], shifts [B, K, R] and half_logdet [B, 1 or K], each sample's.
    """
    basis, slopes, shifts, half_logdet = tables
    along = torch.einsum("brk,bk->br", basis, energies - energies[:, :1])
    total = half_logdet + (slopes * along[:, None] + shifts).square().sum(2)
    return torch.where(row[:, Column.OFFSET, None] != 0, total, 0)
