"""Exact IEEE-754 arithmetic in NumPy: fused multiply-add, clamp, and the 16-bit formats.

Everything a backend may do is here or is one of NumPy's own + - * / sqrt, comparisons, integer operations and
conversions, each correctly rounded to nearest even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c, broadcast: rounded once in float32; in float64 a product, then a sum, each rounded.

    float32: the product of two float32 numbers is exact in float64; TwoSum gives the float64 sum s and the part e
    lost in it. Moving s to the neighbour with an odd last bit, on the side of e, keeps "there was more below"
    visible (rounding to odd), so that the second rounding, to float32, decides as if the sum had been exact.
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008.)

    Args:
        a: float32 or float64 array; `b` and `c` have the same dtype.
        b: second factor.
        c: addend.

    Returns:
        Array of that dtype.
    """
    if np.result_type(a, b, c) == np.float64:
        return a * b + c
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        addend = np.asarray(c, dtype=np.float64)
        total = product + addend
        c_part = total - product
        lost = (product - (total - c_part)) + (addend - c_part)
        is_even = (total.view(np.int64) & 1) == 0
        move = np.isfinite(total) & is_even & (lost != 0)
        odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
        return np.where(move, odd, total).astype(np.float32)


def horner(coefficients: list[Array], x: Array) -> Array:
    """Evaluate a polynomial by Horner's rule, one fma a step; coefficients of the dtype of x, lowest degree first."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = fma(value, x, coefficient)
    return value


def clip(value: Array, low: Array, high: Array) -> Array:
    """Return `value` held to [low, high]; NaN stays NaN, and a zero keeps its sign."""
    value = np.where(value < low, low, value)
    return np.where(value > high, high, value)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bit patterns (uint16) exactly."""
    widened: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return widened


def float32_to_bfloat16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bit patterns, to nearest even; subnormals are kept, NaN becomes a quiet NaN."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    last_kept = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + last_kept) >> np.uint32(16)
    result: NDArray[np.uint16] = np.where(np.isnan(value), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return result


def float32_to_float16(value: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round float32 to float16, to nearest even; subnormals are kept, values beyond 65,504 become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return value.astype(np.float16)
