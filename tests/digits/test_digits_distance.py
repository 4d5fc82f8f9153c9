"""The Frechet distance against closed forms and scipy, the shipped statistics against the real digits."""

from __future__ import annotations

import math
import re

import pytest
import torch

from gmmkernel import digits


def random_covariance(size: int, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or 2 * size, dtype=torch.float64, generator=generator)
    return factor @ factor.T / size


def random_vector(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 3, 63, 64])
def test_diagonal_gaussians(size: int) -> None:
    std_a, std_b = random_vector(size, 1).abs(), random_vector(size, 2).abs()
    mean_a, mean_b = random_vector(size, 3), random_vector(size, 4)
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    actual = digits.frechet_distance(mean_a, std_a.square().diag(), mean_b, std_b.square().diag())
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 63])
def test_equal_gaussians_are_at_zero(size: int) -> None:
    mean, cov = random_vector(size, 0), random_covariance(size, 1)
    assert abs(digits.frechet_distance(mean, cov, mean, cov)) < 1e-12 * float(cov.trace())


@pytest.mark.parametrize("size", [2, 17, 64])
def test_agrees_with_scipy(size: int) -> None:
    linalg = pytest.importorskip(
        "scipy.linalg", reason="SciPy is not installed", exc_type=ModuleNotFoundError
    )
    mean_a, mean_b = random_vector(size, 1), random_vector(size, 2)
    cov_a, cov_b = random_covariance(size, 3), random_covariance(size, 4)
    cross = linalg.sqrtm((cov_a @ cov_b).numpy()).real.trace()
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
    assert digits.frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances() -> None:
    # Rank one each: A = u u^T, B = v v^T, so the cross term is |u.v|.
    u, v, zero = random_vector(8, 1), random_vector(8, 2), torch.zeros(8, dtype=torch.float64)
    expected = float(u @ u + v @ v - 2 * (u @ v).abs())
    assert digits.frechet_distance(zero, u.outer(u), zero, v.outer(v)) == pytest.approx(expected, abs=1e-6)


def test_symmetric_and_unchanged_by_a_rotation() -> None:
    mean_a, mean_b = random_vector(16, 1), random_vector(16, 2)
    cov_a, cov_b = random_covariance(16, 3), random_covariance(16, 4)
    rotation = torch.linalg.qr(random_covariance(16, 5))[0]
    value = digits.frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert value == pytest.approx(digits.frechet_distance(mean_b, cov_b, mean_a, cov_a), rel=1e-12)
    turned_a, turned_b = rotation @ cov_a @ rotation.T, rotation @ cov_b @ rotation.T
    turned = digits.frechet_distance(rotation @ mean_a, turned_a, rotation @ mean_b, turned_b)
    assert value == pytest.approx(turned, rel=1e-12)


def test_frechet_distance_refuses() -> None:
    mean, cov = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=re.escape("mean_a: expected torch.float64, got torch.float32")):
        digits.frechet_distance(mean.float(), cov, mean, cov)
    with pytest.raises(ValueError, match=re.escape("cov_b: expected shape [3, 3], got [3]")):
        digits.frechet_distance(mean, cov, mean, mean)
    with pytest.raises(ValueError, match=re.escape("mean_b: expected shape [3], got [2]")):
        digits.frechet_distance(mean, cov, mean[:2], cov)
    with pytest.raises(ValueError, match=re.escape("mean_a: expected shape ['D'], got [1, 3]")):
        digits.frechet_distance(mean[None], cov, mean, cov)
    with pytest.raises(ValueError, match="cov_a: expected finite values"):
        digits.frechet_distance(mean, cov * math.nan, mean, cov)
    with pytest.raises(ValueError, match="cov_a: expected a symmetric matrix"):
        digits.frechet_distance(mean, cov + torch.ones_like(cov).triu(1), mean, cov)
    with pytest.raises(ValueError, match="cov_b: expected no negative eigenvalue, got -1"):
        digits.frechet_distance(mean, cov, mean, -cov)


def test_feature_statistics_are_the_sample_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1500, 1, 8, 8, generator=generator) * 2 - 1
    classifier = digits.load_classifier()
    mean, cov = digits.feature_statistics(images, classifier)
    with torch.no_grad():
        features = classifier.features(images).double()
    torch.testing.assert_close(mean, features.mean(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cov, features.T.cov(), rtol=1e-5, atol=1e-6)
    assert mean.dtype == cov.dtype == torch.float64
    assert not mean.requires_grad


def test_shipped_statistics_are_those_of_the_real_digits() -> None:
    images, _ = digits.load_digits()
    mean, cov = digits.feature_statistics(images, digits.load_classifier())
    shipped_mean, shipped_cov = digits.load_statistics()
    scale = float(cov.diagonal().max())
    torch.testing.assert_close(mean, shipped_mean, rtol=0, atol=1e-5 * scale**0.5)
    torch.testing.assert_close(cov, shipped_cov, rtol=0, atol=1e-5 * scale)
    assert abs(digits.digit_fid(images)) < 1e-4


def test_digit_fid_orders_corruptions() -> None:
    images, _ = digits.load_digits()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    values = [digits.digit_fid((images + level * noise).clamp(-1, 1)) for level in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values)
    assert values[3] > 100 * max(values[0], 1e-3)


def test_groups() -> None:
    images, _ = digits.load_digits()
    images = images[:900]
    parts = torch.tensor([digits.digit_fid(part) for part in images.split(300)], dtype=torch.float64)
    assert torch.equal(digits.digit_fid_by_group(images, groups=3), parts)
    mean, error = digits.digit_fid_with_error(images, groups=3)
    assert mean == pytest.approx(float(parts.mean()), rel=1e-12)
    variance = float((parts - parts.mean()).square().sum() / 2)
    assert error == pytest.approx(math.sqrt(variance / 3), rel=1e-12)
    # Smaller groups, larger bias.
    assert digits.digit_fid_with_error(images, groups=9)[0] > mean > digits.digit_fid(images)


def test_digit_fid_refuses() -> None:
    images = torch.zeros(10, 1, 8, 8)
    with pytest.raises(
        ValueError, match=re.escape("images: expected shape [N, 1, 8, 8] with N >= 2, got [1, 1, 8, 8]")
    ):
        digits.digit_fid(images[:1])
    with pytest.raises(
        ValueError, match=re.escape("images: expected values in [-1, 1], got one of magnitude 16")
    ):
        digits.digit_fid(images + 16)
    with pytest.raises(ValueError, match=re.escape("expected values in [-1, 1], got one of magnitude 1.25")):
        digits.digit_fid(images - 1.25)
    with pytest.raises(ValueError, match="got one of magnitude nan"):
        digits.digit_fid(images * math.nan)
    with pytest.raises(TypeError, match=re.escape("images: expected torch.float32")):
        digits.digit_fid(images.double())
    with pytest.raises(ValueError, match=re.escape("images: expected shape [B, 1, 8, 8], got [10, 1, 8, 9]")):
        digits.digit_fid(torch.zeros(10, 1, 8, 9))
    with pytest.raises(ValueError, match=re.escape("groups: expected a divisor of N = 10 images, got 3")):
        digits.digit_fid_with_error(images, groups=3)
    with pytest.raises(ValueError, match=re.escape("groups: expected an integer of at least 2, got 1")):
        digits.digit_fid_with_error(images, groups=1)
