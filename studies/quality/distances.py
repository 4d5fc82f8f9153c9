"""Distances of samples from data: of projections, of kernel means, of the first two moments, of the modes' shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PROJECTIONS = 128
"""Random directions of the sliced Wasserstein distance."""

KERNEL_POINTS = 2000
"""Points of the reference in the maximum mean discrepancy."""


class Reference:
    """Data to compare samples with.

    Args:
        points: float64 [R, D], a sample of the data.
        mean: [D], the data's mean; None: that of the points.
        cov: [D, D], the data's covariance; None: that of the points.
    """

    def __init__(self, points: Tensor, mean: Tensor | None = None, cov: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self._mean = points.mean(0) if mean is None else mean
        self._cov = torch.cov(points.T) if cov is None else cov
        values, vectors = torch.linalg.eigh(self._cov)
        self._root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        directions = torch.randn(
            points.shape[1], PROJECTIONS, generator=generator, dtype=torch.float64
        ) / math.sqrt(points.shape[1])
        self._directions = directions
        self._projected = (points @ directions).sort(0).values
        chosen = points[torch.randperm(len(points), generator=generator)[:KERNEL_POINTS]]
        self._kernel_points = chosen
        between = torch.pdist(chosen[:500]).square()
        self._width = float(between.median())
        self._own = _mean_without_diagonal(self._kernel(chosen, chosen))

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Return every distance of samples float64 [N, D]."""
        return {
            "sliced W2": self.sliced_wasserstein(samples),
            "MMD": self.maximum_mean_discrepancy(samples),
            "Frechet": self.frechet(samples),
        }

    def sliced_wasserstein(self, samples: Tensor) -> float:
        """2-Wasserstein distance of projections to random directions of length about 1: root of the mean of its square.

        The quantile functions of both samples are compared at the middles of equal parts.
        """
        projected = (samples @ self._directions).sort(0).values
        count = min(len(projected), len(self._projected))
        at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        ours, theirs = (values[(at * len(values)).long()] for values in (projected, self._projected))
        return math.sqrt(float((ours - theirs).square().mean()))

    def maximum_mean_discrepancy(self, samples: Tensor) -> float:
        """Unbiased estimate of the squared MMD (Gretton et al. 2012) in thousandths, Gaussian kernel.

        The kernel's variance is half the median squared distance of the data's points.
        """
        chosen = samples[:KERNEL_POINTS]
        own = _mean_without_diagonal(self._kernel(chosen, chosen))
        cross = float(self._kernel(chosen, self._kernel_points).mean())
        return 1000 * (own + self._own - 2 * cross)

    def frechet(self, samples: Tensor) -> float:
        """Squared Frechet distance of Gaussians with the samples' and the data's moments, per element.

        The same as `gmmkernel.digits.frechet_distance`, in a form that is fast in many dimensions: the trace of the
        root is the sum of the singular values of the centred samples times the root of the data's covariance.
        """
        mean = samples.mean(0)
        centred = (samples - mean) / math.sqrt(len(samples) - 1)
        scaled = centred @ self._root
        cross = torch.linalg.eigvalsh(scaled.T @ scaled).clamp(min=0).sqrt().sum()
        total = (mean - self._mean).square().sum() + centred.square().sum() + self._cov.trace() - 2 * cross
        return float(total) / samples.shape[1]

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.exp(torch.cdist(left, right).square() / -self._width)


def _mean_without_diagonal(kernel: Tensor) -> float:
    count = len(kernel)
    return float((kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1)))
