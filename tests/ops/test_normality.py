"""The package's normals are standard normal and independent, and components follow their weights.

Seeds are fixed, so results are reproducible and nothing is flaky. Bounds come from null distributions: each `check_`
of a family of statistics passes for a perfect generator with probability 1 - 1e-5, shared out over the statistics of
the family (Bonferroni). There are about 160 families here: had nobody looked at the seeds, a perfect generator would
fail somewhere once in about 600 tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import fft, stats
from scipy.special import log_ndtr, ndtr

from gmmkernel import Column, MixtureTables, Stream, draw_components, gmm_step, standard_normal
from gmmkernel.backends.reference.normal import cos_sin, normals_from_words, radius
from gmmkernel.mixtures import cdf

Array = NDArray[Any]

SIGNIFICANCE = 1e-5


def draw(
    seeds: Iterable[int], elements: int, step: int | torch.Tensor = 0, stream: Stream = Stream.INITIAL
) -> Array:
    """Return the package's normals, float32 [seeds, elements]; seeds are taken modulo 2^64."""
    signed = torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in seeds])
    return standard_normal(signed, [elements], step=step, stream=stream).numpy()


# ---- bounds from the null distributions ----


def check_scores(scores: Array, *, independent: bool = True) -> None:
    """Check numbers that a perfect generator makes N(0, 1): the largest, and the sum of squares if independent."""
    scores = np.ravel(scores)
    worst = np.abs(scores).max()
    assert worst < stats.norm.isf(SIGNIFICANCE / 2 / scores.size), f"largest of {scores.size} scores: {worst}"
    if independent:
        check_chi_square(float(scores @ scores), scores.size)


def check_chi_square(statistic: float, degrees: int) -> None:
    """Check a chi-square statistic on both sides: too good a fit is as suspect as a bad one."""
    p_value = 2 * min(stats.chi2.cdf(statistic, degrees), stats.chi2.sf(statistic, degrees))
    assert p_value > SIGNIFICANCE, f"chi-square {statistic} with {degrees} degrees of freedom"


def check_counts(counts: Array, probabilities: Array | float) -> None:
    """Check the counts of cells by Pearson's chi-square; the probabilities sum to 1."""
    expected = np.broadcast_to(counts.sum() * np.asarray(probabilities), counts.shape)
    assert expected.min() > 25, "cells too small for the chi-square distribution"
    check_chi_square(float(((counts - expected) ** 2 / expected).sum()), counts.size - 1)


def check_binomial(pairs: Sequence[tuple[int, float]], n: int) -> None:
    """Check counts out of n against their probabilities, by the exact binomial test."""
    for count, probability in pairs:
        p_value = stats.binomtest(int(count), n, probability).pvalue
        assert p_value > SIGNIFICANCE / len(pairs), f"{count}, expected {n * probability:.2f}"


def check_kolmogorov(ascending_uniforms: Array) -> None:
    """Kolmogorov-Smirnov: sorted numbers should be uniform in [0, 1]."""
    n = ascending_uniforms.size
    above = np.arange(1, n + 1) / n - ascending_uniforms
    distance = max(above.max(), 1 / n - above.min())
    assert stats.kstwobign.sf(math.sqrt(n) * distance) > SIGNIFICANCE, f"distance {distance}"


def quantile_cells(z: Array, cells: int) -> Array:
    """Return which of so many equally probable intervals each normal is in, uint8."""
    edges = stats.norm.ppf(np.arange(1, cells) / cells).astype(np.float32)
    return sum(((z >= edge).view(np.uint8) for edge in edges), np.zeros(z.shape, np.uint8))


def check_table(columns: Sequence[Array], cells: int) -> None:
    """Check that the columns, each uniform in 0 .. cells - 1, are jointly uniform."""
    index = np.zeros(columns[0].size, np.int64)
    for column in columns:
        index = index * cells + column
    check_counts(np.bincount(index, minlength=cells ** len(columns)), cells ** -len(columns))


# ---- the law of single numbers ----


def moments(z: Array) -> Array:
    """Return the means of z, z^2, ... z^8, summed in float64 piece by piece."""
    total = np.zeros(8)
    for piece in np.array_split(z.ravel(), max(1, z.size >> 13)):
        x = piece.astype(np.float64)
        x2 = x * x
        x3, x4 = x * x2, x2 * x2
        total += [x.sum(), x @ x, x @ x2, x2 @ x2, x2 @ x3, x3 @ x3, x3 @ x4, x4 @ x4]
    return total / z.size


def moment_scores(means: Array, n: int) -> Array:
    """Return (mean of z^k - E z^k) / standard error, k = 1 to 8; E z^(2j) = (2j - 1)!! gives both exactly."""
    exact = [0 if k % 2 else math.prod(range(1, k, 2)) for k in range(17)]
    error = [math.sqrt((exact[2 * k] - exact[k] ** 2) / n) for k in range(1, 9)]
    return (means - exact[1:9]) / error


def check_moments(ascending: Array) -> None:
    check_scores(moment_scores(moments(ascending), ascending.size), independent=False)


def check_kolmogorov_smirnov(ascending: Array) -> None:
    check_kolmogorov(ndtr(ascending.astype(np.float64)))


def check_anderson_darling(ascending: Array) -> None:
    """A^2 = -n - sum_i (2i - 1)/n (ln F(z_i) + ln(1 - F(z_(n+1-i)))), which weighs the tails.

    For many numbers A^2 is sum_j chi^2_1 / (j (j + 1)), and P(A^2 > x) is about sqrt(3) erfc(sqrt(x)) in the tail.
    """
    n = ascending.size
    z = ascending.astype(np.float64)
    statistic = -n - (2 * np.arange(n) + 1) / n @ (log_ndtr(z) + log_ndtr(-z[::-1]))
    assert math.sqrt(3) * math.erfc(math.sqrt(statistic)) > SIGNIFICANCE, f"A^2 = {statistic}"


def check_equiprobable_bins(ascending: Array) -> None:
    edges = np.searchsorted(ascending, stats.norm.ppf(np.arange(1, 200) / 200).astype(np.float32))
    check_counts(np.diff([0, *edges, ascending.size]), 1 / 200)


def check_tails(ascending: Array) -> None:
    pairs = []
    for bound in (3, 4, 5, 5.5):
        below, up_to = np.searchsorted(ascending, np.array([-bound, bound], np.float32))
        pairs += [(below, stats.norm.sf(bound)), (ascending.size - up_to, stats.norm.sf(bound))]
    check_binomial(pairs, ascending.size)


def check_mass_near_zero(ascending: Array) -> None:
    pairs = [(np.searchsorted(ascending, np.float32(0)), 0.5)]
    for exponent in range(2, 21, 2):
        width = 2.0**-exponent
        low, high = np.searchsorted(ascending, np.array([-width, width], np.float32))
        pairs.append((high - low, math.erf(width / math.sqrt(2))))
    check_binomial(pairs, ascending.size)
    assert not (ascending == 0).any()


def check_no_value_too_frequent(ascending: Array) -> None:
    """Equal pairs of positive numbers are as many as rounding a continuous law to float32 makes.

    Of n numbers within an octave, whose floats are `ulp` apart and have probabilities q = density x ulp / mass,
    n^2/2 sum q^2 pairs are equal, with variance n^2/2 sum q^2 + n^3 (sum q^3 - (sum q^2)^2).
    """
    scores = []
    for octave in range(-4, 2):
        low, high = 2.0**octave, 2.0 ** (octave + 1)
        inside = ascending[slice(*np.searchsorted(ascending, np.array([low, high], np.float32)))]
        runs = np.diff(np.flatnonzero(np.diff(inside, prepend=-1, append=-1)))
        equal = float(runs @ (runs - 1)) / 2
        ulp, n = low * 2.0**-23, inside.size
        # The integrals of density^k, with density exp(-z^2 / 2) / sqrt(2 pi).
        mass, squares, cubes = (
            math.sqrt(2 * math.pi) ** -k * math.sqrt(math.pi / 2 / k)
            * (math.erf(high * math.sqrt(k / 2)) - math.erf(low * math.sqrt(k / 2)))
            for k in (1, 2, 3)
        )  # fmt: skip
        squares, cubes = squares * ulp / mass**2, cubes * ulp**2 / mass**3
        expected = n * (n - 1) / 2 * squares
        scores.append((equal - expected) / math.sqrt(expected + float(n) ** 3 * (cubes - squares**2)))
    check_scores(np.array(scores))


LAW = [
    check_moments,
    check_kolmogorov_smirnov,
    check_anderson_darling,
    check_equiprobable_bins,
    check_tails,
    check_mass_near_zero,
    check_no_value_too_frequent,
]


@pytest.fixture(scope="module")
def numbers() -> Array:
    """2^23 normals, float32 [8, 2^20]."""
    return draw(range(8), 2**20, step=3, stream=Stream.TRANSITION)


@pytest.fixture(scope="module")
def ascending(numbers: Array) -> Array:
    return np.sort(numbers, axis=None)


@pytest.mark.parametrize("check", LAW)
def test_numbers_are_standard_normal(check: Callable[[Array], None], ascending: Array) -> None:
    check(ascending)


@pytest.mark.parametrize("across", ["seeds", "steps"])
def test_the_first_numbers_of_many_draws_are_standard_normal(across: str) -> None:
    """What a batch, or a chain of steps, sees: a few numbers of each of 2^18 neighbouring keys or counters."""
    count = 2**18
    varied = torch.arange(count)
    z = draw(range(count), 4) if across == "seeds" else draw([7] * count, 4, step=varied)
    ascending = np.sort(z, axis=None)
    for check in LAW:
        check(ascending)
    check_table(list(quantile_cells(z, 8).T), 8)
    for word in range(4):
        check_serial(z[:, word])


def test_the_largest_number_is_that_of_the_smallest_uniform() -> None:
    """|z| is at most r(0) = sqrt(64 ln 2) = 6.66, reached at the angles 0, 1/4, 1/2 and 3/4 of a turn."""
    octave_edges = [2**k + i for k in range(32) for i in (-1, 0, 1)]
    words = np.unique(np.array([*range(2**16), *octave_edges, 2**32 - 1], dtype=np.uint32))
    r = radius(words)
    assert (np.diff(r) <= 0).all()
    assert r[0] == np.float32(math.sqrt(64 * math.log(2)))
    angles = np.array([turn + i for turn in range(0, 2**32, 2**28) for i in range(-512, 512)]) % 2**32
    assert np.abs(cos_sin(angles.astype(np.uint32))).max() == 1
    best = np.array([[0, quarter << 30, 0, (quarter << 30) + 1] for quarter in range(4)], dtype=np.uint32)
    z = normals_from_words(best)
    assert np.abs(z).max() == r[0] <= 6.661
    assert np.abs(z).max(axis=0).tolist() == [r[0]] * 4


def test_both_ends_of_the_uniform_keep_all_bits_of_the_word() -> None:
    """Neither tails nor small numbers are coarse: too rare to show in counts, so checked word by word."""
    count = np.arange(1, 2**12 + 1)
    lowest, highest = radius(count.astype(np.uint32)), radius((2**32 - count).astype(np.uint32))
    np.testing.assert_allclose(lowest, np.sqrt(-2 * np.log(count / 2**32)), rtol=2**-22)
    np.testing.assert_allclose(highest, np.sqrt(-2 * np.log1p(-count / 2**32)), rtol=2**-22)


# ---- independence ----


def signs_and_sizes(z: Array) -> Array:
    """Return z and its absolute value, standardized [2, ...]: a dependence through sign or through size shows.

    Their products have tails light enough for bounds on millions of sums of 2^14 or more; those of squares have not.
    """
    x = z.astype(np.float64)
    return np.stack([x, (np.abs(x) - math.sqrt(2 / math.pi)) / math.sqrt(1 - 2 / math.pi)])


def signs_and_squares(z: Array) -> Array:
    """Return z and its square, standardized [2, ...]."""
    x = z.astype(np.float64)
    return np.stack([x, (x * x - 1) / math.sqrt(2)])


def check_serial(z: Array) -> None:
    """Check the correlation with what comes any lag later (cyclic), by Fourier transform."""
    n = z.size
    spectra = fft.rfft(signs_and_sizes(z))
    scores = [fft.irfft(a * b.conj(), n) / math.sqrt(n) for a in spectra for b in spectra]
    check_scores(np.array(scores)[:, 1 : n // 2], independent=False)


def check_against(base: Array, others: Array) -> None:
    """Check the correlations of base [n] with others [m, n] at every lag, and more closely at lag 0."""
    n = base.size
    first, second = fft.rfft(signs_and_sizes(base)), fft.rfft(signs_and_sizes(others))
    scores = np.stack([fft.irfft(a * b.conj(), n) for a in first for b in second]) / math.sqrt(n)
    check_scores(scores, independent=False)
    check_scores(scores[..., 0])


def word_products(z: Array) -> Array:
    """Sum the products of words of a block with each other, and with those of the next, [2, 8, 8]; z [blocks, 4]."""
    h = signs_and_squares(np.ascontiguousarray(z.T)).reshape(8, -1)
    return np.stack([h @ h.T, h[:, :-1] @ h[:, 1:].T])


def check_word_products(products: Array, blocks: int) -> None:
    different_words = np.kron(np.ones((2, 2)), np.triu(np.ones((4, 4)), 1)) > 0
    scores = np.concatenate([products[0][different_words], products[1].ravel()]) / math.sqrt(blocks)
    check_scores(scores)


def check_blocks(z: Array) -> None:
    """Check the words of blocks z [samples, blocks, 4]: correlations of numbers and squares, and the joint law."""
    check_word_products(np.sum([word_products(sample) for sample in z], axis=0), z.size // 4)
    check_table(list(quantile_cells(z, 8).reshape(-1, 4).T), 8)


def test_words_and_blocks_of_a_sample_are_independent(numbers: Array) -> None:
    check_blocks(numbers.reshape(8, -1, 4))
    cells = quantile_cells(numbers.reshape(8, -1, 4)[..., 0], 8)
    check_table([cells[:, i::4].ravel() for i in range(4)], 8)  # four consecutive blocks


def test_lags_of_a_sample_are_independent(numbers: Array) -> None:
    check_serial(numbers[0])


def test_samples_with_consecutive_seeds_are_jointly_uniform(numbers: Array) -> None:
    check_table(list(quantile_cells(numbers[:4], 8)), 8)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 0x0123456789ABCDEF])
def test_neighbouring_seeds_are_independent(seed: int) -> None:
    swapped = (seed >> 32) | (seed << 32)
    neighbours = {seed + 1, seed - 1, seed + 2, -seed, ~seed, swapped, *(seed ^ 2**k for k in range(64))}
    others = sorted({other % 2**64 for other in neighbours} - {seed})
    check_against(draw([seed], 2**14)[0], draw(others, 2**14))


@pytest.mark.parametrize("step", [0, 999, 2**32 - 2])
def test_neighbouring_steps_are_independent(step: int) -> None:
    steps = torch.tensor(sorted({step, step + 1, *(step ^ 2**k for k in range(32))} - {step}))
    check_against(draw([5], 2**14, step=step)[0], draw([5] * len(steps), 2**14, step=steps))
    # A seed and a step that change together must not meet again.
    check_against(draw([6], 2**14, step=step)[0], draw([5, 7], 2**14, step=step + 1))


@pytest.mark.parametrize(("stream", "other"), list(combinations(Stream, 2)))
def test_streams_are_independent(stream: Stream, other: Stream) -> None:
    check_against(draw([11], 2**14, 3, stream)[0], draw([11, 12], 2**14, 3, other))


@pytest.fixture(scope="module")
def polar(numbers: Array) -> Array:
    """Uniforms made of the pairs of a block [4, blocks]: exp(-r^2/2) and angle, of (z0, z1) and of (z2, z3)."""
    z = numbers[:4].reshape(-1, 4).T.astype(np.float64)
    uniforms = []
    for x, y in ((z[0], z[1]), (z[2], z[3])):
        uniforms += [np.exp(-(x * x + y * y) / 2), (np.arctan2(y, x) / (2 * math.pi)) % 1]
    return np.stack(uniforms)


def test_radius_and_angle_of_pairs_are_uniform(polar: Array) -> None:
    for uniform in polar:
        check_kolmogorov(np.sort(uniform))
        check_counts(np.bincount((uniform * 4096).astype(np.int64), minlength=4096), 1 / 4096)


def test_radius_and_angle_of_pairs_are_independent(polar: Array) -> None:
    for i, j in combinations(range(4), 2):
        check_table(list((polar[[i, j]] * 64).astype(np.int64)), 64)
    check_table(list((polar * 8).astype(np.int64)), 8)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda z: np.stack([z[0], 0.8 * z[0] + 0.6 * z[1], z[2], z[3]]),
        lambda z: np.stack([z[0], z[1], z[2], np.abs(z[3]) * np.sign(z[0])]),
        lambda z: np.stack([z[0], np.abs(z[1]) * np.sign(z[0] * z[2] * z[3]), z[2], z[3]]),
        lambda z: np.stack([z[0], z[1], z[2], np.roll(z[2], 1)]),
    ],
)
def test_the_block_check_sees_a_flaw(spoil: Callable[[Array], Array], numbers: Array) -> None:
    with pytest.raises(AssertionError):
        check_blocks(spoil(numbers[0].reshape(-1, 4).T).T[None])


def test_the_checks_of_lags_see_a_flaw(numbers: Array) -> None:
    z = numbers[0, : 2**14]
    echo = np.roll(z, 777) * np.float32(0.1) + numbers[1, : 2**14]
    with pytest.raises(AssertionError):
        check_against(z, echo[None])
    with pytest.raises(AssertionError):
        check_serial(np.where(np.arange(z.size) % 1024 < 512, 1.3, 0.5) * z)


# ---- components ----

WEIGHTS = {
    "uniform 8": torch.full((8,), 1 / 8, dtype=torch.float64),
    "weighted 8": torch.arange(1, 9, dtype=torch.float64) / 36,
    "uniform 1024": torch.full((1024,), 1 / 1024, dtype=torch.float64),
    "weighted 1024": (1 / torch.arange(1, 1025, dtype=torch.float64)) / sum(1 / k for k in range(1, 1025)),
}


@pytest.mark.parametrize("across", ["seeds", "steps"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_components_follow_their_weights(name: str, across: str) -> None:
    weights, varied = WEIGHTS[name], torch.arange(2**19)
    seeds, step = (varied, 3) if across == "seeds" else (torch.full_like(varied, 3), varied)
    k = draw_components(seeds, cdf(weights)[None], step=step).numpy()
    check_counts(np.bincount(k, minlength=weights.numel()), weights.numpy())


def test_components_of_neighbouring_seeds_and_steps_are_independent() -> None:
    table = cdf(WEIGHTS["uniform 8"])[None]
    seeds = torch.arange(2**18 + 1)
    now, later = (draw_components(seeds, table, step=step).numpy() for step in (3, 4))
    check_table([now[:-1], now[1:], later[:-1], later[1:]], 8)


@pytest.mark.parametrize("name", ["uniform 8", "weighted 8"])
def test_the_component_of_a_step_is_independent_of_its_noise(name: str) -> None:
    weights = WEIGHTS[name]
    batch, elements, step = 2**17, 8, 5
    coefficients = torch.zeros(1, len(Column))
    coefficients[0, [Column.SIGMA, Column.OFFSET, Column.CLIP_MAX]] = 1
    offsets = torch.zeros(1, 8, elements)
    mixture = MixtureTables(cdf(weights)[None], offsets, torch.zeros(1, 1, 0))
    seeds, still = torch.arange(batch), torch.zeros(batch, elements)
    made = gmm_step(
        still, still, coefficients, row=0, step=step, seeds=seeds, mixture=mixture, return_components=True
    )
    assert made.components is not None
    k, z = made.components.numpy(), made.prev_sample.numpy()
    assert (z == draw(range(batch), elements, step, Stream.TRANSITION)).all()
    assert (k == draw_components(seeds, mixture.cdf, step=step).numpy()).all()
    h = signs_and_sizes(z)
    check_scores(np.array([h[:, k == i].sum(axis=1) / math.sqrt((k == i).sum()) for i in range(8)]))
    for element in range(elements):
        counts = np.bincount(k * 16 + quantile_cells(z[:, element], 16), minlength=128)
        check_counts(counts, np.repeat(weights.numpy() / 16, 16))


# ---- many more numbers ----


@pytest.mark.accuracy
def test_four_billion_numbers() -> None:
    """2^32 numbers, 65536 of each seed from 0 to 65535; `-s` shows the figures that docs/exactness.md quotes."""
    samples, elements = 2**16, 2**16
    n = samples * elements
    means, bins, largest = np.zeros(8), np.zeros(2**14, np.int64), 0.0
    widths = 2.0 ** -np.arange(10, 25, 2)
    near_zero = np.zeros(widths.size, np.int64)
    products = np.zeros((2, 8, 8))
    to_itself, to_next = np.zeros((2, elements // 2 + 1)), np.zeros((2, elements // 2 + 1), complex)
    before = None
    for seed in range(samples):
        z = draw([seed], elements)[0]
        means += moments(z) / samples
        bins += np.bincount(np.floor(z * 1024).astype(np.int32) + 8192, minlength=2**14)
        size = np.abs(z)
        largest = max(largest, float(size.max()))
        small = size[size < widths[0]]
        assert small.min() > 0
        near_zero += [np.count_nonzero(small < width) for width in widths]
        products += word_products(z.reshape(-1, 4))
        spectra = fft.rfft(signs_and_sizes(z))
        to_itself += (spectra * spectra.conj()).real
        if before is not None:
            to_next += spectra * before.conj()
        before = spectra

    edges = np.arange(-8192, 8193) / 1024
    probabilities = np.diff(ndtr(edges))
    # At the edges of bins only, so at most the full distance.
    root_n_distance = math.sqrt(n) * np.abs(np.cumsum(bins) / n - ndtr(edges[1:])).max()
    tails = [
        (int(bins[: 8192 - place].sum() + bins[8192 + place :].sum()), math.erfc(place / 1024 / math.sqrt(2)))
        for place in (3072, 4096, 5120, 5632, 6144)
    ]
    middle = list(zip(near_zero.tolist(), [math.erf(width / math.sqrt(2)) for width in widths], strict=True))
    wide = probabilities * n > 25
    cells = np.append(bins[wide], n - bins[wide].sum())
    lags = fft.irfft(to_itself, elements)[:, 1 : elements // 2] / math.sqrt(n)
    lags_to_next = fft.irfft(to_next, elements) / math.sqrt(n - elements)
    scores = moment_scores(means, n)
    print(f"\nmoments 1 to 8, standard errors from exact: {np.round(scores, 2)}")
    print(f"Kolmogorov-Smirnov sqrt(n) D: {root_n_distance:.3f}; largest |z|: {largest:.4f}")
    print(f"beyond 3, 4, 5, 5.5, 6, and expected: {[(count, round(n * p, 1)) for count, p in tails]}")
    print(f"within 2^-10, 2^-12, ... of 0, and expected: {[(count, round(n * p, 1)) for count, p in middle]}")
    print(f"largest correlation at {lags.size} lags: {np.abs(lags).max():.2f} standard errors")
    print(f"the same to the next seed, {lags_to_next.size} lags: {np.abs(lags_to_next).max():.2f}")

    check_scores(scores, independent=False)
    assert stats.kstwobign.sf(root_n_distance) > SIGNIFICANCE
    check_counts(cells, np.append(probabilities[wide], 1 - probabilities[wide].sum()))
    check_binomial(tails, n)
    check_binomial(middle, n)
    assert largest <= 6.661
    check_word_products(products, n // 4)
    check_scores(lags, independent=False)
    check_scores(lags_to_next, independent=False)
