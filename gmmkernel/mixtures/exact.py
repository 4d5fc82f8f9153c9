"""Exact moment matching: the directions in which a mixture's offsets add variance, and how much of it to remove.

A component's covariance is sigma^2 I - w^2 Delta_k with (arXiv 2311.04938)

    scheme a   Delta_k = delta_k delta_k^T
    scheme b   Delta_k = (1/(K pi_k)) sum_l pi_l delta_l delta_l^T

which keeps mean and covariance of the Gaussian step if sum_k pi_k delta_k = 0 and w^2 Delta_k <= sigma^2. The
eigenvectors are combinations of the offsets, q_r = sum_l basis_rl delta_l, so that all the work is on K x K
matrices. The coefficients of each add up to 0, as `gmmkernel.backends.reference.exact` needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmkernel._sqrt import square_root
from gmmkernel.backends.reference import elementary
from gmmkernel.backends.reference.sums import tree_sum
from gmmkernel.ops.exact import tree_sum as tree_sum_of_tensor

SCHEMES = ("a", "b")
"""Names of the ways to share out the covariance."""

Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]

_MAX_SWEEPS = 60
_NEGLIGIBLE = 2.0**-40
"""An eigenvalue of so small a share of the largest is rounding."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Where the offsets of a mixture add variance.

    Attributes:
        basis: float64 [S or 1, R, K], orthonormal directions as combinations of the offsets. In scheme a there is
            one for each component, and they are not orthogonal to each other.
        eigenvalues: float64 [S or 1, 1 or K, R] of the Delta_k.
        overlaps: float64 [S or 1, R, K], q_r . delta_k.
        norms: float64 [S or 1, K], |delta_k|^2.
    """

    basis: Tensor
    eigenvalues: Tensor
    overlaps: Tensor
    norms: Tensor


class ExactTables(NamedTuple):
    """The tables that `MixtureTables` has besides where moments are matched exactly."""

    basis: Tensor
    std_delta: Tensor
    slopes: Tensor
    shifts: Tensor
    half_logdet: Tensor


def directions_of(gram: Float64, pi: Float64, scheme: str) -> Directions:
    """Return the directions of one step's offsets.

    Args:
        gram: [K, K], delta_k . delta_l, with K > 1.
        pi: [K], the weights; sum_k pi_k delta_k = 0.
        scheme: "a" or "b".
    """
    norms = np.diag(gram).copy()
    if scheme == "a":
        lengths = np.sqrt(norms)
        basis = (np.eye(len(pi)) - pi) / lengths[:, None]
        eigenvalues = np.diag(norms)
        overlaps = gram / lengths[:, None]
    else:
        roots = np.sqrt(pi)
        values, vectors = eigenpairs(roots[:, None] * gram * roots)
        kept = values > values[0] * _NEGLIGIBLE
        values, vectors = values[kept], vectors[kept]
        basis = vectors * roots / np.sqrt(values)[:, None]
        # The vectors are orthogonal to sqrt(pi); what rounding has left of it is taken out.
        basis -= tree_sum(basis)[:, None] * pi
        shares = np.array([1.0]) if np.all(pi == pi[0]) else 1 / (len(pi) * pi)
        eigenvalues = shares[:, None] * values
        overlaps = vectors * np.sqrt(values)[:, None] / roots
    arrays = (basis, eigenvalues, overlaps, norms)
    return Directions(*(torch.from_numpy(np.ascontiguousarray(array))[None] for array in arrays))


def directions_of_equal(scale: float, count: int) -> Directions:
    """Return the directions of scheme b for `count` orthogonal offsets of equal weight: Helmert's.

    All eigenvalues are s^2/K then, and any basis of the offsets' span will do.
    """
    numbers = np.arange(1, count)[:, None]
    columns = np.arange(count)
    vectors = np.where(columns < numbers, 1.0, np.where(columns == numbers, -numbers.astype(float), 0.0))
    vectors /= np.sqrt((numbers * (numbers + 1)).astype(float))
    arrays = (
        vectors / scale,
        np.full((1, count - 1), scale * scale / count),
        vectors * scale,
        np.full(count, scale * scale * (1 - 1 / count)),
    )
    return Directions(*(torch.from_numpy(array)[None] for array in arrays))


def gram_of_orthogonal(scale: float, pi: Float64) -> Float64:
    """Return delta_k . delta_l of delta_k = s (u_k - sum_l pi_l u_l) with orthonormal u."""
    inner = np.eye(len(pi)) - pi - pi[:, None] + tree_sum(pi * pi)
    return scale * scale * inner


def gram_of(offsets: Float64) -> Float64:
    """Return delta_k . delta_l of offsets [K, D]."""
    rows = [tree_sum(offsets[k:] * offsets[k]) for k in range(len(offsets))]
    gram = np.zeros((len(offsets), len(offsets)))
    for k, row in enumerate(rows):
        gram[k, k:] = gram[k:, k] = row
    return gram


def stack(given: list[Directions]) -> Directions:
    """Return the directions of several steps, of which each has as many."""
    names = ("basis", "eigenvalues", "overlaps", "norms")
    return Directions(*(torch.cat([getattr(one, name) for one in given]) for name in names))


def eigenpairs(matrix: Float64) -> tuple[Float64, Float64]:
    """Return eigenvalues, largest first, and eigenvectors as rows, of a symmetric matrix, by Jacobi's rotations.

    The rotations of a sweep go round-robin: each round turns pairs of rows that have nothing to do with each other. The
    order is fixed and nothing but +, -, *, / and sqrt is used, so the bits are the same on every machine.
    """
    size = len(matrix)
    count = size + size % 2  # a row of zeros makes it even
    a = np.zeros((count, count))
    a[:size, :size] = matrix
    vectors = np.eye(count)
    order = np.arange(count)
    smallest = np.max(np.abs(a)) * 2.0**-60
    for _ in range(_MAX_SWEEPS):
        if np.max(np.abs(a - np.diag(np.diag(a)))) <= smallest:
            break
        for _ in range(count - 1):
            p, q = order[: count // 2], order[count // 2 :][::-1]
            c, s = _rotations(a[p, p], a[q, q], a[p, q], smallest)
            _turn(a, p, q, c, s)
            a = np.ascontiguousarray(a.T)
            _turn(a, p, q, c, s)
            _turn(vectors, p, q, c, s)
            order[1:] = np.roll(order[1:], 1)
    values = np.diag(a)[:size].copy()
    best = np.argsort(-values, kind="stable")
    return values[best], vectors[:size, :size][best]


def _turn(rows: Float64, p: Integers, q: Integers, c: Float64, s: Float64) -> None:
    of_p, of_q = rows[p], rows[q]
    rows[p] = c[:, None] * of_p - s[:, None] * of_q
    rows[q] = s[:, None] * of_p + c[:, None] * of_q


def _rotations(app: Float64, aqq: Float64, apq: Float64, smallest: float) -> tuple[Float64, Float64]:
    """Return the cosines and sines that make the a_pq zero."""
    turns = np.abs(apq) > smallest
    tau = (aqq - app) / (2 * np.where(turns, apq, 1.0))
    tangent = np.where(tau >= 0, 1.0, -1.0) / (np.abs(tau) + np.sqrt(1 + tau * tau))
    tangent = np.where(turns, tangent, 0.0)
    cosine = 1 / np.sqrt(1 + tangent * tangent)
    return cosine, tangent * cosine


class _ExactLogarithm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return torch.from_numpy(elementary.log(values.detach().cpu().numpy())).to(values.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        gradient: Tensor = gradients[0] / values
        return gradient


def exact_tables(directions: Directions, levels: Tensor, dtype: torch.dtype) -> ExactTables:
    """Return the tables of a sampler's steps.

    With l = w^2 lambda_kr:

        std_delta  sqrt(sigma^2 - l) - sigma
        slope      -sqrt(lambda_kr / 2) sigma / sqrt(sigma^2 - l)
        shift      w^2 sqrt(lambda_kr / 2) / (sigma sqrt(sigma^2 - l)) (sum_l basis_rl |delta_l|^2 / 2 - q_r . delta_k)
        half_logdet sum_r log(1 - l/sigma^2) / 2

    and zeros where w or sigma is 0. Where sigma^2 = l there is no density, and slopes and shifts are infinite.

    Args:
        directions: of the mixture.
        levels: float64 [S, 2], sigma and w of each step; differentiable.
        dtype: of the tables.
    """
    made: list[tuple[Tensor, ...]] = []
    given = (directions.basis, directions.eigenvalues, directions.overlaps, directions.norms)
    parts = [part.to(levels.device) for part in given]
    for number, level in enumerate(levels):
        basis, eigenvalues, overlaps, norms = (part[number % len(part)] for part in parts)
        is_on = (level != 0).all()
        sigma, weight = torch.where(is_on, level, level.new_tensor([1.0, 0.0]))
        eigenvalues = torch.where(is_on, eigenvalues, 0.0)
        left = sigma * sigma - weight * weight * eigenvalues
        left = torch.where(left > 0, left, 0.0)  # below it by rounding alone
        root, half = square_root(left), square_root(eigenvalues / 2)
        ratio = left / (sigma * sigma)
        along = tree_sum_of_tensor(basis * norms) / 2 - overlaps.T
        slope = -half * sigma / root
        shift = weight * weight * half / (sigma * root) * along
        std_delta = -(weight * weight * eigenvalues) / (root + sigma)
        half_logdet = tree_sum_of_tensor(_ExactLogarithm.apply(ratio)) / 2  # type: ignore[no-untyped-call]
        made.append(tuple(part.to(dtype) for part in (std_delta, slope, shift, half_logdet)))
    std_deltas, slopes, shifts, half_logdet = map(torch.stack, zip(*made, strict=True))
    return ExactTables(parts[0].to(dtype), std_deltas, slopes, shifts, half_logdet)
