"""Standard normal numbers from pairs of random words: Box-Muller with our own log, sine and cosine.

With u in (0, 1] from word a and an angle theta of a full turn from word b,

    r = sqrt(-2 ln u),    (z_0, z_1) = (r cos theta, r sin theta).

All arithmetic is float32, every multiply-add fused as written; no product feeds an addition that a compiler could
fuse. The coefficients come from ``tools/fit_normal.py``; docs/exactness.md states the errors in ulp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gmmkernel.backends.constants import Stream
from gmmkernel.backends.reference.arithmetic import fma, horner
from gmmkernel.backends.reference.philox import Words, random_words

Float32 = NDArray[np.float32]


def _coefficients(*hexadecimal: str) -> list[Float32]:
    return [np.array(float.fromhex(text), dtype=np.float32) for text in hexadecimal]


# -2 ln(1 - g/2) = g + g^2 Q(g) on [0, 1];  sin(pi/2 t) = t + t S(t^2) and cos(pi/2 t) = 1 + t^2 C(t^2) on [-1/2, 1/2].
# Lowest degree first.
LOG_Q = _coefficients(
    "0x1.fffefcp-3", "0x1.559a4p-4", "0x1.f4581ap-6", "0x1.08135ap-6",
    "-0x1.366036p-8", "0x1.20b9e2p-6", "-0x1.86cd18p-7", "0x1.5a115ap-8",
)  # fmt: skip
SIN_S = _coefficients("0x1.243f6ap-1", "-0x1.4abba8p-1", "0x1.46599ep-4", "-0x1.2ccf7ap-8")
COS_C = _coefficients("-0x1.3bd392p+0", "0x1.03aea2p-2", "-0x1.4e327cp-6")
TWO_LN_2, ONE = _coefficients("0x1.62e43p+0", "0x1p+0")

SIGN_BIT = np.uint32(1 << 31)
SWAP_BIT = np.uint32(1 << 30)


def _count_leading_zeros(word: Words) -> NDArray[np.uint32]:
    # frexp's exponent is the number of significant bits: exact, as every word is a float64; 0 for the word 0.
    _, bits = np.frexp(word.astype(np.float64))
    return (32 - bits).astype(np.uint32)


def radius(word: Words) -> Float32:
    """Return r = sqrt(-2 ln u), u = word / 2^32 rounded in its own octave (0 counts as 1): r in [2^-15.5, 6.661].

    With u = m 2^-z, m in [1/2, 1), and g = 2 (1 - m):  -2 ln u = z 2 ln 2 - 2 ln(1 - g/2). The subtraction 1 - m is
    done on integers, before anything is rounded, so u near 1 keeps all its bits.
    """
    zeros = _count_leading_zeros(word)
    below_one = (word << (zeros & np.uint32(31))).view(np.int32)  # (m - 1) 2^32
    g = below_one.astype(np.float32) * np.float32(-(2.0**-31))
    minus_2_ln_m = fma(g * g, horner(LOG_Q, g), g)
    return np.sqrt(fma(zeros.astype(np.float32), TWO_LN_2, minus_2_ln_m))


def cos_sin(word: Words) -> tuple[Float32, Float32]:
    """Return (cos, sin) of a full turn: 30 bits of angle within a quarter, then a sign and a swap bit."""
    with np.errstate(over="ignore"):
        quarter = ((word << np.uint32(2)) | np.uint32(2)).view(np.int32)
    t = quarter.astype(np.float32) * np.float32(2.0**-32)
    t2 = t * t
    sine = fma(t, horner(SIN_S, t2), t)
    cosine = fma(horner(COS_C, t2), t2, ONE)
    cosine = (cosine.view(np.uint32) ^ (word & SIGN_BIT)).view(np.float32)
    swap = (word & SWAP_BIT) != 0
    return np.where(swap, sine, cosine), np.where(swap, cosine, sine)


def normals_from_words(words: Words) -> Float32:
    """Turn random words [..., 4] into normals [..., 4]: pairs (w0, w1) -> (z0, z1) and (w2, w3) -> (z2, z3)."""
    r = radius(np.ascontiguousarray(words[..., 0::2]))
    cosine, sine = cos_sin(np.ascontiguousarray(words[..., 1::2]))
    return np.stack([r * cosine, r * sine], axis=-1).reshape(words.shape)


def standard_normal(seed: int, step: int, stream: Stream, elements: int, first_element: int = 0) -> Float32:
    """Return the standard normal noise of one sample, or of a shard of it.

    Element i of the sample takes word i % 4 of block i // 4, so the noise does not depend on how a tensor is split.

    Args:
        seed: the sample's 64-bit seed.
        step: row index in the full schedule.
        stream: purpose of the draw.
        elements: D, how many elements.
        first_element: which of the sample's is the first of them.

    Returns:
        float32 [elements].
    """
    first_block, lead = divmod(first_element, 4)
    words = random_words(seed, step, stream, first_block, blocks=-(-(lead + elements) // 4))
    return normals_from_words(words).reshape(-1)[lead : lead + elements]
