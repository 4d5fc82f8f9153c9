"""How far a mixture transition is from keeping the mean and covariance of the Gaussian step it replaces.

The published variants are called moment matching. They are so only while sigma^2 covers what the offsets add,
and of the covariance they keep no more than the diagonal: `moment_report` says what is left, step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.mixtures import Mixture
from gmmkernel.mixtures.mixture import check_coefficients

__all__ = ["TOLERANCE", "MomentReport", "moment_report"]

TOLERANCE = 1e-6
"""Relative error up to which a moment counts as kept: about what float32 coefficients resolve."""


@dataclass(frozen=True, eq=False)
class MomentReport:
    """Moments of sum_k pi_k N(w delta_k, diag(max(sigma^2 - w^2 r_k, 0))) against those of N(0, sigma^2 I).

    Where moments are matched exactly, the covariances are sigma^2 I - w^2 Delta_k instead. w is the step's
    `Column.OFFSET`; the mixture has the scale s, D elements and S steps. Relative figures are infinite where there is
    an error but nothing to compare it with, and 0 where there is no error.

    Attributes:
        variant: the mixture's name.
        scale: s, in units of the sample.
        elements: D.
        sigma: float64 [S] on the CPU, like all that follow: standard deviation of the Gaussian step.
        offset_weight: w.
        mean_error: norm of the mixture's mean, over w s.
        variance_error: largest error of an element's variance, without sign.
        variance_error_relative: the same over sigma^2.
        variance_error_mean: error of an element's variance, without sign, averaged over the elements.
        variance_error_mean_relative: the same over sigma^2.
        excess_variance: error of an element's variance, with its sign, averaged over the elements (trace /
            D): what the step adds. Plain DDIM plus isotropic noise of this variance is the control to compare
            with.
        clipped: share of the entries of r with w^2 r > sigma^2, where less is removed than the offsets add.
        off_diagonal: Frobenius norm of the covariance without its diagonal, resolved to about 1e-8 of the
            whole.
        off_diagonal_relative: the same over sigma^2 sqrt(D), the norm of the Gaussian's covariance.
    """

    variant: str
    scale: float
    elements: int
    sigma: Tensor
    offset_weight: Tensor
    mean_error: Tensor
    variance_error: Tensor
    variance_error_relative: Tensor
    variance_error_mean: Tensor
    variance_error_mean_relative: Tensor
    excess_variance: Tensor
    clipped: Tensor
    off_diagonal: Tensor
    off_diagonal_relative: Tensor

    @property
    def matched(self) -> Tensor:
        """Bool [S]: the mean and every element's variance are kept to 1e-6. Correlations do not count."""
        return (self.mean_error <= TOLERANCE) & (self.variance_error_relative <= TOLERANCE)

    @property
    def control_sigma(self) -> Tensor:
        """Standard deviation [S] of isotropic noise of the variance per element that the mixture's step has.

        What to compare with: plain DDIM with this noise (`DDIMSampler.with_sigma`) has all that a mixture gives but
        its shape.
        """
        return (self.sigma.square() + self.excess_variance).clamp_min(0).sqrt()

    @property
    def verdict(self) -> str:
        """One line: at which steps the moments are not kept, and why."""
        if not bool(self.offset_weight.any()):
            return "no offset at any step: the Gaussian step"
        reasons = []
        mean_off = self.mean_error > TOLERANCE
        if bool(mean_off.any()):
            error = float(self.mean_error.max())
            reasons.append(f"mean off by up to {error:.2g} of the scale{_at(mean_off)}")
        variance_off = self.variance_error_relative > TOLERANCE
        too_small = variance_off & (self.clipped > 0)
        if bool(too_small.any()):
            excess = float(self.excess_variance[too_small].max())
            added = f"excess variance up to {excess:.2g} per element"
            reasons.append(f"sigma^2 too small for the offsets{_at(too_small)}, {added}")
        uneven = variance_off & (self.clipped == 0)
        if bool(uneven.any()):
            error = float(self.variance_error_relative[uneven].max())
            reasons.append(f"variance of single elements off by up to {error:.2g} of sigma^2{_at(uneven)}")
        correlated = (self.off_diagonal_relative > TOLERANCE) & ~too_small
        if bool(correlated.any()):
            norm = float(self.off_diagonal_relative[correlated].max())
            reasons.append(f"correlations up to {norm:.2g} of the covariance's norm remain{_at(correlated)}")
        if bool(self.matched.all()):
            return "; ".join(["mean and variance of every element matched at all steps", *reasons])
        return f"not moment matched{_at(~self.matched)}: {'; '.join(reasons)}"

    def __str__(self) -> str:
        """Return a table with a line per step, and the verdict."""
        relative = self.scale / math.sqrt(self.elements)
        lines = [
            f"{self.variant} mixture, D = {self.elements}, scale {self.scale:g} = {relative:.3g} sqrt(D)",
            " step     sigma      w   mean err.   var. err.  /sigma^2  mean |.|  /sigma^2   added var. "
            " clipped  off-diag.  relative",
        ]
        lines += [
            f"{step:5d} {self.sigma[step]:9.4g} {self.offset_weight[step]:6.3g} "
            f"{self.mean_error[step]:11.2e} "
            f"{self.variance_error[step]:11.2e} {self.variance_error_relative[step]:9.1e} "
            f"{self.variance_error_mean[step]:9.1e} {self.variance_error_mean_relative[step]:9.1e} "
            f"{self.excess_variance[step]:12.2e} {self.clipped[step]:8.1%} "
            f"{self.off_diagonal[step]:10.1e} {self.off_diagonal_relative[step]:9.1e}"
            for step in range(len(self.sigma))
        ]
        return "\n".join([*lines, self.verdict])


def moment_report(mixture: Mixture, coefficients: Tensor) -> MomentReport:
    """Compare the moments of a mixture transition with those of the Gaussian step, clipping included.

    The covariance is diag(sum_k pi_k std_k^2) + w^2 sum_k pi_k (delta_k - m)(delta_k - m)^T with m = sum_k
    pi_k delta_k, less w^2 sum_k pi_k Delta_k where moments are matched exactly; the norm of its off-diagonal
    part comes from Gram matrices, so nothing D x D is made.

    Args:
        mixture: the mixture.
        coefficients: float32 or float64 [S, 16], one row per step, as for `Mixture.bind`.

    Returns:
        The figures for each step; `print` shows them as a table.

    Raises:
        TypeError: `mixture` is not a Mixture, or `coefficients` has another dtype.
        ValueError: it has another shape, or not one row for each step of the mixture; or moments are to be matched
            exactly, and there is no such mixture: see `Mixture.bind`.
    """
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture: expected a Mixture, got {type(mixture).__name__}")
    check_coefficients(coefficients, mixture.n_steps)
    mixture.check_noise(coefficients)
    levels = coefficients.detach().to("cpu", torch.float64, copy=True)
    sigma, weight = levels[:, Column.SIGMA], levels[:, Column.OFFSET]
    pi = mixture.weights
    offsets = [
        _OffsetMoments.of(delta, pi, _removed(mixture, step, delta))
        for step, delta in enumerate(mixture.offsets.detach().cpu())
    ]
    reductions = mixture.reductions.detach().cpu()

    added = [offsets[s % len(offsets)] for s in range(len(levels))]
    errors = levels.new_zeros(len(levels), 4)
    for s in range(len(levels)):
        square, offset_square = sigma[s] * sigma[s], weight[s] * weight[s]
        left = square - offset_square * reductions[s % len(reductions)]
        error = offset_square * added[s].variances
        shares = pi if len(left) > 1 else pi.new_ones(1)
        error[: left.shape[1]] += shares @ (left.clamp(min=0) - square)
        clipped = (left < 0).double().mean() if left.numel() else levels.new_zeros(())
        errors[s] = torch.stack([error.abs().max(), error.abs().mean(), error.mean(), clipped])
    largest, average, excess, clipped = errors.unbind(1)
    mean_norms = levels.new_tensor([moments.mean_norm for moments in added])
    mean_norm = weight.abs() * mean_norms
    off_diagonals = levels.new_tensor([moments.off_diagonal for moments in added])
    off_diagonal = weight * weight * off_diagonals
    return MomentReport(
        variant=mixture.variant,
        scale=mixture.scale,
        elements=mixture.elements,
        sigma=sigma,
        offset_weight=weight,
        mean_error=_ratio(mean_norm, weight.abs() * mixture.scale),
        variance_error=largest,
        variance_error_relative=_ratio(largest, sigma * sigma),
        variance_error_mean=average,
        variance_error_mean_relative=_ratio(average, sigma * sigma),
        excess_variance=excess,
        clipped=clipped,
        off_diagonal=off_diagonal,
        off_diagonal_relative=_ratio(off_diagonal, sigma * sigma * math.sqrt(mixture.elements)),
    )


def _removed(mixture: Mixture, step: int, delta: Tensor) -> Tensor:
    """Return x_r [R, D] such that sum_r x_r x_r^T is the covariance sum_k pi_k Delta_k that is removed exactly."""
    if mixture.directions is None:
        return delta.new_empty(0, delta.shape[1])
    basis, eigenvalues = (
        table[step % len(table)] for table in (mixture.directions.basis, mixture.directions.eigenvalues)
    )
    shares = mixture.weights if len(eigenvalues) > 1 else mixture.weights.new_ones(1)
    return (shares @ eigenvalues).sqrt()[:, None] * (basis @ delta)


@dataclass(frozen=True)
class _OffsetMoments:
    """Moments of an offset delta_k drawn with the mixture's weights, less the covariance that is removed exactly."""

    mean_norm: float
    variances: Tensor
    off_diagonal: float

    @classmethod
    def of(cls, delta: Tensor, pi: Tensor, removed: Tensor) -> _OffsetMoments:
        mean = pi @ delta
        centred = pi.sqrt()[:, None] * (delta - mean)
        variances = centred.square().sum(0) - removed.square().sum(0)
        norms = [
            (a @ b.T).square().sum() for a, b in ((centred, centred), (removed, removed), (centred, removed))
        ]
        off_diagonal = norms[0] + norms[1] - 2 * norms[2] - variances.square().sum()
        return cls(float(mean.norm()), variances, math.sqrt(max(float(off_diagonal), 0.0)))


def _ratio(error: Tensor, reference: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / reference)


def _at(steps: Tensor) -> str:
    """Return " at steps 0-3, 5" for the steps that are True."""
    chosen = steps.nonzero().flatten().tolist()
    runs: list[list[int]] = []
    for step in chosen:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    ranges = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f" at step{'s' if len(chosen) > 1 else ''} {', '.join(ranges)}"
