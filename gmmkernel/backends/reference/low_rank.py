"""Exact moment matching: what a transition has beyond diagonal covariances. The specification for every backend.

A component of covariance sigma^2 I - sum_r lambda_r q_r q_r^T, with orthonormal q_r, is drawn as

    x_s = mean + w delta_c + sigma z + sum_r (sqrt(sigma^2 - lambda_r) - sigma) (q_r . z) q_r

The directions are combinations of the offsets, q_r = sum_l basis_rl delta_l, so that no table but the offsets has D
entries: p_l = delta_l . z is summed over the elements by the fixed rule, and what is added to mean + sigma z is
sum_l y_l delta_l with

    u_r = std_delta_r sum_l basis_rl p_l        y_l = [l = c] w + sum_r u_r basis_rl

Its density differs from that of covariance sigma^2 I by what depends on the same energies E_l (`density`), because the
coefficients of a direction add up to 0: q_r . (a - w delta_k) is linear in sum_l basis_rl E_l, where the E_l may all be
less by E_0.

Sums over components and directions are taken in their order by one fma each, from 0 or from what is said to come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gmmkernel.backends.reference.arithmetic import Array, fma
from gmmkernel.backends.reference.sums import tree_sum


@dataclass(frozen=True)
class StdDelta:
    """What removes the variance that the offsets add, for the component drawn.

    Attributes:
        offsets: [K, D].
        component: c.
        basis: [R, K], the directions as combinations of the offsets.
        factors: [R], sqrt(sigma^2 - lambda_r) - sigma.
    """

    offsets: Array
    component: int
    basis: Array
    factors: Array


@dataclass(frozen=True)
class Penalties:
    """What the density of each component has beyond that of covariance sigma^2 I.

    Attributes:
        basis: [R, K], the directions as combinations of the offsets.
        slopes: [1 or K, R].
        shifts: [K, R].
        half_logdet: [1 or K], half the logarithm of the determinant over that of sigma^2 I.
    """

    basis: Array
    slopes: Array
    shifts: Array
    half_logdet: Array


def offset_weights(noise: Array, weight: Array, std_delta: StdDelta) -> Array:
    """Return y [K], what each offset is multiplied with as they are added to the mean.

    Args:
        noise: [D], the standard normal noise of the sample.
        weight: w, the row's `Column.OFFSET`.
        std_delta: of the component drawn.
    """
    projections = tree_sum(std_delta.offsets * noise)
    u = np.zeros_like(std_delta.factors)
    for k, projection in enumerate(projections):
        u = fma(std_delta.basis[:, k], projection, u)
    u = std_delta.factors * u
    y = np.zeros_like(projections)
    y[std_delta.component] = weight
    for r in range(u.size):
        y = fma(std_delta.basis[r], u[r], y)
    return y


def penalties(energy: Array, of: Penalties) -> Array:
    """Return C [K], what is subtracted from the components' log-densities besides their energies.

    C_k = half_logdet_k + sum_r (slope_kr e_r + shift_kr)^2 with e_r = sum_l basis_rl (E_l - E_0).

    Args:
        energy: [K], the E_l.
        of: the row's.
    """
    e = np.zeros_like(of.basis[:, 0])
    for k in range(energy.size):
        e = fma(of.basis[:, k], energy[k] - energy[0], e)
    total = np.broadcast_to(of.half_logdet, energy.shape)
    h = fma(of.slopes, e, of.shifts)
    for r in range(e.size):
        total = fma(h[:, r], h[:, r], total)
    return total
