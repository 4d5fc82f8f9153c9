"""The specification's arithmetic against exact rational arithmetic and PyTorch's own conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import truth
from numpy.typing import NDArray

from gmmkernel.backends.reference.arithmetic import (
    bfloat16_to_float32,
    clip,
    float32_to_bfloat16,
    float32_to_float16,
    fma,
)

Float32 = NDArray[np.float32]
Triple = tuple[Float32, Float32, Float32]


def exact_fma(a: Float32, b: Float32, c: Float32) -> Float32:
    triples = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    return np.array([truth.fma_float32(*triple) for triple in triples], dtype=np.float32)


def naive_fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """Multiply and add in float64, then round again: what the contract forbids."""
    with np.errstate(all="ignore"):
        return (a.astype(np.float64) * b + c).astype(np.float32)


def mismatches(left: Float32, right: Float32) -> int:
    same = (left.view(np.uint32) == right.view(np.uint32)) | (np.isnan(left) & np.isnan(right))
    return int((~same).sum())


def any_bits(rng: np.random.Generator, count: int) -> Float32:
    return rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)


def random_patterns(rng: np.random.Generator) -> Triple:
    return any_bits(rng, 8000), any_bits(rng, 8000), any_bits(rng, 8000)


def patterns_of_like_size(rng: np.random.Generator) -> Triple:
    """Products and addends of about the same size, with cancellation."""
    a, b = any_bits(rng, 8000), any_bits(rng, 8000)
    with np.errstate(all="ignore"):
        return (
            a,
            b,
            naive_fma(-a, b, np.zeros_like(a)) * rng.choice(np.float32([1, -1, 0.5, 1.0000001, 4]), 8000),
        )


def subnormal_results(rng: np.random.Generator) -> Triple:
    a = np.ldexp(rng.uniform(1, 2, 6000), rng.integers(-80, -55, 6000)).astype(np.float32)
    b = np.ldexp(rng.uniform(-2, 2, 6000), rng.integers(-95, -65, 6000)).astype(np.float32)
    c = (rng.integers(0, 2**24, 6000).astype(np.uint32) | np.uint32(1 << 31)).view(np.float32)
    return a, b, c


def special_values(rng: np.random.Generator) -> Triple:
    edges = np.float32(
        [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.5]
    )
    a, b, c = (grid.ravel() for grid in np.meshgrid(edges, edges, edges))
    return a, b, c


def constructed_ties(
    rng: np.random.Generator, count: int = 8000, exponents: tuple[int, int] = (-40, 40)
) -> Triple:
    """Products half way between two float32, and an addend too small for float64 that settles the tie.

    A product of an odd 12-bit and an odd 13-bit number, where it has 25 bits, is such a tie.
    """
    p = rng.integers(2**11, 2**12, 4 * count) | 1
    q = rng.integers(2**12, 2**13, 4 * count) | 1
    keep = p * q >= 2**24
    p, q = p[keep][:count], q[keep][:count]
    scale_p, scale_q = rng.integers(*exponents, (2, p.size))
    a = np.ldexp(p.astype(np.float64), scale_p).astype(np.float32)
    b = np.ldexp(q.astype(np.float64), scale_q).astype(np.float32)
    sizes = scale_p + scale_q - rng.integers(40, 60, p.size)
    c = np.ldexp(rng.uniform(1, 2, p.size), sizes) * rng.choice([-1, 1], p.size)
    return a * rng.choice(np.float32([-1, 1]), p.size), b, c.astype(np.float32)


def subnormal_ties(rng: np.random.Generator) -> Triple:
    """As `constructed_ties`, between subnormals: k 2^-149 plus or minus (1 - 2^-46) 2^-150, just off half a unit."""
    k = rng.integers(2**8, 2**22, 4000).astype(np.uint32)
    a = np.ldexp(rng.choice([-1, 1], k.size) * (1 + 2.0**-23), -75).astype(np.float32)
    b = np.full(k.size, np.ldexp(1 - 2.0**-23, -75), np.float32)
    return a, b, k.view(np.float32)


GENERATORS = (
    random_patterns,
    patterns_of_like_size,
    subnormal_results,
    special_values,
    constructed_ties,
    subnormal_ties,
)


@pytest.mark.parametrize("make", GENERATORS, ids=lambda make: make.__name__)
def test_fma_is_the_exact_result_rounded_once(make) -> None:
    a, b, c = make(np.random.default_rng(1))
    result = fma(a, b, c)
    assert result.dtype == np.float32
    assert mismatches(result, exact_fma(a, b, c)) == 0


def test_fma_of_float64_rounds_product_and_sum_separately() -> None:
    tiny = 2.0**-52
    a, b, c = np.array([1 + tiny]), np.array([1 - tiny]), np.array([-1.0])
    assert fma(a, b, c)[0] == 0.0  # an exact one would give -2^-104
    assert fma(a, b, c).dtype == np.float64


def test_fma_broadcasts_scalars_and_arrays() -> None:
    x = np.float32([1, 2, 3])
    assert np.array_equal(fma(np.float32(2), x, np.float32(1)), np.float32([3, 5, 7]))
    assert fma(np.float32(2), x[:, None], x[None, :]).shape == (3, 3)
    assert fma(np.float32(2), np.zeros(0, np.float32), np.float32(1)).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_keeps_nan_and_the_sign_of_zero(dtype: type) -> None:
    value = np.array([-2, -1, -0.0, 0.0, 0.5, 1, 2, np.inf, -np.inf, np.nan], dtype)
    held = clip(value, dtype(-1), dtype(1))
    assert np.array_equal(held, np.array([-1, -1, 0, 0, 0.5, 1, 1, 1, -1, np.nan], dtype), equal_nan=True)
    assert np.array_equal(np.signbit(clip(value, dtype(0), dtype(0))[[2, 3]]), [True, False])
    unbounded = clip(value, dtype(-np.inf), dtype(np.inf))
    assert np.array_equal(unbounded, value, equal_nan=True)
    assert np.array_equal(np.signbit(unbounded[:9]), np.signbit(value[:9]))


ALL_16_BIT_PATTERNS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


def values_around(patterns: Float32) -> Float32:
    """Each number, the ties half way to the next of its 16-bit format, and the float32 beside those."""
    finite = np.sort(patterns[np.isfinite(patterns)].astype(np.float64))
    ties = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    sides = np.float32([-np.inf, np.inf])
    with np.errstate(invalid="ignore"):
        beside = [np.nextafter(values, side) for values in (ties, patterns) for side in sides]
    beyond = np.float32([np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 65519.996, 65520, 1e-45, -0.0])
    nan = np.uint32([0x7F800001, 0x7F800FFF, 0x7FFFFFFF, 0xFFFFFFFF]).view(np.float32)
    return np.concatenate([patterns, ties, *beside, beyond, nan])


def same_half_bits(actual: NDArray[np.uint16], expected: torch.Tensor) -> bool:
    bits = expected.view(torch.int16).numpy().view(np.uint16)
    nan = expected.isnan().numpy()
    ours = torch.from_numpy(actual.view(np.int16)).view(expected.dtype)
    return bool((ours.isnan().numpy() == nan).all() and (actual == bits)[~nan].all())


def test_every_bfloat16_widens_and_rounds_as_in_torch() -> None:
    widened = bfloat16_to_float32(ALL_16_BIT_PATTERNS)
    torchs = torch.from_numpy(ALL_16_BIT_PATTERNS.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert mismatches(widened, torchs) == 0
    values = values_around(widened)
    assert same_half_bits(float32_to_bfloat16(values), torch.from_numpy(values).bfloat16())


def test_every_float16_rounds_as_in_torch() -> None:
    values = values_around(ALL_16_BIT_PATTERNS.view(np.float16).astype(np.float32))
    made = float32_to_float16(values)
    assert made.dtype == np.float16
    assert same_half_bits(made.view(np.uint16), torch.from_numpy(values).half())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0 + 2.0**-7), (1.0 + 2.0**-7, 1.0 + 2.0**-6)])
def test_a_bfloat16_tie_goes_to_the_even_neighbour(low: float, high: float) -> None:
    tie = np.float32([(low + high) / 2])
    even = [value for value in (low, high) if int(np.float32(value).view(np.uint32) >> 16) % 2 == 0]
    assert bfloat16_to_float32(float32_to_bfloat16(tie)).tolist() == even
