"""Binding a mixture to coefficient rows: shapes, values, gradients, and use in a step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from covering import check_all, pairs
from helpers import PUBLISHED_VARIANTS
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.mixtures import Mixture, cdf, gaussian_mixture
from gmmkernel.ops import gmm_step
from gmmkernel.schedules import ddim_coefficients, noise_schedule, timesteps

WEIGHTS = [1.0, 2.0, 3.0]


def rows(eta: float, count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return ddim_coefficients(noise_schedule(), timesteps(count), eta=eta, dtype=dtype)


def levels(sigmas: list[float], weights: list[float]) -> Tensor:
    """Coefficient rows with given sigma and offset weight."""
    table = torch.zeros(len(sigmas), len(Column), dtype=torch.float64)
    table[:, Column.SIGMA] = torch.tensor(sigmas, dtype=torch.float64)
    table[:, Column.OFFSET] = torch.tensor(weights, dtype=torch.float64)
    return table


def check_tables(
    variant: str,
    n_steps: int | None,
    weights: list[float] | None,
    dtype: torch.dtype,
) -> None:
    mixture = gaussian_mixture(
        variant, elements=5, n_components=3, scale=0.6, n_steps=n_steps, weights=weights
    )
    coefficients = rows(0.7, dtype=dtype)
    tables = mixture.bind(coefficients)
    assert torch.equal(tables.cdf, cdf(mixture.weights)[None])
    assert tables.offsets.dtype == tables.std.dtype == dtype
    assert torch.equal(tables.offsets, mixture.offsets.to(dtype))
    removed_from = 3 if variant == "ortho-vub" else 5
    assert tables.std.shape == (4, 3 if weights else 1, removed_from)
    clipped = 0
    for s in range(4):
        sigma, w = float(coefficients[s, Column.SIGMA]), float(coefficients[s, Column.OFFSET])
        reductions = mixture.reductions[s % len(mixture.reductions)]
        expected = [[math.sqrt(max(sigma**2 - w**2 * r, 0)) for r in row] for row in reductions.tolist()]
        clipped += sum(value == 0 for row in expected for value in row)
        tolerance = 1e-15 if dtype == torch.float64 else 6e-8
        torch.testing.assert_close(
            tables.std[s].double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0
        )
    assert torch.all(tables.std[-1] == coefficients[-1, Column.SIGMA])  # no offset there, nothing removed
    assert clipped > 0


def test_tables() -> None:
    check_all(
        check_tables,
        pairs(
            variant=PUBLISHED_VARIANTS,
            n_steps=[None, 4],
            weights=[None, WEIGHTS],
            dtype=[torch.float32, torch.float64],
        ),
    )


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_offset_weight_scales_what_is_removed(weight: float) -> None:
    mixture = gaussian_mixture("ortho", elements=6, n_components=3)
    std = mixture.bind(levels([1.5], [weight])).std
    torch.testing.assert_close(std, (1.5**2 - weight**2 * mixture.reductions).sqrt(), rtol=1e-15, atol=0)


def test_steps_with_the_same_levels_share_one_entry() -> None:
    shared = gaussian_mixture("ortho", elements=6, n_components=3)
    assert shared.bind(levels([0.5] * 3, [1.0] * 3)).std.shape == (1, 1, 6)
    assert shared.bind(levels([0.5] * 3, [1.0, 1.0, 0.0])).std.shape == (3, 1, 6)
    assert shared.bind(levels([0.5, 0.4, 0.5], [1.0] * 3)).std.shape == (3, 1, 6)
    per_step = gaussian_mixture("ortho", elements=6, n_components=3, n_steps=3)
    assert per_step.bind(levels([0.5] * 3, [1.0] * 3)).std.shape == (3, 1, 6)
    vub = gaussian_mixture("ortho-vub", elements=6, n_components=3, n_steps=3)
    assert vub.bind(levels([0.5] * 3, [1.0] * 3)).std.shape == (1, 1, 3)


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_without_noise_there_is_nothing_to_remove(variant: str) -> None:
    tables = gaussian_mixture(variant, elements=6, n_components=3, n_steps=4).bind(rows(0.0))
    assert tables.std.shape == (1, 1, 0)
    assert tables.offsets.shape == (4, 3, 6)


def test_nan_is_not_taken_for_clipped() -> None:
    mixture = gaussian_mixture("ortho", elements=6, n_components=3)
    broken = dataclasses.replace(mixture, reductions=torch.full_like(mixture.reductions, math.nan))
    assert bool(broken.bind(levels([0.5], [1.0])).std.isnan().all())


def test_gradients_reach_offsets_reductions_and_coefficients() -> None:
    mixture = gaussian_mixture("ortho", elements=4, n_components=3, n_steps=2, weights=WEIGHTS, scale=0.3)

    def tables(offsets: Tensor, reductions: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        bound = dataclasses.replace(mixture, offsets=offsets, reductions=reductions).bind(coefficients)
        return bound.offsets, bound.std

    values = (mixture.offsets, mixture.reductions, levels([0.9, 0.5], [1.0, 0.7]))
    inputs = [value.clone().requires_grad_() for value in values]
    assert all(output.requires_grad for output in tables(*inputs))  # gradcheck passes over those that do not
    assert torch.autograd.gradcheck(tables, inputs)


def test_equal_rows_that_need_gradients_are_kept_apart() -> None:
    mixture = gaussian_mixture("ortho", elements=4, n_components=3, scale=0.3)
    coefficients = levels([0.5, 0.5], [1.0, 1.0]).requires_grad_()
    std = mixture.bind(coefficients).std
    assert std.shape == (2, 1, 4)
    std.sum().backward()
    assert coefficients.grad is not None
    assert bool((coefficients.grad[:, Column.SIGMA] > 0).all())


def test_the_gradient_is_zero_where_the_variance_is_clipped() -> None:
    mixture = gaussian_mixture("ortho", elements=4, n_components=3)
    reductions = torch.tensor([[[0.1, 0.25, 0.3, 0.2]]], dtype=torch.float64, requires_grad=True)
    coefficients = levels([0.5], [1.0]).requires_grad_()
    std = dataclasses.replace(mixture, reductions=reductions).bind(coefficients).std
    assert std[0, 0, 1] == std[0, 0, 2] == 0
    std.sum().backward()
    assert reductions.grad is not None
    assert coefficients.grad is not None
    kept = torch.tensor([0.15, 0.05], dtype=torch.float64).sqrt()
    expected = torch.tensor([-0.5 / kept[0], 0, 0, -0.5 / kept[1]], dtype=torch.float64)
    torch.testing.assert_close(reductions.grad[0, 0], expected)
    torch.testing.assert_close(coefficients.grad[0, Column.SIGMA], (0.5 / kept).sum())


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_a_step_uses_the_tables(variant: str, eta: float) -> None:
    """With a model output of zero and x = 0, what a step returns is w delta_k + std_k z."""
    mixture = gaussian_mixture(variant, elements=6, n_components=3, scale=0.4, n_steps=4, weights=WEIGHTS)
    coefficients = rows(eta)
    tables = mixture.bind(coefficients)
    zeros = torch.zeros(40, 6, dtype=torch.float64)
    seeds = torch.arange(40)
    for s in range(4):
        step = gmm_step(
            zeros, zeros, coefficients, row=s, seeds=seeds, mixture=tables, return_components=True
        )
        plain = gmm_step(zeros, zeros, coefficients, row=s, seeds=seeds)
        sigma, w = coefficients[s, Column.SIGMA], coefficients[s, Column.OFFSET]
        z = plain.prev_sample / sigma if sigma > 0 else torch.zeros_like(zeros)
        variance = torch.full((3, 6), float(sigma) ** 2, dtype=torch.float64)
        removed = mixture.reductions[s % len(mixture.reductions)]
        variance[:, : removed.shape[1]] -= w**2 * removed
        k = step.components
        expected = w * mixture.offsets[s, k] + variance.clamp(min=0).sqrt()[k] * z
        torch.testing.assert_close(step.prev_sample, expected, rtol=1e-12, atol=1e-12)


def test_bound_tables_do_not_depend_on_threads() -> None:
    mixture = gaussian_mixture("rand", elements=50021, n_components=4, weights=[1.0, 2.0, 3.0, 4.0])
    before = torch.get_num_threads()
    try:
        bound = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            bound.append(mixture.bind(rows(1.0, dtype=torch.float32)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*(tables[:4] for tables in bound), strict=True))


@pytest.mark.parametrize(
    ("coefficients", "error", "message"),
    [
        (torch.zeros(3, 16), ValueError, "expected 4 rows, one for each step of the mixture, got 3"),
        (torch.zeros(4, 15), ValueError, r"expected shape \[S, 16\] with S >= 1, got \[4, 15\]"),
        (torch.zeros(16), ValueError, r"got \[16\]"),
        (torch.zeros(0, 16), ValueError, r"got \[0, 16\]"),
        (
            torch.zeros(4, 16, dtype=torch.bfloat16),
            TypeError,
            "torch.float32 or torch.float64 .* got torch.bfloat16",
        ),
        ([[0.0] * 16] * 4, TypeError, "got list"),
    ],
)
def test_bad_coefficients(coefficients: object, error: type[Exception], message: str) -> None:
    mixture = gaussian_mixture("rand", elements=3, n_steps=4)
    with pytest.raises(error, match=f"coefficients: .*{message}"):
        mixture.bind(coefficients)  # type: ignore[arg-type]


def test_nbytes() -> None:
    mixture = gaussian_mixture("ortho", elements=100, n_components=8, n_steps=10)
    assert mixture.nbytes == 8 * (8 + 10 * 8 * 100 + 10 * 100)
    assert isinstance(mixture, Mixture)
