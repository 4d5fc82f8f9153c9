"""Digit-FID: how far the features of generated digits are from those of the 1,797 real ones.

It is the Frechet distance of Heusel et al. (2017, arXiv 1706.08500) between two Gaussians, fitted to features
of the package's own small classifier, not of Inception: its values cannot be compared with any published FID.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel.digits.classifier import DigitsClassifier
from gmmkernel.digits.loading import load_classifier, load_statistics

_CHUNK = 1024
"""Images per forward pass, so that memory does not grow with their number."""


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    |m_a - m_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2. The last trace is the sum of the singular values
    of A^1/2 B^1/2, and is computed so because nothing is squared on the way. The result is not clamped: equal
    Gaussians give zero up to a rounding error of either sign.

    Args:
        mean_a: float64 [D].
        cov_a: float64 [D, D], symmetric, no negative eigenvalue (beyond rounding).
        mean_b: float64 [D].
        cov_b: float64 [D, D], like `cov_a`.

    Returns:
        The distance, in squared units of the mean.

    Raises:
        TypeError: a tensor is not float64.
        ValueError: shapes do not fit, a value is not finite, or a covariance is not symmetric and positive
            semi-definite.
    """
    size = mean_a.shape[0] if mean_a.ndim == 1 else "D"
    for name, tensor, shape in (
        ("mean_a", mean_a, [size]),
        ("cov_a", cov_a, [size, size]),
        ("mean_b", mean_b, [size]),
        ("cov_b", cov_b, [size, size]),
    ):
        if tensor.dtype != torch.float64:
            raise TypeError(f"{name}: expected torch.float64, got {tensor.dtype}")
        if list(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    roots = _square_root("cov_a", cov_a) @ _square_root("cov_b", cov_b)
    cross = torch.linalg.svdvals(roots).sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def feature_statistics(images: Tensor, classifier: DigitsClassifier) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to the classifier's features of some images.

    Args:
        images: float32 [N, 1, 8, 8] in [-1, 1], N >= 2, on the classifier's device. Samples that leave the
            range have to be clamped by the caller, who then knows that they were.
        classifier: the network whose `features` are used.

    Returns:
        mean: float64 [64], on the CPU.
        cov: float64 [64, 64], unbiased (divided by N - 1), on the CPU.

    Raises:
        TypeError: `images` is not of the classifier's type.
        ValueError: the shape is another, N < 2, or a value is outside [-1, 1] or NaN.
    """
    _check_images(images)
    with torch.no_grad():
        features = torch.cat([classifier.features(chunk) for chunk in torch.split(images, _CHUNK)])
    features = features.to("cpu", torch.float64)
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (features.shape[0] - 1)


def digit_fid(images: Tensor) -> float:
    """Digit-FID of some images: the `frechet_distance` of their features from those of the 1,797 real digits.

    The distance has a bias that falls as N grows, so only values of equal N compare.

    Args:
        images: float32 [N, 1, 8, 8] in [-1, 1], N >= 2, on any device (the features are computed there).

    Returns:
        The distance; lower is closer.

    Raises:
        TypeError: `images` is not float32.
        ValueError: the shape is another, N < 2, or a value is outside [-1, 1] or NaN.
    """
    mean, cov = feature_statistics(images, load_classifier(images.device))
    return frechet_distance(mean, cov, *load_statistics())


def digit_fid_by_group(images: Tensor, groups: int = 5) -> Tensor:
    """Digit-FID of equal groups of consecutive images, each measured on its own.

    The bias of the distance falls with the size of a group: results compare only where the groups have the same
    size, and their mean lies above `digit_fid(images)`. Samplers run from the same seeds are best compared by the
    differences, group by group.

    Args:
        images: float32 [N, 1, 8, 8] in [-1, 1], N a multiple of `groups`, at least two images in each.
        groups: number of groups, at least 2.

    Returns:
        float64 [groups], on the CPU.

    Raises:
        TypeError: `images` is not float32.
        ValueError: `groups` is below 2 or does not divide N, or `images` is not as `digit_fid` wants it.
    """
    _check_images(images)
    if groups < 2:
        raise ValueError(f"groups: expected an integer of at least 2, got {groups}")
    if images.shape[0] % groups != 0:
        raise ValueError(f"groups: expected a divisor of N = {images.shape[0]} images, got {groups}")
    classifier = load_classifier(images.device)
    reference = load_statistics()
    distances = [
        frechet_distance(*feature_statistics(group, classifier), *reference)
        for group in images.split(images.shape[0] // groups)
    ]
    return torch.tensor(distances, dtype=torch.float64, device="cpu")


def digit_fid_with_error(images: Tensor, groups: int = 5) -> tuple[float, float]:
    """Mean of `digit_fid_by_group` with its standard error.

    Args:
        images: float32 [N, 1, 8, 8] in [-1, 1], N a multiple of `groups`, at least two images in each.
        groups: number of groups, at least 2.

    Returns:
        mean: the mean of the groups' distances.
        standard_error: their standard deviation (divided by groups - 1 inside the root) over sqrt(groups).

    Raises:
        TypeError: `images` is not float32.
        ValueError: as `digit_fid_by_group`.
    """
    distances = digit_fid_by_group(images, groups)
    return float(distances.mean()), float(distances.std() / groups**0.5)


def _square_root(name: str, cov: Tensor) -> Tensor:
    """Symmetric square root of a semi-definite matrix; what rounding put below zero counts as zero."""
    scale = float(cov.abs().max())
    if not torch.allclose(cov, cov.T, rtol=0.0, atol=1e-10 * scale):
        raise ValueError(
            f"{name}: expected a symmetric matrix, got asymmetry {float((cov - cov.T).abs().max()):.3g}"
        )
    values, vectors = torch.linalg.eigh(cov)
    if float(values[0]) < -1e-10 * scale:
        raise ValueError(f"{name}: expected no negative eigenvalue, got {float(values[0]):.3g}")
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[0] < 2:
        raise ValueError(f"images: expected shape [N, 1, 8, 8] with N >= 2, got {list(images.shape)}")
    if not bool(((images >= -1) & (images <= 1)).all()):
        worst = float(images.abs().max())
        raise ValueError(
            f"images: expected values in [-1, 1], got one of magnitude {worst:.6g}; clamp samples first"
        )
