"""A mixture in float64, and the tables it becomes when it is bound to the steps of a sampler."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context
from itertools import accumulate

import torch
from torch import Tensor

from gmmkernel._checks import check_number
from gmmkernel._sqrt import square_root
from gmmkernel.backends.constants import MAX_COMPONENTS, Column
from gmmkernel.mixtures.exact import Directions, exact_tables
from gmmkernel.ops.tables import MixtureTables

LARGEST_RHO = 1 - 1e-6
"""So that no rounding of float32 rows makes the offsets too large for their noise."""

_WORDS = 2.0**32
_WEIGHT_SUM_ERROR = 1e-9
_SCALE_ERROR = 1e-5
_ROUNDING = 2.0**-40


@dataclass(frozen=True, eq=False)
class Mixture:
    """The mixture of a transition, whatever the noise schedule.

        x_s ~ sum_k pi_k N(mean + w delta_k, diag(max(sigma^2 - w^2 r_k, 0)))

    where sigma and w are the step's `Column.SIGMA` and `Column.OFFSET`. `gaussian_mixture` makes the
    published kinds; your own offsets, learned ones included, go in as tensors (they may require gradients). Where
    moments are matched exactly, the covariance of component k is sigma^2 I - w^2 Delta_k instead.

    Attributes:
        variant: what the mixture is called in reports.
        scale: s_off, the offset scale that reports refer to, > 0 or 0 for no offset.
        weights: float64 [K] on the CPU, the pi_k: positive, sum 1.
        offsets: float64 [S or 1, K, D], the delta_k; one entry is shared by all steps.
        reductions: float64 [S or 1, 1 or K, R], the r_k: variance to remove from the first R <= D elements,
            one row for all components or one each; nothing is removed from the other elements.
        directions: where moments are matched exactly, eigenvectors and eigenvalues of the Delta_k. R = 0 then.
        rho: where the scale follows the noise, share of the largest scale that each step allows: w is rho sigma over
            the root of the Delta_k's largest eigenvalue, for the offsets as they are here (`scaled`).

    Raises:
        TypeError: a tensor is not float64, or `rho` no number.
        ValueError: shapes do not fit, K is above 1024, `scale` is negative or not finite, the weights are not positive
            with sum 1, or there are directions of other offsets, or beside reductions or offsets that require a
            gradient, or `rho` is not from 0 to 0.999999 or without directions.
    """

    variant: str
    scale: float
    weights: Tensor
    offsets: Tensor
    reductions: Tensor
    directions: Directions | None = None
    rho: float | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "offsets", "reductions"):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: expected a torch.float64 tensor, got {got}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"scale: expected a finite number >= 0, got {self.scale!r}")
        count = _check_weights(self.weights)
        shape = list(self.offsets.shape)
        if len(shape) != 3 or shape[0] < 1 or shape[1] != count or shape[2] < 1:
            raise ValueError(f"offsets: expected shape [S or 1, {count}, D] with D >= 1, got {shape}")
        if (
            self.reductions.ndim != 3
            or self.reductions.shape[0] not in (1, self.offsets.shape[0])
            or self.reductions.shape[1] not in (1, count)
            or self.reductions.shape[2] > self.elements
        ):
            raise ValueError(
                f"reductions: expected shape [{shape[0]} or 1, 1 or {count}, R] with R <= {self.elements}, "
                f"got {list(self.reductions.shape)}"
            )
        if self.rho is not None:
            check_rho(self.rho)
            if self.directions is None:
                raise ValueError(f"rho: expected None without directions, got {self.rho!r}")
        if self.directions is not None:
            self._check_directions(self.directions)

    def _check_directions(self, directions: Directions) -> None:
        if self.reductions.shape[2]:
            raise ValueError(
                f"reductions: expected R = 0 beside directions, got {list(self.reductions.shape)}"
            )
        if self.offsets.requires_grad:
            raise ValueError(
                "offsets: expected a tensor that requires no gradient beside directions, which would not follow it"
            )
        norms = list(directions.norms.shape)
        if norms[0] not in (1, self.offsets.shape[0]) or norms[1] != self.n_components:
            raise ValueError(
                f"directions: expected those of K = {self.n_components} offsets for "
                f"{self.offsets.shape[0]} steps or 1, got those of {norms[1]} for {norms[0]}"
            )

    @property
    def n_components(self) -> int:
        """K, the number of components."""
        return self.weights.shape[0]

    @property
    def elements(self) -> int:
        """D, the number of elements of one sample."""
        return self.offsets.shape[2]

    @property
    def n_steps(self) -> int | None:
        """S, the number of steps it is made for, or None when all steps share it."""
        return None if self.offsets.shape[0] == 1 else self.offsets.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        tensors = [self.weights, self.offsets, self.reductions]
        if self.directions is not None:
            tensors += vars(self.directions).values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def scaled(self, coefficients: Tensor) -> Tensor:
        """Return the rows of a sampler with the scale of the offsets that goes with each step's noise.

        Where the mixture has a `rho`, `Column.OFFSET` becomes rho sigma / sqrt(largest eigenvalue), 0 at steps without
        noise, and stays 0 where it is: the scale follows the noise in whatever units the rows are. Other mixtures'
        rows are as they were.

        Args:
            coefficients: float32 or float64 [S, 16], as for `bind`, which takes the result.

        Raises:
            TypeError: `coefficients` has another dtype.
            ValueError: it has another shape, or not one row for each step of the mixture.
        """
        check_coefficients(coefficients, self.n_steps)
        if self.rho is None or self.directions is None:
            return coefficients
        largest = self.directions.eigenvalues.amax((1, 2)).to(coefficients.device)
        sigma = coefficients[:, Column.SIGMA].double()
        factors = (self.rho * sigma / square_root(largest)).to(coefficients.dtype)
        columns = torch.arange(len(Column), device=coefficients.device)
        replaced = (columns == Column.OFFSET) & (coefficients[:, Column.OFFSET, None] != 0)
        return torch.where(replaced, factors[:, None], coefficients)

    def bind(self, coefficients: Tensor) -> MixtureTables:
        """Make the tables of a sampler's steps, with std_k = sqrt(max(sigma^2 - w^2 r_k, 0)).

        Computed in float64 and rounded once; gradients flow from the tables to `offsets`, `reductions` and
        `coefficients` (where the variance is clipped, the gradient is 0). The coefficients' values decide on
        the shapes, so a CUDA tensor is read back here, once per sampler and not per step.

        Args:
            coefficients: float32 or float64 [S, 16], one row per step, columns in the order of `Column`.

        Returns:
            The tables in the dtype and on the device of `coefficients`. Entries that all steps share are kept
            once. With sigma = 0 at every step there is no variance to remove: R = 0, and no noise is drawn.

        Raises:
            TypeError: `coefficients` has another dtype.
            ValueError: it has another shape, or not one row for each step of the mixture; or moments are to be matched
                exactly, and a step has too little noise for that, or not the scale that goes with `rho`.
        """
        check_coefficients(coefficients, self.n_steps)
        dtype, device = coefficients.dtype, coefficients.device
        tables = MixtureTables(
            cdf=cdf(self.weights)[None].to(device),
            offsets=self.offsets.to(device, dtype),
            std=self._std(coefficients),
            weights=self.weights[None].to(device, dtype),
        )
        if self.directions is None:
            return tables
        self.check_noise(coefficients)
        levels = coefficients[:, [Column.SIGMA, Column.OFFSET]].double()
        found = exact_tables(self.directions, levels, dtype)
        return tables._replace(**found._asdict())

    def check_noise(self, coefficients: Tensor) -> None:
        """Check that every step has the noise to match moments exactly, where they are to be.

        Args:
            coefficients: float32 or float64 [S, 16], as for `bind`.

        Raises:
            ValueError: a step has too little noise for the scale, or not the scale that goes with `rho`.
        """
        directions = self.directions
        if directions is None:
            return
        sigma, weight = coefficients[:, [Column.SIGMA, Column.OFFSET]].detach().double().unbind(1)
        largest = directions.eigenvalues.amax((1, 2)).to(coefficients.device).sqrt()
        if self.rho is not None:
            expected = self.rho * sigma / largest
            is_off = (weight != 0) & ((weight - expected).abs() > _SCALE_ERROR * expected)
            if bool(is_off.any()):
                row = int(is_off.nonzero()[0])
                raise ValueError(
                    f"coefficients: expected rows that Mixture.scaled has given the scale of rho = {self.rho:g}, "
                    f"OFFSET {float(expected[row]):g} or 0 in row {row}, got {float(weight[row]):g}"
                )
            return
        allowed = torch.where(weight == 0, math.inf, sigma / (weight.abs() * largest))
        if bool((allowed < 1 - _ROUNDING).any()):
            row = int(allowed.argmin())
            limit = self.scale * float(allowed[row]) * (1 + _ROUNDING / 2)
            limit = float(Context(prec=6, rounding=ROUND_DOWN).create_decimal(limit))
            raise ValueError(
                f"scale: expected at most {limit:g}, with which the offsets add all the "
                f"variance of the step with the least noise, row {row} with sigma = {float(sigma[row]):g}, "
                f"got {self.scale:g} (rho gives each step its own scale)"
            )

    def _std(self, coefficients: Tensor) -> Tensor:
        levels = coefficients[:, [Column.SIGMA, Column.OFFSET]].double()
        if not coefficients.requires_grad:
            if bool((levels[:, 0] == 0).all()):
                return coefficients.new_empty(1, 1, 0)
            if self.reductions.shape[0] == 1 and bool((levels == levels[0]).all()):
                levels = levels[:1]
        reductions = self.reductions.to(coefficients.device).expand(levels.shape[0], -1, -1)
        rows = [_deviation(level, reduction) for level, reduction in zip(levels, reductions, strict=True)]
        return torch.stack([row.to(coefficients.dtype) for row in rows])


def _deviation(level: Tensor, reduction: Tensor) -> Tensor:
    """Return sqrt(max(sigma^2 - w^2 r, 0)), with a zero gradient where it is clipped; NaN stays NaN."""
    sigma, weight = level
    variance = sigma * sigma - (weight * weight) * reduction
    clipped = variance <= 0
    return torch.where(clipped, 0.0, square_root(torch.where(clipped, 1.0, variance)))


def check_rho(rho: float) -> float:
    """Return a share of the largest scale that a step's noise allows, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not from 0 to `LARGEST_RHO`.
    """
    share = check_number("rho", rho)
    if not 0 <= share <= LARGEST_RHO:
        raise ValueError(f"rho: expected a number from 0 to {LARGEST_RHO:g}, got {share!r}")
    return share


def cdf(weights: Tensor) -> Tensor:
    """Return what a random word is compared with to draw a component: floor(2^32 cdf_k) for k < K - 1.

    Component k is the number of values of the cdf that a uniform 32-bit word reaches. cdf_k = pi_0 + ... + pi_k,
    summed in order.

    Args:
        weights: float64 [K] on the CPU, positive, sum 1.

    Returns:
        int64 [K - 1], ascending, at most 2^32 (which no word reaches).

    Raises:
        TypeError: `weights` is not a float64 tensor.
        ValueError: it is not 1-D with 1 to 1024 positive numbers whose sum is 1.
    """
    if not isinstance(weights, Tensor) or weights.dtype != torch.float64:
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a torch.float64 tensor, got {got}")
    _check_weights(weights)
    cumulative = accumulate(weights.tolist()[:-1], operator.add)
    return torch.tensor([math.floor(_WORDS * value) for value in cumulative], dtype=torch.int64, device="cpu")


def _check_weights(weights: Tensor) -> int:
    if weights.device.type != "cpu":
        raise ValueError(f"weights: expected a tensor on the CPU, got {weights.device}")
    if weights.ndim != 1 or not 1 <= weights.shape[0] <= MAX_COMPONENTS:
        raise ValueError(
            f"weights: expected shape [K] with K from 1 to {MAX_COMPONENTS}, got {list(weights.shape)}"
        )
    values = weights.tolist()
    for k, weight in enumerate(values):
        if not weight > 0:
            raise ValueError(f"weights: expected positive numbers, got {weight} at index {k}")
    if not abs(math.fsum(values) - 1) <= _WEIGHT_SUM_ERROR:
        raise ValueError(f"weights: expected numbers with sum 1, got sum {math.fsum(values)}")
    return len(values)


def check_coefficients(coefficients: Tensor, n_steps: int | None) -> None:
    """Accept float32 or float64 [S, 16] coefficients, with S = `n_steps` if that is given.

    Raises:
        TypeError: the dtype is another.
        ValueError: the shape is another.
    """
    if not isinstance(coefficients, Tensor) or coefficients.dtype not in (torch.float32, torch.float64):
        got = coefficients.dtype if isinstance(coefficients, Tensor) else type(coefficients).__name__
        raise TypeError(f"coefficients: expected a torch.float32 or torch.float64 tensor, got {got}")
    shape = list(coefficients.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != len(Column):
        raise ValueError(f"coefficients: expected shape [S, {len(Column)}] with S >= 1, got {shape}")
    if n_steps is not None and shape[0] != n_steps:
        raise ValueError(
            f"coefficients: expected {n_steps} rows, one for each step of the mixture, got {shape[0]}"
        )
