"""Arguments for logarithms and exponentials, and a digest of results: csrc/tests/test_elementary.cpp makes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def floats() -> NDArray[np.float32]:
    """Every 4099th bit pattern, the ends of each binade and of log's, exp's whole range, the neighbours of 1."""
    patterns = np.arange(1 << 20, dtype=np.uint64) * np.uint64(4099)
    fractions = np.array([0, 1, 0x3504F2, 0x3504F3, 0x3504F4, 0x400000, 0x7FFFFE, 0x7FFFFF], np.uint64)
    binades = (np.arange(512, dtype=np.uint64)[:, None] << np.uint64(23)) | fractions
    index = np.arange(1 << 18)
    near_1 = (0x3F800000 + (index - (1 << 17)) * 61).astype(np.uint32).view(np.float32)
    exponents = (-105 + 195 * (index * 2.0**-18)).astype(np.float32)
    bits = np.concatenate([patterns, binades.reshape(-1)]).astype(np.uint32)
    return np.concatenate([bits.view(np.float32), exponents, near_1])


def doubles() -> NDArray[np.float64]:
    """As `floats`, but for the first part, which is evenly spread over all bit patterns."""
    patterns = np.arange(1 << 19, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    middle = 0x6A09E667F3BCD
    fractions = np.array(
        [0, 1, middle - 1, middle, middle + 1, 1 << 51, (1 << 52) - 2, (1 << 52) - 1], np.uint64
    )
    binades = (np.arange(4096, dtype=np.uint64)[:, None] << np.uint64(52)) | fractions
    index = np.arange(1 << 18)
    near_1 = (0x3FF0000000000000 + (index - (1 << 17)) * 0x1234567891).view(np.float64)
    exponents = -750 + 1465 * (index * 2.0**-18)
    return np.concatenate(
        [np.concatenate([patterns, binades.reshape(-1)]).view(np.float64), exponents, near_1]
    )


def digest(values: NDArray[np.floating[Any]]) -> int:
    """Return the sum of the bit patterns, each times twice its place plus one, modulo 2^64; NaN counts as 0."""
    bits = values.view(f"u{values.itemsize}").astype(np.uint64)
    bits[np.isnan(values)] = 0
    odd = np.arange(len(values), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return int((bits * odd).sum(dtype=np.uint64))
