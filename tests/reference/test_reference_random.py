"""The specification's random bits and normals: Random123's known answers, and the accuracy of every function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import truth
from numpy.typing import NDArray

from gmmkernel.backends.constants import Stream
from gmmkernel.backends.reference.normal import cos_sin, normals_from_words, radius, standard_normal
from gmmkernel.backends.reference.philox import philox4x32, random_words

# Known answers of Random123 (philox4x32, 10 rounds): counter, key, result. The last are digits of pi.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

MAX_ULP = 2.0
EDGE_WORDS = sorted(
    {
        (base + offset) % 2**32
        for bit in range(33)
        for base in (2**bit, 2**32 - 2**bit)
        for offset in range(-3, 4)
    }
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter, key, expected) -> None:
    assert philox4x32(np.array(counter, dtype=np.uint32), key).tolist() == list(expected)
    assert truth.philox4x32(counter, key) == list(expected)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("step", [0, 7, 2**32 - 1])
def test_words_are_keyed_by_seed_and_counted_by_block_step_and_stream(seed: int, step: int) -> None:
    for stream in Stream:
        words = random_words(seed, step, stream, first_block=0, blocks=5)
        assert words.dtype == np.uint32
        assert words.ravel().tolist() == truth.random_words(seed, step, int(stream), 20)


def test_blocks_beyond_32_bits_use_the_second_counter_word() -> None:
    first = 2**32 - 2
    words = random_words(5, 3, Stream.INITIAL, first_block=first, blocks=4)
    for i, block in enumerate(range(first, first + 4)):
        low, high = block % 2**32, block // 2**32
        assert words[i].tolist() == truth.philox4x32((low, high, 3, Stream.INITIAL), (5, 0))


def some_words() -> NDArray[np.uint32]:
    rng = np.random.default_rng(11)
    near_one = 2**32 - 1 - np.ldexp(rng.random(2000), rng.integers(0, 32, 2000)).astype(np.uint32)
    near_zero = np.ldexp(rng.random(2000), rng.integers(0, 33, 2000)).astype(np.uint32)
    return np.concatenate([EDGE_WORDS, near_one, near_zero, rng.integers(0, 2**32, 20000)]).astype(np.uint32)


def ulps(computed: NDArray[np.float32], true: NDArray[np.longdouble]) -> float:
    """Largest error in units of the last place of the true value."""
    ulp = np.spacing(abs(true).astype(np.float32)).astype(np.longdouble)
    return float((abs(computed.astype(np.longdouble) - true) / ulp).max())


def test_radius_is_within_two_ulp() -> None:
    words = some_words()
    true = np.array([truth.radius(int(word)) for word in words])
    assert ulps(radius(words), true) < MAX_ULP
    # The truth against another one, in double precision and by another formula.
    plain = [math.sqrt(-2 * math.log(max(int(word), 1) / 2**32)) if word < 2**31 else 0.0 for word in words]
    few = words < 2**31
    assert np.allclose(true[few].astype(float), np.array(plain)[few], rtol=1e-14)


def test_radius_covers_both_ends() -> None:
    ends = radius(np.array([0, 1, 2**32 - 1], dtype=np.uint32))
    assert ends[0] == ends[1]
    assert ends[1] == pytest.approx(math.sqrt(64 * math.log(2)), rel=2**-22)
    assert ends[2] == pytest.approx(math.sqrt(2) * 2.0**-16, rel=2**-22)


def test_radius_does_not_increase_with_the_word_beyond_its_error() -> None:
    words = np.unique(some_words())
    r = radius(words).astype(np.float64)
    assert (np.diff(r) <= 2 * MAX_ULP * np.spacing(r[1:].astype(np.float32))).all()


def test_cosine_and_sine_are_within_two_ulp() -> None:
    words = some_words()
    cosine, sine = cos_sin(words)
    true = np.array([truth.cos_sin(int(word)) for word in words])
    assert ulps(cosine, true[:, 0]) < MAX_ULP
    assert ulps(sine, true[:, 1]) < MAX_ULP


def test_angles_fill_the_turn_evenly() -> None:
    # All values of the highest 12 bits, the rest in the middle: 4096 angles, evenly spaced around the circle.
    words = (np.arange(4096, dtype=np.uint32) << np.uint32(20)) | np.uint32(1 << 19)
    cosine, sine = (part.astype(np.float64) for part in cos_sin(words))
    turns = np.sort(np.arctan2(sine, cosine) / (2 * np.pi) % 1)
    assert np.allclose(np.diff(turns), 1 / 4096, rtol=0, atol=1e-7)
    assert np.allclose(np.hypot(cosine, sine), 1, rtol=0, atol=3e-7)


def test_no_sine_or_cosine_is_zero() -> None:
    cosine, sine = cos_sin(some_words())
    assert (cosine != 0).all()
    assert (sine != 0).all()


def test_words_pair_up_as_documented() -> None:
    words = some_words()[: 4 * 1000].reshape(-1, 4)
    z = normals_from_words(words)
    for first in (0, 2):
        r, (cosine, sine) = radius(words[:, first]), cos_sin(words[:, first + 1])
        assert np.array_equal(z[:, first], r * cosine)
        assert np.array_equal(z[:, first + 1], r * sine)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 63, 1001])
def test_normals_follow_the_equations_within_the_derived_bound(count: int) -> None:
    z = standard_normal(-77, 12, Stream.TRAINING, count)
    assert z.shape == (count,)
    assert z.dtype == np.float32
    true = truth.standard_normal(-77, 12, int(Stream.TRAINING), count)
    assert (abs(z - true) <= abs(true) * truth.NORMAL_RELATIVE_ERROR).all()
