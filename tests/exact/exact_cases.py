"""Mixtures whose moments are matched exactly, and what they are in plain algebra."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gmmkernel import Column, MixtureTables
from gmmkernel.mixtures import Mixture, gaussian_mixture

WEIGHTS = [0.5, 0.2, 0.2, 0.1]
KINDS: tuple[dict[str, Any], ...] = (
    {"variant": "exact"},
    {"variant": "exact", "weights": WEIGHTS},
    {"variant": "exact", "scheme": "a"},
    {"variant": "exact", "scheme": "a", "weights": WEIGHTS},
    {"variant": "rand-exact"},
    {"variant": "rand-exact", "weights": WEIGHTS},
    {"variant": "rand-exact", "scheme": "a", "weights": WEIGHTS},
)
"""Options of mixtures with four components."""


def kind_name(kind: dict[str, Any]) -> str:
    """Return what a test of this kind is called."""
    weights = "unequal" if "weights" in kind else "equal"
    return f"{kind['variant']}-{kind.get('scheme', 'b')}-{weights}"


def rows(*sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return coefficient rows of these standard deviations, with a mean of 0.7 x + 0.3 o."""
    table = torch.zeros(len(sigma), len(Column), dtype=dtype)
    table[:, Column.CLIP_MIN], table[:, Column.CLIP_MAX] = -math.inf, math.inf
    table[:, Column.SAMPLE], table[:, Column.OUTPUT] = 0.7, 0.3
    table[:, Column.SIGMA], table[:, Column.OFFSET] = torch.tensor(sigma, dtype=dtype), 1
    return table


def bound(
    kind: dict[str, Any], coefficients: Tensor, *, elements: int, components: int = 4, rho: float = 0.9
) -> tuple[Mixture, Tensor, MixtureTables]:
    """Return a mixture, the rows that it scales, and its tables."""
    mixture = gaussian_mixture(elements=elements, n_components=components, rho=rho, **kind)
    scaled = mixture.scaled(coefficients)
    return mixture, scaled, mixture.bind(scaled)


def factors(tables: MixtureTables, row: int) -> Tensor:
    """Return what the noise of each component is multiplied with, [K, D, D], from the tables of a step."""
    assert tables.basis is not None
    assert tables.std_delta is not None
    offsets, basis = (table[row % len(table)] for table in (tables.offsets, tables.basis))
    std_delta = tables.std_delta[row % len(tables.std_delta)].expand(offsets.shape[0], -1)
    directions = basis @ offsets
    return torch.stack([(directions.T * of_component) @ directions for of_component in std_delta])


def covariances(tables: MixtureTables, coefficients: Tensor, row: int) -> Tensor:
    """Return the covariance of each component, [K, D, D]."""
    removed = factors(tables, row)
    roots = coefficients[row, Column.SIGMA] * torch.eye(removed.shape[1], dtype=removed.dtype) + removed
    return roots @ roots.mT


def moments(mixture: Mixture, tables: MixtureTables, coefficients: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and covariance [D, D] of a transition around the mean of its Gaussian step."""
    delta = coefficients[row, Column.OFFSET] * tables.offsets[row % len(tables.offsets)]
    mean = mixture.weights @ delta
    spread = torch.einsum("k,kd,ke->de", mixture.weights, delta, delta)
    second = torch.einsum("k,kde->de", mixture.weights, covariances(tables, coefficients, row)) + spread
    return mean, second - torch.outer(mean, mean)
