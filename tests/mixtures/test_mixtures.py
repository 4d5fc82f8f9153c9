"""Mixtures against dense float64 linear algebra written from the equations of DDIM-GMM (arXiv 2311.04938)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from covering import check_all, pairs
from helpers import PUBLISHED_VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gmmkernel.backends.constants import Stream
from gmmkernel.backends.reference.normal import standard_normal
from gmmkernel.mixtures import Mixture, cdf, gaussian_mixture

Float64 = NDArray[np.float64]

ORTHOGONAL = ("ortho", "ortho-vub")


def noise(seed: int, step: int, count: int, elements: int) -> Float64:
    return (
        standard_normal(seed, step, Stream.OFFSETS, count * elements)
        .astype(np.float64)
        .reshape(count, elements)
    )


def expected_offsets(variant: str, o: Float64, pi: Float64, scale: float) -> Float64:
    """Return the offsets by dense algebra; QR with a positive diagonal is what Gram-Schmidt gives."""
    if variant == "rand":
        c = o - pi @ o
        return scale * c / np.linalg.norm(c, axis=1, keepdims=True)
    q, r = np.linalg.qr(o.T)
    u = (q * np.sign(np.diag(r))).T
    return scale * (u - pi @ u)


def delta_matrices(delta: Float64, pi: Float64) -> list[Float64]:
    """Delta_k of scheme (B), D x D."""
    shared = np.einsum("l,li,lj->ij", pi, delta, delta)
    return [shared / (len(pi) * weight) for weight in pi]


def unequal(count: int) -> Float64:
    weights = np.random.default_rng(count).uniform(0.2, 3.0, count)
    return weights / weights.sum()


weight_lists = st.lists(st.floats(0.01, 10.0), min_size=2, max_size=9)


def check_offsets(variant: str, size: tuple[int, int], weighted: bool) -> None:
    count, elements = size
    pi = unequal(count) if weighted else np.full(count, 1 / count)
    mixture = gaussian_mixture(
        variant,
        elements=elements,
        n_components=count,
        scale=1.7,
        seed=11,
        weights=pi if weighted else None,
        n_steps=3,
    )
    assert mixture.variant == variant
    assert (mixture.n_components, mixture.elements, mixture.n_steps, mixture.scale) == (
        count,
        elements,
        3,
        1.7,
    )
    np.testing.assert_allclose(mixture.weights.numpy(), pi, rtol=1e-15)
    for step in range(3):
        expected = expected_offsets(variant, noise(11, step, count, elements), pi, 1.7)
        np.testing.assert_allclose(mixture.offsets[step].numpy(), expected, rtol=0, atol=1e-10)


def test_offsets_follow_the_equations() -> None:
    check_all(
        check_offsets,
        pairs(
            variant=PUBLISHED_VARIANTS,
            size=[(2, 2), (3, 3), (8, 63), (5, 1000), (64, 64), (8, 4097)],
            weighted=[False, True],
        ),
    )


@pytest.mark.parametrize("count", [1025 // 2, 100])
def test_rand_takes_more_components_than_elements(count: int) -> None:
    mixture = gaussian_mixture("rand", elements=3, n_components=count, scale=2.0)
    expected = expected_offsets("rand", noise(0, 0, count, 3), np.full(count, 1 / count), 2.0)
    np.testing.assert_allclose(mixture.offsets[0].numpy(), expected, rtol=0, atol=1e-12)


@given(weights=weight_lists, seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=50)
def test_ortho_spans_what_the_noise_spans(weights: list[float], seed: int) -> None:
    count, elements = len(weights), 20
    mixture = gaussian_mixture(
        "ortho", elements=elements, n_components=count, scale=3.0, seed=seed, weights=weights
    )
    pi = np.array(weights) / sum(weights)
    delta = mixture.offsets[0].numpy()
    # centred orthonormal rows: <delta_k, delta_l> = s^2 ([k = l] - pi_k - pi_l + |pi|^2)
    gram = 9 * (np.eye(count) - pi[:, None] - pi[None] + pi @ pi)
    np.testing.assert_allclose(delta @ delta.T, gram, rtol=0, atol=1e-11)
    left = np.linalg.svd(noise(seed, 0, count, elements).T, full_matrices=False)[0]
    np.testing.assert_allclose(left @ (left.T @ delta.T), delta.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("variant", ORTHOGONAL)
@given(weights=weight_lists)
@settings(max_examples=50)
def test_orthogonal_offsets_have_mean_zero(variant: str, weights: list[float]) -> None:
    mixture = gaussian_mixture(variant, elements=12, n_components=len(weights), scale=5.0, weights=weights)
    assert float((mixture.weights @ mixture.offsets[0]).abs().max()) < 1e-14


def test_rand_misses_mean_zero_as_published_unless_recentred() -> None:
    missed = {}
    for elements in (12, 12288):
        norms = []
        for seed in range(20):
            mixture = gaussian_mixture("rand", elements=elements, scale=10.0, seed=seed)
            assert torch.allclose(mixture.offsets.norm(dim=-1), torch.tensor(10.0, dtype=torch.float64))
            norms.append(float((mixture.weights @ mixture.offsets[0]).norm()) / 10)
        missed[elements] = float(np.mean(norms))
    assert missed[12] == pytest.approx(0.07, rel=0.2)
    assert missed[12288] == pytest.approx(0.0023, rel=0.2)
    centred = gaussian_mixture("rand", elements=12, scale=10.0, recentre=True)
    plain = gaussian_mixture("rand", elements=12, scale=10.0)
    assert float((centred.weights @ centred.offsets[0]).abs().max()) < 1e-14
    shift = plain.offsets - centred.offsets
    torch.testing.assert_close(shift, (plain.weights @ plain.offsets[0]).expand_as(shift), rtol=0, atol=1e-14)


@pytest.mark.parametrize("variant", ["rand", "ortho"])
@given(weights=weight_lists)
@settings(max_examples=50)
def test_reductions_are_the_diagonals_of_the_delta_matrices(variant: str, weights: list[float]) -> None:
    mixture = gaussian_mixture(variant, elements=11, n_components=len(weights), scale=2.0, weights=weights)
    delta, pi = mixture.offsets[0].numpy(), mixture.weights.numpy()
    matrices = delta_matrices(delta, pi)
    expected = np.array([np.diag(matrix) for matrix in matrices])
    got = mixture.reductions[0].expand(len(weights), -1).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    # what they are for: the average variance removed is the variance the offsets add
    np.testing.assert_allclose(pi @ got, np.einsum("k,ki->i", pi, delta * delta), rtol=1e-12, atol=1e-14)


@given(weights=weight_lists, seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_vub_bounds_the_eigenvalues(weights: list[float], seed: int) -> None:
    count = len(weights)
    mixture = gaussian_mixture(
        "ortho-vub", elements=12, n_components=count, scale=2.0, weights=weights, seed=seed
    )
    pi = mixture.weights.numpy()
    bounds = mixture.reductions[0].expand(count, -1).numpy()
    assert bounds.shape == (count, count)
    assert np.all(np.diff(bounds, axis=1) <= 0)
    for k, matrix in enumerate(delta_matrices(mixture.offsets[0].numpy(), pi)):
        np.testing.assert_allclose(np.sort(bounds[k]), np.sort(4 * pi / (count * pi[k])), rtol=1e-14)
        eigenvalues = np.linalg.eigvalsh(matrix)[::-1][:count]
        assert np.all(eigenvalues <= bounds[k] + 1e-12)


def test_vub_with_equal_weights_removes_the_same_from_k_elements() -> None:
    mixture = gaussian_mixture("ortho-vub", elements=63, n_components=5, scale=3.0, n_steps=4)
    assert mixture.reductions.shape == (1, 1, 5)
    torch.testing.assert_close(mixture.reductions, torch.full((1, 1, 5), 9 / 5, dtype=torch.float64))


def test_equal_weights_share_one_row_of_reductions() -> None:
    options = {"elements": 20, "n_components": 3}
    given_equal = gaussian_mixture("ortho", weights=[7, 7, 7], **options)
    default = gaussian_mixture("ortho", **options)
    assert given_equal.reductions.shape == default.reductions.shape == (1, 1, 20)
    assert torch.equal(given_equal.offsets, default.offsets)
    assert gaussian_mixture("ortho", weights=[7, 7, 7.001], **options).reductions.shape == (1, 3, 20)


def test_a_shared_mixture_is_that_of_step_0() -> None:
    for variant in PUBLISHED_VARIANTS:
        shared = gaussian_mixture(variant, elements=30, seed=-5)
        per_step = gaussian_mixture(variant, elements=30, seed=-5, n_steps=4)
        assert shared.n_steps is None
        assert torch.equal(shared.offsets[0], per_step.offsets[0])
        fewer = gaussian_mixture(variant, elements=30, seed=-5, n_steps=2)
        assert torch.equal(fewer.offsets, per_step.offsets[:2])
        distances = torch.cdist(per_step.offsets.flatten(1), per_step.offsets.flatten(1))
        assert float(distances[~torch.eye(4, dtype=torch.bool)].min()) > 0.5
        assert not torch.equal(shared.offsets, gaussian_mixture(variant, elements=30, seed=5).offsets)


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
@pytest.mark.parametrize("n_steps", [None, 3])
def test_one_component_is_the_gaussian_step(variant: str, n_steps: int | None) -> None:
    mixture = gaussian_mixture(variant, elements=7, n_components=1, scale=10.0, n_steps=n_steps)
    assert mixture.offsets.shape == (n_steps or 1, 1, 7)
    assert not mixture.offsets.any()
    assert mixture.reductions.shape == (1, 1, 0)
    assert mixture.weights.tolist() == [1.0]
    assert cdf(mixture.weights).shape == (0,)


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_scale_zero_moves_and_removes_nothing(variant: str) -> None:
    mixture = gaussian_mixture(variant, elements=9, scale=0)
    assert not mixture.offsets.any()
    assert not mixture.reductions.any()


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_tables_do_not_depend_on_threads(variant: str) -> None:
    def build() -> Mixture:
        return gaussian_mixture(
            variant, elements=4097, n_components=17, n_steps=2, weights=unequal(17), seed=3
        )

    before = torch.get_num_threads()
    built = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            built.append(build())
    finally:
        torch.set_num_threads(before)
    for other in built[1:]:
        assert torch.equal(built[0].offsets, other.offsets)
        assert torch.equal(built[0].reductions, other.reductions)


@pytest.mark.parametrize("variant", ["rand", "ortho"])
def test_fixed_order_to_the_last_bit(variant: str) -> None:
    """Sums over components go one by one, sums over elements by halving: here in plain Python floats."""
    count, elements = 5, 1000
    pi = [float(weight) for weight in unequal(count)]
    mixture = gaussian_mixture(variant, elements=elements, n_components=count, weights=pi, scale=1.3, seed=9)
    total = 0.0
    for weight in pi:
        total += weight
    pi = [weight / total for weight in pi]

    def weighted_sum(rows: list[list[float]]) -> list[float]:
        out = [pi[0] * value for value in rows[0]]
        for weight, row in zip(pi[1:], rows[1:], strict=True):
            out = [a + weight * b for a, b in zip(out, row, strict=True)]
        return out

    def halving_sum(values: list[float]) -> float:
        values = values + [0.0] * (1024 - len(values))
        while len(values) > 1:
            half = len(values) // 2
            values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
        return values[0]

    def centre(rows: list[list[float]]) -> list[list[float]]:
        mean = weighted_sum(rows)
        return [[a - m for a, m in zip(row, mean, strict=True)] for row in rows]

    rows = noise(9, 0, count, elements).tolist()
    if variant == "rand":
        rows = centre(rows)
        norms = [math.sqrt(halving_sum([value * value for value in row])) for row in rows]
        rows = [[value / norm for value in row] for row, norm in zip(rows, norms, strict=True)]
    else:
        for k in range(count):
            norm = math.sqrt(halving_sum([value * value for value in rows[k]]))
            rows[k] = [value / norm for value in rows[k]]
            for later in range(k + 1, count):
                along = halving_sum([a * b for a, b in zip(rows[later], rows[k], strict=True)])
                rows[later] = [a - along * b for a, b in zip(rows[later], rows[k], strict=True)]
        rows = centre(rows)
    delta = [[1.3 * value for value in row] for row in rows]
    assert mixture.weights.tolist() == pi
    assert mixture.offsets[0].tolist() == delta
    shared = weighted_sum([[value * value for value in row] for row in delta])
    expected = [[1 / (count * weight) * value for value in shared] for weight in pi]
    assert mixture.reductions[0].tolist() == expected


def test_weights_are_divided_by_their_sum_in_order() -> None:
    weights = np.random.default_rng(0).uniform(0.1, 1, 999).tolist()
    total = 0.0
    for weight in weights:
        total += weight
    assert total != float(np.sum(weights))
    mixture = gaussian_mixture("rand", elements=2, n_components=999, weights=weights)
    assert mixture.weights.tolist() == [weight / total for weight in weights]


def test_cdf_of_equal_weights() -> None:
    assert cdf(torch.full((8,), 1 / 8, dtype=torch.float64)).tolist() == [k << 29 for k in range(1, 8)]
    assert cdf(torch.ones(1, dtype=torch.float64)).shape == (0,)


@given(weights=st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=1024))
@settings(max_examples=50, deadline=None)
def test_cdf_is_the_scaled_distribution_function(weights: list[float]) -> None:
    total = 0.0
    for weight in weights:
        total += weight
    pi = torch.tensor(weights, dtype=torch.float64) / total
    got = cdf(pi)
    assert got.dtype == torch.int64
    below, expected = 0.0, []
    for weight in pi.tolist()[:-1]:
        below += weight
        expected.append(int(Fraction(below) * 2**32))
    assert got.tolist() == expected
    assert bool((got[1:] >= got[:-1]).all())
    edges = [0, *got.tolist(), 2**32]
    shares = np.diff(edges) / 2**32
    np.testing.assert_allclose(shares, pi.numpy(), rtol=0, atol=2.0**-31)


def test_a_threshold_may_be_beyond_every_word() -> None:
    assert cdf(torch.tensor([1.0, 1e-30], dtype=torch.float64)).tolist() == [2**32]


def as_float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([0.5, 0.5], TypeError, "expected a torch.float64 tensor, got list"),
        (torch.tensor([0.5, 0.5]), TypeError, "got torch.float32"),
        (as_float64(0.5, 0.6), ValueError, "expected numbers with sum 1, got sum 1.1"),
        (as_float64(1.5, -0.5), ValueError, "expected positive numbers, got -0.5 at index 1"),
        (as_float64(1.0, 0.0), ValueError, "got 0.0 at index 1"),
        (as_float64(math.nan), ValueError, "got nan at index 0"),
        (as_float64(), ValueError, r"K from 1 to 1024, got \[0\]"),
        (torch.full((1025,), 1 / 1025, dtype=torch.float64), ValueError, r"K from 1 to 1024, got \[1025\]"),
        (as_float64(1.0)[None], ValueError, r"got \[1, 1\]"),
        (as_float64(1.0).to("meta"), ValueError, "on the CPU, got meta"),
    ],
)
@pytest.mark.parametrize("use", [cdf, lambda w: Mixture("own", 1.0, w, TABLE, TABLE)], ids=["cdf", "mixture"])
def test_bad_weights_of_a_mixture(
    use: Callable[[object], object], weights: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"weights: .*{message}"):
        use(weights)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"variant": "vub"},
            ValueError,
            "variant: expected one of 'rand', 'ortho', 'ortho-vub', 'exact', 'rand-exact', got 'vub'",
        ),
        ({"elements": 0}, ValueError, "elements: expected an integer >= 1, got 0"),
        ({"elements": 12.0}, TypeError, "elements"),
        ({"n_components": 0}, ValueError, "n_components: expected an integer from 1 to 1024, got 0"),
        ({"n_components": 1025, "variant": "rand"}, ValueError, "from 1 to 1024, got 1025"),
        ({"n_components": True}, TypeError, "n_components"),
        ({"n_components": 13}, ValueError, "n_components: expected at most elements = 12 .*'ortho'.* got 13"),
        (
            {"n_components": 13, "variant": "ortho-vub"},
            ValueError,
            "n_components: expected at most elements = 12",
        ),
        ({"scale": -1.0}, ValueError, "scale: expected a finite number >= 0, got -1.0"),
        ({"scale": math.inf}, ValueError, "scale: .* got inf"),
        ({"scale": math.nan}, ValueError, "scale: .* got nan"),
        ({"scale": "1"}, TypeError, "scale"),
        (
            {"scale": 1e30},
            ValueError,
            "scale: expected offsets and variances that float32 holds, got scale = 1e\\+30",
        ),
        ({"n_steps": 0}, ValueError, "n_steps: expected an integer from 1 .* got 0"),
        ({"n_steps": 2.0}, TypeError, "n_steps"),
        ({"seed": 1.0}, TypeError, "seed: expected an integer from -9223372036854775808 .* got 1.0"),
        ({"seed": True}, TypeError, "seed: .* got True"),
        ({"seed": 2**63}, ValueError, "seed: .* got 9223372036854775808"),
        ({"recentre": True}, ValueError, "recentre: expected False for variant='ortho'"),
        ({"recentre": 1}, TypeError, "recentre: expected True or False, got 1"),
        ({"weights": [1.0] * 7}, ValueError, r"weights: expected shape \[8\], got \[7\]"),
        ({"weights": torch.ones(8, 1)}, ValueError, r"weights: expected shape \[8\], got \[8, 1\]"),
        (
            {"weights": [1.0] * 7 + [-0.5]},
            ValueError,
            "weights: expected 8 positive finite numbers, got -0.5 at index 7",
        ),
        ({"weights": [0.0] * 8}, ValueError, "weights: .* got 0.0 at index 0"),
        ({"weights": [1.0, math.nan] * 4}, ValueError, "weights: .* got nan at index 1"),
        ({"weights": [1.0, math.inf] * 4}, ValueError, "weights: .* got inf at index 1"),
        ({"weights": [1e308] * 8}, ValueError, "weights: .* got shares of 0"),
        ({"weights": ["a"] * 8}, TypeError, "weights: expected 8 real numbers, got"),
        ({"weights": torch.ones(8, dtype=torch.bool)}, TypeError, "weights: .* got torch.bool"),
        (
            {"weights": torch.ones(8, requires_grad=True)},
            TypeError,
            "weights: expected numbers without gradient",
        ),
        (
            {"weights": [1e300] + [1e-20] * 7, "variant": "rand"},
            ValueError,
            "weights: .* got share 1.0 at index 0",
        ),
        (
            {"weights": [1e30] + [1e-20] * 7, "variant": "ortho-vub"},
            ValueError,
            "scale: .* with weights from 1e-50 to 1",
        ),
    ],
)
def test_bad_mixture(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"variant": "ortho", "elements": 12, **changes}
    with pytest.raises(error, match=message):
        gaussian_mixture(**arguments)  # type: ignore[arg-type]


TABLE = torch.zeros(1, 2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"offsets": TABLE.float()},
            TypeError,
            "offsets: expected a torch.float64 tensor, got torch.float32",
        ),
        ({"reductions": None}, TypeError, "reductions: expected a torch.float64 tensor, got NoneType"),
        ({"offsets": TABLE[0]}, ValueError, r"offsets: expected shape \[S or 1, 2, D\] .* got \[2, 3\]"),
        ({"offsets": TABLE[:, :1]}, ValueError, r"offsets: .* got \[1, 1, 3\]"),
        ({"offsets": TABLE[:, :, :0]}, ValueError, r"offsets: .* got \[1, 2, 0\]"),
        (
            {"reductions": TABLE.expand(2, 2, 3)},
            ValueError,
            r"reductions: expected shape \[1 or 1, .* got \[2, 2, 3\]",
        ),
        (
            {"reductions": TABLE.expand(1, 2, 3).repeat(1, 2, 1)},
            ValueError,
            r"reductions: .* got \[1, 4, 3\]",
        ),
        ({"reductions": torch.zeros(1, 1, 4, dtype=torch.float64)}, ValueError, "reductions: .* R <= 3, got"),
        ({"scale": -1.0}, ValueError, "scale: expected a finite number >= 0, got -1.0"),
    ],
)
def test_bad_tables_of_ones_own(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "variant": "own",
        "scale": 1.0,
        "weights": as_float64(0.25, 0.75),
        "offsets": TABLE,
        "reductions": TABLE[:, :1],
    }
    assert Mixture(**arguments).n_components == 2  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        Mixture(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_thousand_components_of_an_image() -> None:
    mixture = gaussian_mixture("ortho", elements=12288, n_components=1024, scale=2.0)
    delta = mixture.offsets[0]
    gram = 4 * (torch.eye(1024, dtype=torch.float64) - 1 / 1024)
    torch.testing.assert_close(delta @ delta.T, gram, rtol=0, atol=1e-11)
