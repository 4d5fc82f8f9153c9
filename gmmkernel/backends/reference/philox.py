"""Philox4x32-10, the counter-based generator behind every random number of the package.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the known answers of
Random123 are among the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gmmkernel.backends.constants import Stream

ROUNDS = 10
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85

LOW_WORD = np.uint64(0xFFFFFFFF)
WORD_BITS = np.uint64(32)

Words = NDArray[np.uint32]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Return the four random words of each counter.

    Args:
        counter: uint32 [..., 4].
        key: two 32-bit integers.

    Returns:
        uint32 [..., 4].
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    key_0, key_1 = key
    for _ in range(ROUNDS):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> WORD_BITS) ^ c1 ^ np.uint64(key_0),
            product_1 & LOW_WORD,
            (product_0 >> WORD_BITS) ^ c3 ^ np.uint64(key_1),
            product_0 & LOW_WORD,
        )
        key_0 = (key_0 + WEYL_0) & 0xFFFFFFFF
        key_1 = (key_1 + WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(seed: int, step: int, stream: Stream, first_block: int, blocks: int) -> Words:
    """Return the words of consecutive blocks of one sample.

    The key is the sample's 64-bit seed; the counter is (block low, block high, step, stream).

    Args:
        seed: the sample's seed as a signed or unsigned 64-bit integer.
        step: row index in the full schedule, 0 to 2^32 - 1.
        stream: purpose of the draw.
        first_block: block = element // 4 of the flattened sample.
        blocks: how many.

    Returns:
        uint32 [blocks, 4].
    """
    block = np.uint64(first_block) + np.arange(blocks, dtype=np.uint64)
    counter = np.empty((blocks, 4), dtype=np.uint32)
    counter[:, 0] = block & LOW_WORD
    counter[:, 1] = block >> WORD_BITS
    counter[:, 2] = step
    counter[:, 3] = stream
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
