"""Natural logarithm and exponential in Triton, float32, as gmmkernel/backends/reference/elementary.py explains them."""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.reference.elementary import FLOAT32
from gmmkernel.backends.triton.normal import constant

L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(p) for p in FLOAT32.log_p)
E0, E1, E2, E3, E4 = (tl.constexpr(p) for p in FLOAT32.exp_p)
SMALLEST_NORMAL = tl.constexpr(FLOAT32.smallest_normal)
SUBNORMAL_SCALE = tl.constexpr(2.0**23)
SQRT_HALF = tl.constexpr(FLOAT32.sqrt_half)
LN_2_HIGH = tl.constexpr(FLOAT32.ln_2_high)
LN_2_LOW = tl.constexpr(FLOAT32.ln_2_low)
MINUS_LN_2_HIGH = tl.constexpr(-FLOAT32.ln_2_high)
MINUS_LN_2_LOW = tl.constexpr(-FLOAT32.ln_2_low)
LOG2_E = tl.constexpr(FLOAT32.log2_e)
TO_INTEGER = tl.constexpr(FLOAT32.to_integer)
BIASED = tl.constexpr(FLOAT32.to_integer + FLOAT32.bias)
EXP_LOW = tl.constexpr(FLOAT32.exp_low)
EXP_HIGH = tl.constexpr(FLOAT32.exp_high)
INFINITY = tl.constexpr(float("inf"))
MINUS_INFINITY = tl.constexpr(float("-inf"))
NAN = tl.constexpr(float("nan"))


@triton.jit
def log(x):
    """Return ln x of float32: -inf at zeros, NaN below them, infinity and NaN unchanged."""
    subnormal = x < SMALLEST_NORMAL
    scaled = tl.where(subnormal, x * SUBNORMAL_SCALE, x)
    above = scaled.to(tl.int32, bitcast=True) - SQRT_HALF
    m = ((above & 0x7FFFFF) + SQRT_HALF).to(tl.float32, bitcast=True)
    e = (above >> 23).to(tl.float32)
    e = tl.where(subnormal, e - 23.0, e)

    f = m - 1.0
    p = tl.fma(constant(f, L8), f, constant(f, L7))
    p = tl.fma(p, f, constant(f, L6))
    p = tl.fma(p, f, constant(f, L5))
    p = tl.fma(p, f, constant(f, L4))
    p = tl.fma(p, f, constant(f, L3))
    p = tl.fma(p, f, constant(f, L2))
    p = tl.fma(p, f, constant(f, L1))
    p = tl.fma(p, f, constant(f, L0))
    whole = e * LN_2_HIGH
    first = whole + f
    lost = f - (first - whole)
    rest = tl.fma(e, constant(f, LN_2_LOW), lost)
    result = first + tl.fma(f * f, p, rest)

    result = tl.where(x > 0.0, result, MINUS_INFINITY)
    result = tl.where(x < 0.0, NAN, result)
    return tl.where(x < INFINITY, result, x)


@triton.jit
def power_of_two(n):
    """Return 2^n for float32 integers in [-126, 127]."""
    return ((n + BIASED).to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp(x):
    """Return e^x of float32: infinity where it is too large, through the subnormals down to 0, NaN for NaN."""
    x = tl.where(x < EXP_LOW, EXP_LOW, x)
    x = tl.where(x > EXP_HIGH, EXP_HIGH, x)
    n = tl.fma(x, constant(x, LOG2_E), constant(x, TO_INTEGER)) - TO_INTEGER
    r = tl.fma(n, constant(x, MINUS_LN_2_HIGH), x)
    r = tl.fma(n, constant(x, MINUS_LN_2_LOW), r)
    p = tl.fma(constant(r, E4), r, constant(r, E3))
    p = tl.fma(p, r, constant(r, E2))
    p = tl.fma(p, r, constant(r, E1))
    p = tl.fma(p, r, constant(r, E0))
    significand = tl.fma(r * r, p, r) + 1.0
    half = tl.fma(n, constant(n, 0.5), constant(n, TO_INTEGER)) - TO_INTEGER
    return significand * power_of_two(half) * power_of_two(n - half)
