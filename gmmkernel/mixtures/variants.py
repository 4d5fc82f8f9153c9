"""The mixtures of DDIM-GMM: offsets at random or orthogonal, and the variance that goes with them.

Everything is float64 in a fixed order, from the package's own normals, without a matrix library, so that a
mixture has the same bits on every machine.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmkernel._checks import (
    INT64_MAX,
    INT64_MIN,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_numbers,
)
from gmmkernel.backends.constants import MAX_COMPONENTS, MAX_STEP, Stream
from gmmkernel.backends.reference.sums import tree_sum
from gmmkernel.mixtures.exact import (
    SCHEMES,
    Directions,
    directions_of,
    directions_of_equal,
    gram_of,
    gram_of_orthogonal,
    stack,
)
from gmmkernel.mixtures.mixture import Mixture, check_rho
from gmmkernel.ops import orthonormalize, standard_normal

VARIANTS = ("rand", "ortho", "ortho-vub", "exact", "rand-exact")
"""Names of the kinds of mixture."""

Float64 = NDArray[np.float64]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def gaussian_mixture(
    variant: str,
    *,
    elements: int,
    n_components: int = 8,
    scale: float = 1.0,
    n_steps: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    recentre: bool = False,
    scheme: str = "b",
    rho: float | None = None,
) -> Mixture:
    """Make a mixture of DDIM-GMM (Gabbur, arXiv 2311.04938).

    From O, K rows of D standard normals, with pi the weights and s the scale:

        rand       C_k = O_k - sum_l pi_l O_l;  delta_k = s C_k / |C_k|
        ortho      U = orthonormal rows with the span of O (Gram-Schmidt);  delta_k = s (U_k - sum_l pi_l U_l)
        both       r_k = diagonal of (1/(K pi_k)) sum_l pi_l delta_l delta_l^T
        ortho-vub  offsets of ortho; r_k = s^2 pi_i/(K pi_k) over i, largest first, on the first K elements:
                   upper bounds of the eigenvalues of that matrix. One shared by all steps is the paper's
                   VUB*.
        exact      offsets of ortho; the whole covariance is kept: sigma^2 I - w^2 Delta_k for component k, with
                   Delta_k = (1/(K pi_k)) sum_l pi_l delta_l delta_l^T (scheme b) or delta_k delta_k^T (scheme a)
        rand-exact the same with the offsets of rand, centred again

    The offsets of ortho have mean zero: sum_k pi_k delta_k = 0. Those of rand miss it slightly, as published,
    because they are normalised after centring; `recentre` subtracts what is left, and their norms then differ
    a little from s. The exact variants need w^2 Delta_k <= sigma^2 at every step, which `rho` sees to. K = 1 is
    the plain Gaussian step in every variant: no offset, nothing removed.

    What a step adds per element depends on s^2/D, so compare scales by s/sqrt(D). `moment_report` tells how
    far a mixture is from keeping mean and covariance at given steps.

    Args:
        variant: "rand", "ortho", "ortho-vub", "exact" or "rand-exact".
        elements: D, the number of elements of one sample (channels * height * width).
        n_components: K, from 1 to 1024; at most D for the orthogonal variants.
        scale: s, in units of the sample, >= 0; for the exact variants > 0, and 1 beside `rho`.
        n_steps: S for an independent mixture per step, whose noise counter has the step's index; None for one
            mixture (that of step 0) shared by all steps.
        weights: K positive numbers, divided by their sum here; None for equal weights.
        seed: 64-bit seed of the offsets.
        recentre: subtract sum_k pi_k delta_k from the offsets of "rand" (the paper does not).
        scheme: how the exact variants share out the covariance, "a" or "b" (the paper's).
        rho: for the exact variants, from 0 to 0.999999: each step's scale is this share of the largest that its noise
            allows, so offsets shrink with the noise (`Mixture.scaled`). With equal weights, orthogonal offsets and
            scheme b, that is s = rho sigma sqrt(K).

    Returns:
        The mixture; it holds 8 K D bytes of offsets for each of its steps, and as many of reductions at most.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown; `recentre` is given for offsets that are centred
            already; `scheme` or `rho` is given for a variant that is not exact; a weight is so small or so large
            that its component has no direction or no finite variance; an exact variant's scale is too small for
            directions in float32.
    """
    check_choice("variant", variant, VARIANTS)
    elements = check_integer("elements", elements, 1)
    n_components = check_integer("n_components", n_components, 1, MAX_COMPONENTS)
    is_exact, is_random = variant.endswith("exact"), variant.startswith("rand")
    if not is_random and n_components > elements:
        raise ValueError(
            f"n_components: expected at most elements = {elements} for variant={variant!r}, "
            f"whose offsets are orthogonal, got {n_components}"
        )
    scale = check_number("scale", scale, low=0)
    if n_steps is not None:
        n_steps = check_integer("n_steps", n_steps, 1, MAX_STEP + 1)
    seed = check_integer("seed", seed, INT64_MIN, INT64_MAX)
    recentre = check_flag("recentre", recentre)
    if recentre and variant != "rand":
        raise ValueError(
            f"recentre: expected False for variant={variant!r}, whose offsets have mean zero, got True"
        )
    rho = _check_exact(is_exact, variant, scale, scheme, rho)
    pi = _normalised(weights, n_components)

    steps = range(1 if n_steps is None else n_steps)
    offsets = np.zeros((len(steps), n_components, elements))
    if n_components > 1:
        for step in steps:
            noise = _noise(seed, step, n_components, elements)
            if is_random:
                offsets[step] = scale * _random_directions(noise, pi, recentre or is_exact)
            else:
                offsets[step] = scale * _orthogonal_directions(noise, pi)
    if n_components == 1 or is_exact:
        reductions = np.zeros((1, 1, 0))
    elif variant == "ortho-vub":
        reductions = _eigenvalue_bounds(scale, pi)[None]
    else:
        reductions = np.stack([_diagonals(offsets[step], pi) for step in steps])
    # Without a copy: np.abs would double the memory that a mixture takes. NaN comes first, and so stays.
    if not max(offsets.max(), -offsets.min(), reductions.max(initial=0)) <= _FLOAT32_MAX:
        raise ValueError(
            f"scale: expected offsets and variances that float32 holds, got scale = {scale:g} "
            f"with weights from {pi.min():g} to {pi.max():g}"
        )
    directions = _directions(offsets, pi, variant, scale, scheme) if is_exact and n_components > 1 else None
    if directions is not None and not _have_float32(directions):
        raise ValueError(
            f"scale: expected one for which float32 holds the offsets' directions, got scale = {scale:g} "
            f"with weights from {pi.min():g} to {pi.max():g}"
        )
    return Mixture(
        variant=variant,
        scale=scale,
        weights=torch.from_numpy(pi),
        offsets=torch.from_numpy(offsets),
        reductions=torch.from_numpy(reductions),
        directions=directions,
        rho=rho if n_components > 1 else None,
    )


def _check_exact(is_exact: bool, variant: str, scale: float, scheme: str, rho: float | None) -> float | None:
    """Check the options of exact moment matching; returns `rho`."""
    check_choice("scheme", scheme, SCHEMES)
    if not is_exact:
        for name, value, default in (("scheme", scheme, "b"), ("rho", rho, None)):
            if value != default:
                raise ValueError(
                    f"{name}: expected {default!r} for variant={variant!r}, which does not match moments exactly, "
                    f"got {value!r}"
                )
        return None
    if not scale > 0:
        raise ValueError(f"scale: expected a number > 0 for variant={variant!r}, got {scale:g}")
    if rho is not None:
        rho = check_rho(rho)
        if scale != 1:
            raise ValueError(f"scale: expected 1 beside rho, which gives each step its own, got {scale:g}")
    return rho


def _have_float32(directions: Directions) -> bool:
    """Whether there are directions, and float32 holds them."""
    if not directions.basis.numel() or not float(directions.eigenvalues.max()) > 0:
        return False
    return float(directions.basis.abs().max()) <= _FLOAT32_MAX


def _directions(offsets: Float64, pi: Float64, variant: str, scale: float, scheme: str) -> Directions:
    """Return the directions of the offsets [S, K, D]; those of orthogonal ones are the same at every step."""
    if variant == "rand-exact":
        return stack([directions_of(gram_of(of_step), pi, scheme) for of_step in offsets])
    if scheme == "b" and _are_equal(pi):
        return directions_of_equal(scale, len(pi))
    return directions_of(gram_of_orthogonal(scale, pi), pi, scheme)


def _normalised(weights: Sequence[float] | Tensor | None, count: int) -> Float64:
    if weights is None:
        return np.full(count, 1 / count)
    values: Float64 = check_numbers("weights", weights, count).numpy()
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise ValueError(f"weights: expected {count} positive finite numbers, got {values[k]} at index {k}")
    with np.errstate(over="ignore"):
        pi: Float64 = values / reduce(operator.add, values)
    if not np.all(pi > 0):
        raise ValueError("weights: expected numbers whose shares of their sum float64 holds, got shares of 0")
    return pi


def _noise(seed: int, step: int, count: int, elements: int) -> Float64:
    """Return O, float64 [K, D]: element k D + d of the offsets' stream."""
    seeds = torch.tensor([seed], dtype=torch.int64, device="cpu")
    drawn = standard_normal(seeds, (count, elements), step=step, stream=Stream.OFFSETS, dtype=torch.float64)
    noise: Float64 = drawn[0].numpy()
    return noise


def _random_directions(noise: Float64, pi: Float64, recentre: bool) -> Float64:
    centred = noise - _weighted_sum(pi, noise)
    norms = np.sqrt(tree_sum(centred * centred))
    if not norms.min() > 0:
        k = int(norms.argmin())
        raise ValueError(
            f"weights: expected components with offsets of their own, got share {pi[k]} at index {k}"
        )
    directions = centred / norms[:, None]
    return directions - _weighted_sum(pi, directions) if recentre else directions


def _orthogonal_directions(noise: Float64, pi: Float64) -> Float64:
    basis: Float64 = orthonormalize(torch.from_numpy(noise)).numpy()
    return basis - _weighted_sum(pi, basis)


def _weighted_sum(pi: Float64, rows: Float64) -> Float64:
    """Return sum_l pi_l rows_l, added in order: products and sums rounded one by one."""
    total: Float64 = pi[0] * rows[0]
    for weight, row in zip(pi[1:], rows[1:], strict=True):
        total += weight * row
    return total


def _diagonals(delta: Float64, pi: Float64) -> Float64:
    """Return (1/(K pi_k)) sum_l pi_l delta_l^2, [1, D] for equal weights, or [K, D]."""
    shared = _weighted_sum(pi, delta * delta)[None]
    return shared if _are_equal(pi) else (1 / (len(pi) * pi))[:, None] * shared


def _eigenvalue_bounds(scale: float, pi: Float64) -> Float64:
    """Return s^2 pi_i/(K pi_k), i by descending weight: [1, K] for equal weights, or [K, K]."""
    if _are_equal(pi):
        return np.full((1, len(pi)), scale * scale / len(pi))
    return scale * scale * (np.sort(pi)[::-1] / (len(pi) * pi)[:, None])


def _are_equal(pi: Float64) -> bool:
    return bool(np.all(pi == pi[0]))
