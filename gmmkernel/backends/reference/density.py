"""The log-density of a transition of one sample, and its gradients: the specification for every backend.

    log p(y | x) = log sum_k pi_k N(y; mean + w delta_k, diag(s_k^2))

With a = y - mean, d_k = a - w delta_k and t_k = d_k / s_k, the sum over elements is taken of what a component differs
in from a Gaussian without offset, b = a / s_0: these differences are small where the sums themselves are of the order
of D, and decide on the components' shares.

    E_k = sum (t_k - b) (t_k + b) / 2 + log s_k - log s_0        B = sum b^2 / 2 + log s_0
    log p = log sum_k exp(log pi_k - E_k) - B - D log(2 pi) / 2

Where a component's covariance is not diagonal it has a penalty C_k besides, which is subtracted like E_k.

Where a standard deviation is 0 there is no density, and all of this is NaN. A sample whose density a loss does not
depend on, the derivative with respect to it being 0, has gradients of 0 all the same: they are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gmmkernel.backends.constants import Column
from gmmkernel.backends.reference.arithmetic import Array, fma
from gmmkernel.backends.reference.elementary import exp, log
from gmmkernel.backends.reference.sums import tree_sum

HALF_LOG_2_PI = float.fromhex("0x1.d67f1c864beb5p-1")


@dataclass(frozen=True)
class Density:
    """A sample's log-density.

    Attributes:
        log_prob: a scalar in the arithmetic's dtype (float32 or float64).
        responsibilities: [K], each component's share of the density; empty without a mixture.
        energies: [K], the E_k; empty without a mixture.
    """

    log_prob: Array
    responsibilities: Array
    energies: Array


@dataclass(frozen=True)
class DensityGradients:
    """Derivatives of a sample's log-density, times that of a loss with respect to it.

    Attributes:
        mean: [D]; that of the sample whose density it is has the other sign.
        sigma_terms: [D], each element's part of the derivative with respect to the row's `Column.SIGMA`.
        offset_terms: [D], the same of `Column.OFFSET`.
        offset_weights: [K], what the rows of `offsets_unit` are multiplied with as they are added up.
        offset_units: [K, D].
        std_weights: [K], the same for the std.
        std_units: [K, D].
        weights: [K].
    """

    mean: Array
    sigma_terms: Array
    offset_terms: Array
    offset_weights: Array
    offset_units: Array
    std_weights: Array
    std_units: Array
    weights: Array


def deviations(x: Array, row: Array, std: Array) -> Array:
    """Return the standard deviations [1 or K, D]: the table's, and the row's sigma from element R on."""
    full = np.full((max(1, std.shape[0]), x.size), row[Column.SIGMA], dtype=x.dtype)
    full[:, : std.shape[1]] = std
    return full


def base_terms(a: Array, row: Array) -> Array:
    """Return what B is the sum of without a mixture, [D]."""
    s = deviations(a, row, np.empty((1, 0), a.dtype))[0]
    b = a * (a.dtype.type(1) / s)
    terms: Array = fma(a.dtype.type(0.5) * b, b, log(s))
    return terms


def log_density(
    a: Array, row: Array, weights: Array, offsets: Array, std: Array, penalties: Array | None = None
) -> Density:
    """Return the log-density of one flattened sample.

    Args:
        a: [D] the sample less the transition's mean before any offset; float32 or float64, like every array here.
        row: [16] coefficients in the order of `Column`.
        weights: [K] of the mixture; K = 0 without one.
        offsets: [K, D].
        std: [1 or K, R], or [1, 0] without a mixture.
        penalties: [K], the C_k.
    """
    one = a.dtype.type(1)
    half = a.dtype.type(0.5)
    s = deviations(a, row, std)
    log_s = log(s)
    inverse = one / s
    b = a * inverse[0]
    base = tree_sum(fma(half * b, b, log_s[0]))
    total = a.dtype.type(0)
    responsibilities = energy = weights
    if weights.size > 0:
        t = _offset_from(a, row, offsets) * inverse
        energy = tree_sum(fma(half * (t - b), t + b, log_s - log_s[0]))
        level = log(weights) - energy
        if penalties is not None:
            level = level - penalties
        largest = np.max(level)
        parts = exp(level - largest)
        sum_of_parts = tree_sum(parts)
        total = largest + log(np.atleast_1d(sum_of_parts))[0]
        responsibilities = parts / sum_of_parts
    dimension = a.dtype.type(a.size)
    log_prob = fma(-dimension, a.dtype.type(HALF_LOG_2_PI), total - base)
    return Density(log_prob, responsibilities, energy)


def log_density_backward(
    grad: Array, responsibilities: Array, a: Array, row: Array, weights: Array, offsets: Array, std: Array
) -> DensityGradients:
    """Return the gradients of one flattened sample.

    Sums over components are taken in their order, from 0, by one fma each.

    Args:
        grad: scalar, derivative of the loss with respect to the log-density.
        responsibilities: [K], as `log_density` gave them.
        a: as `log_density` has it, like those that follow.
        row: the same.
        weights: the same.
        offsets: the same.
        std: the same.
    """
    one = a.dtype.type(1)
    zero = np.zeros_like(a)
    inverse = one / deviations(a, row, std)
    d = _offset_from(a, row, offsets) if weights.size > 0 else a[None]
    shares = responsibilities if weights.size > 0 else np.ones(1, a.dtype)
    inverse = np.broadcast_to(inverse, d.shape)
    t = d * inverse
    units = t * inverse
    std_units = fma(t, t, -one) * inverse
    mean, sigma_terms, offset_terms = zero, zero, zero
    for k in range(d.shape[0]):
        mean = fma(shares[k], units[k], mean)
        sigma_terms = fma(shares[k], std_units[k], sigma_terms)
        if weights.size > 0:
            offset_terms = fma(shares[k], units[k] * offsets[k], offset_terms)
    sigma_terms = grad * sigma_terms
    sigma_terms[: std.shape[1]] = 0
    parts = grad * responsibilities
    return DensityGradients(
        mean=grad * mean,
        sigma_terms=sigma_terms,
        offset_terms=grad * offset_terms,
        offset_weights=parts * row[Column.OFFSET],
        offset_units=units,
        std_weights=parts,
        std_units=std_units,
        weights=parts / weights,
    )


def _offset_from(a: Array, row: Array, offsets: Array) -> Array:
    """Return a - w delta_k, [K, D]; a where the row switches the offset off."""
    if row[Column.OFFSET] == 0:
        return np.broadcast_to(a, offsets.shape)
    return fma(-row[Column.OFFSET], offsets, a)
