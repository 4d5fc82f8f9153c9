"""The method once more, independently: Python integers and extended precision, with a bound for rounding.

Written from the equations, not from the package: nothing here imports it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Extended = NDArray[np.longdouble]

# Columns of a coefficient row, streams of the generator, as the documentation numbers them.
P_X, P_O, LOW, HIGH, M_X, M_O, M_0, H_0, _, _, _, GUIDE, SIGMA, OFFSET, E_X, E_O = range(16)
TRANSITION, COMPONENT = 0, 1


def round_to_float32(value: Fraction, zero_sign: int = 0) -> float:
    """Round an exact number to binary32, nearest even; `zero_sign` is the sign bit of a zero result."""
    if value == 0:
        return -0.0 if zero_sign else 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / quantum) * quantum  # of a Fraction, Python rounds half to even
    result = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return math.copysign(result, value)


def fma_float32(a: float, b: float, c: float) -> float:
    """Return a * b + c of three binary32 numbers, rounded once, by exact rational arithmetic."""
    if math.isnan(a) or math.isnan(b) or math.isnan(c):
        return math.nan
    product_sign = (math.copysign(1, a) < 0) != (math.copysign(1, b) < 0)
    if math.isinf(a) or math.isinf(b):
        if a == 0 or b == 0:
            return math.nan
        product = -math.inf if product_sign else math.inf
        return math.nan if math.isinf(c) and c != product else product
    if math.isinf(c):
        return c
    both_negative = product_sign and math.copysign(1, c) < 0
    return round_to_float32(Fraction(a) * Fraction(b) + Fraction(c), int(both_negative))


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32 with ten rounds on Python integers (Salmon et al. 2011, section 4.1)."""
    left_0, right_0, left_1, right_1 = counter
    k0, k1 = key
    for i in range(10):
        round_0, round_1 = (k0 + i * 0x9E3779B9) % 2**32, (k1 + i * 0xBB67AE85) % 2**32
        high_0, low_0 = divmod(left_0 * 0xD2511F53, 2**32)
        high_1, low_1 = divmod(left_1 * 0xCD9E8D57, 2**32)
        left_0, right_0, left_1, right_1 = (
            high_1 ^ right_0 ^ round_0,
            low_1,
            high_0 ^ right_1 ^ round_1,
            low_0,
        )
    return [left_0, right_0, left_1, right_1]


def random_words(seed: int, step: int, stream: int, count: int) -> list[int]:
    """Words of the first blocks of a sample."""
    key = divmod(seed % 2**64, 2**32)[::-1]
    blocks = [philox4x32((block, 0, step, stream), key) for block in range(-(-count // 4))]
    return [word for block in blocks for word in block][:count]


def radius(word: int) -> np.longdouble:
    """sqrt(-2 ln u) of u = word / 2^32, the word 0 counted as 1."""
    word = max(word, 1)
    if word >= 2**31:  # ln(1 - d) with d exact
        return np.sqrt(-2 * np.log1p(np.longdouble(word - 2**32) / 2**32))
    return np.sqrt(-2 * np.log(np.longdouble(word) / 2**32))


def cos_sin(word: int) -> tuple[np.longdouble, np.longdouble]:
    """Cosine and sine of the angle a word stands for: 30 bits within (-1/8, 1/8) of a turn, a sign and a swap."""
    fraction = word % 2**30
    fraction -= 2**30 if fraction >= 2**29 else 0
    quarter_turn = 2 * np.arctan(np.longdouble(1))
    angle = quarter_turn * (np.longdouble(2 * fraction + 1) / 2**31)
    cosine, sine = np.cos(angle), np.sin(angle)
    if word >= 2**31:
        cosine = -cosine
    return (sine, cosine) if word // 2**30 % 2 else (cosine, sine)


def standard_normal(seed: int, step: int, stream: int, count: int) -> Extended:
    """Box-Muller on pairs of words, in extended precision."""
    words = random_words(seed, step, stream, -(-count // 4) * 4)
    result = []
    for a, b in zip(words[0::2], words[1::2], strict=True):
        cosine, sine = cos_sin(b)
        result += [radius(a) * cosine, radius(a) * sine]
    return np.array(result[:count], dtype=np.longdouble)


# Radius, cosine and sine are each within 2 ulp, at most 2^-22 of their size; their product rounds by 2^-24 more.
NORMAL_RELATIVE_ERROR = 2.0**-21 + 2.0**-23


def choose_component(seed: int, step: int, cdf: Sequence[int]) -> int:
    """The number of values of the cdf that the component word reaches."""
    return bisect.bisect_right(list(cdf), random_words(seed, step, COMPONENT, 1)[0])


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: half an ulp relative to a normal number, and half the smallest subnormal."""

    roundoff: float
    half_smallest: float


FORMATS = {
    "float32": Format(2.0**-24, 2.0**-150),
    "bfloat16": Format(2.0**-8, 2.0**-134),
    "float16": Format(2.0**-11, 2.0**-25),
    "float64": Format(2.0**-53, 0.0),  # half of 2^-1074 is below the range of interest
}
_TRUTH = 2.0**-63  # what the truth itself may round off, for each term


@dataclass(frozen=True)
class Bounded:
    """A true value, and how far a computed one may lie from it."""

    value: Extended
    error: Extended

    @classmethod
    def exactly(cls, value: object) -> Bounded:
        array = np.asarray(value).astype(np.longdouble)
        return cls(array, np.zeros_like(array))

    def rounded(self, to: Format) -> Bounded:
        """After one rounding: half an ulp of the largest the computed value can be."""
        return Bounded(
            self.value, self.error + to.roundoff * (abs(self.value) + self.error) + to.half_smallest
        )

    def clipped(self, low: float, high: float) -> Bounded:
        """Clipping never increases a distance, and is exact."""
        return Bounded(np.minimum(np.maximum(self.value, low), high), self.error)


def multiply_add(a: object, b: Bounded, c: Bounded, form: Format) -> Bounded:
    """Bound a * b + c, `a` exact: one rounding in float32; the product rounded first in float64."""
    factor = np.asarray(a).astype(np.longdouble)
    product = Bounded(factor * b.value, abs(factor) * b.error + _TRUTH * abs(factor * b.value))
    if form is FORMATS["float64"]:
        product = product.rounded(form)
    total = Bounded(product.value + c.value, product.error + c.error + _TRUTH * abs(c.value))
    return total.rounded(form)


def step(
    x: NDArray[np.generic],
    output: NDArray[np.generic],
    uncond: NDArray[np.generic] | None,
    history: Sequence[NDArray[np.generic]],
    row: NDArray[np.generic],
    offset: NDArray[np.generic] | None,
    std: NDArray[np.generic],
    noise: Bounded,
    form: Format,
) -> dict[str, Bounded]:
    """Bound one step of one sample, in the equations' own terms.

        o    = o_u + g (o_c - o_u)
        x0   = clip(p_x x + p_o o, lo, hi)
        mean = m_x x + m_o o + m_0 x0 + sum_j h_j hist_j
        x_s  = mean + w delta_k + std_k z

    Inputs are finite. The bounds hold for fmas in the order m_0 x0, m_o o, m_x x, history, offset, noise.
    """
    nothing = Bounded.exactly(np.zeros(x.shape))
    sample, o = Bounded.exactly(x), Bounded.exactly(output)
    if uncond is not None:
        difference = Bounded.exactly(output.astype(np.longdouble) - uncond.astype(np.longdouble)).rounded(
            form
        )
        o = multiply_add(row[GUIDE], difference, Bounded.exactly(uncond), form)
    x0 = multiply_add(row[P_O], o, multiply_add(row[P_X], sample, nothing, form), form)
    x0 = x0.clipped(float(row[LOW]), float(row[HIGH]))
    epsilon = multiply_add(row[E_O], o, multiply_add(row[E_X], sample, nothing, form), form)
    made = multiply_add(row[M_0], x0, nothing, form)
    made = multiply_add(row[M_O], o, made, form)
    made = multiply_add(row[M_X], sample, made, form)
    for j, stored in enumerate(history):
        made = multiply_add(row[H_0 + j], Bounded.exactly(stored), made, form)
    mean = made
    if offset is not None:
        made = multiply_add(row[OFFSET], Bounded.exactly(offset), made, form)
    deviation = np.concatenate([std, np.full(x.size - std.size, row[SIGMA])])
    made = multiply_add(deviation, noise, made, form)
    return {"prev_sample": made, "x0": x0, "epsilon": epsilon, "model_output": o, "mean": mean}
