"""`mixture_moments`: what a mixture adds to the mean of a step, and the variance it leaves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import plain
from gmmkernel.backends.constants import Column
from gmmkernel.ops import checks
from gmmkernel.ops.tables import MixtureTables


class MixtureMoments(NamedTuple):
    """Moments of a transition's mixture, element by element.

    Attributes:
        mean: [D], what the mixture adds to the mean of the step: OFFSET * sum_k pi_k delta_k.
        variance: [D], of the transition: sum_k pi_k (std_k^2 + (OFFSET * delta_k - mean)^2); where moments are
            matched exactly, less sum_kr pi_k (SIGMA^2 - (SIGMA + std_delta_kr)^2) q_r^2.
    """

    mean: Tensor
    variance: Tensor


def mixture_moments(mixture: MixtureTables, coefficients: Tensor, *, row: int) -> MixtureMoments:
    """Return the mean and variance of a mixture at one step: moment matching asks for 0 and SIGMA^2.

    Plain differentiable PyTorch over the K offset rows, in the tables' dtype; not a kernel, as no step needs it.

    Args:
        mixture: a mixture bound to the coefficient rows, with its weights.
        coefficients: [S, 16] float32 or float64, one row a step.
        row: the step.

    Raises:
        TypeError: a table's dtype is not that of the coefficients.
        ValueError: a shape does not fit, or the mixture has no weights.
        IndexError: the row is out of range.
    """
    checks.check_tensor(coefficients, "coefficients")
    if not isinstance(mixture, MixtureTables):
        raise TypeError(f"mixture: expected MixtureTables, got {type(mixture).__name__}")
    checks.check_tensor(mixture.offsets, "mixture.offsets")
    elements = mixture.offsets.shape[-1]
    like = coefficients.new_empty(1, elements)
    coefficients = checks.check_coefficients(coefficients, like)
    tables = checks.check_mixture(mixture, coefficients, like)
    weights = checks.check_weights(tables, coefficients)
    row = plain(row)
    if not checks.is_integer(row):
        raise TypeError(f"row: expected an int, got {type(row).__name__}")
    if not 0 <= row < coefficients.shape[0]:
        raise IndexError(f"row: expected 0 to {coefficients.shape[0] - 1}, got {row}")
    pi, delta, of_std = (
        table[row if table.shape[0] > 1 else 0] for table in (weights, tables.offsets, tables.std)
    )
    offsets = coefficients[row, Column.OFFSET] * delta
    sigma = coefficients[row, Column.SIGMA].expand(of_std.shape[0], elements - of_std.shape[1])
    variances = torch.cat([of_std, sigma], dim=1).square().expand(pi.shape[0], -1)
    mean = pi @ offsets
    variance = pi @ (variances + (offsets - mean).square())
    if tables.basis is None or tables.std_delta is None:
        return MixtureMoments(mean, variance)
    basis, std_delta = (table[row if table.shape[0] > 1 else 0] for table in (tables.basis, tables.std_delta))
    level = coefficients[row, Column.SIGMA]
    removed = pi @ (level.square() - (level + std_delta).square()).expand(pi.shape[0], -1)
    removes = (level != 0) & (coefficients[row, Column.OFFSET] != 0)
    return MixtureMoments(mean, variance - torch.where(removes, removed, 0.0) @ (basis @ delta).square())
