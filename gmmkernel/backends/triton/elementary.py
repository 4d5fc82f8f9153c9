"""Natural logarithm and exponential in Triton, as gmmkernel/backends/reference/elementary.py explains them."""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.reference.elementary import FLOAT32, FLOAT64
from gmmkernel.backends.triton.arithmetic import multiply_add

LOG_P_32, LOG_P_64 = tl.constexpr(FLOAT32.log_p), tl.constexpr(FLOAT64.log_p)
LOG_COUNT_32, LOG_COUNT_64 = tl.constexpr(len(FLOAT32.log_p)), tl.constexpr(len(FLOAT64.log_p))
EXP_P_32, EXP_P_64 = tl.constexpr(FLOAT32.exp_p), tl.constexpr(FLOAT64.exp_p)
EXP_COUNT_32, EXP_COUNT_64 = tl.constexpr(len(FLOAT32.exp_p)), tl.constexpr(len(FLOAT64.exp_p))
# One number of each format: for float32, and for float64.
FRACTION_BITS = tl.constexpr((FLOAT32.fraction_bits, FLOAT64.fraction_bits))
FRACTION = tl.constexpr((2**FLOAT32.fraction_bits - 1, 2**FLOAT64.fraction_bits - 1))
SQRT_HALF = tl.constexpr((FLOAT32.sqrt_half, FLOAT64.sqrt_half))
SMALLEST_NORMAL = tl.constexpr((FLOAT32.smallest_normal, FLOAT64.smallest_normal))
SUBNORMAL_SCALE = tl.constexpr((2.0**FLOAT32.fraction_bits, 2.0**FLOAT64.fraction_bits))
LN_2_HIGH = tl.constexpr((FLOAT32.ln_2_high, FLOAT64.ln_2_high))
LN_2_LOW = tl.constexpr((FLOAT32.ln_2_low, FLOAT64.ln_2_low))
MINUS_LN_2_HIGH = tl.constexpr((-FLOAT32.ln_2_high, -FLOAT64.ln_2_high))
MINUS_LN_2_LOW = tl.constexpr((-FLOAT32.ln_2_low, -FLOAT64.ln_2_low))
LOG2_E = tl.constexpr((FLOAT32.log2_e, FLOAT64.log2_e))
TO_INTEGER = tl.constexpr((FLOAT32.to_integer, FLOAT64.to_integer))
BIASED = tl.constexpr((FLOAT32.to_integer + FLOAT32.bias, FLOAT64.to_integer + FLOAT64.bias))
EXP_LOW = tl.constexpr((FLOAT32.exp_low, FLOAT64.exp_low))
EXP_HIGH = tl.constexpr((FLOAT32.exp_high, FLOAT64.exp_high))


@triton.jit
def constant(like, value: tl.constexpr):
    """Return a tensor of one value, in the shape and type of another: never rounded to another type on the way."""
    return tl.full(like.shape, value, like.dtype)


@triton.jit
def horner(coefficients: tl.constexpr, COUNT: tl.constexpr, x):
    """Evaluate a polynomial, lowest degree first, by one fma a step."""
    value = constant(x, coefficients[COUNT - 1])
    for i in tl.static_range(1, COUNT):
        value = multiply_add(value, x, constant(x, coefficients[COUNT - 1 - i]))
    return value


@triton.jit
def log(x):
    """Return ln x: -inf at zeros, NaN below them, infinity and NaN unchanged."""
    F: tl.constexpr = 1 if x.dtype == tl.float64 else 0
    INTEGER: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    subnormal = x < constant(x, SMALLEST_NORMAL[F])
    scaled = tl.where(subnormal, x * constant(x, SUBNORMAL_SCALE[F]), x)
    above = scaled.to(INTEGER, bitcast=True) - SQRT_HALF[F]
    m = ((above & FRACTION[F]) + SQRT_HALF[F]).to(x.dtype, bitcast=True)
    e = (above >> FRACTION_BITS[F]).to(x.dtype)
    e = tl.where(subnormal, e - constant(e, FRACTION_BITS[F]), e)

    f = m - 1.0
    if F == 1:
        p = horner(LOG_P_64, LOG_COUNT_64, f)
    else:
        p = horner(LOG_P_32, LOG_COUNT_32, f)
    whole = e * constant(e, LN_2_HIGH[F])
    first = whole + f
    lost = f - (first - whole)
    rest = multiply_add(e, constant(f, LN_2_LOW[F]), lost)
    result = first + multiply_add(f * f, p, rest)

    result = tl.where(x > 0.0, result, float("-inf"))
    result = tl.where(x < 0.0, float("nan"), result)
    return tl.where(x < float("inf"), result, x)


@triton.jit
def power_of_two(n):
    """Return 2^n for integers within the normal numbers."""
    F: tl.constexpr = 1 if n.dtype == tl.float64 else 0
    INTEGER: tl.constexpr = tl.int64 if n.dtype == tl.float64 else tl.int32
    low_bits = (n + constant(n, BIASED[F])).to(INTEGER, bitcast=True)
    return (low_bits << FRACTION_BITS[F]).to(n.dtype, bitcast=True)


@triton.jit
def exp(x):
    """Return e^x: infinity where it is too large, through the subnormals down to 0, NaN for NaN."""
    F: tl.constexpr = 1 if x.dtype == tl.float64 else 0
    low, high = constant(x, EXP_LOW[F]), constant(x, EXP_HIGH[F])
    x = tl.where(x < low, low, x)
    x = tl.where(x > high, high, x)
    to_integer = constant(x, TO_INTEGER[F])
    n = multiply_add(x, constant(x, LOG2_E[F]), to_integer) - to_integer
    r = multiply_add(n, constant(x, MINUS_LN_2_HIGH[F]), x)
    r = multiply_add(n, constant(x, MINUS_LN_2_LOW[F]), r)
    if F == 1:
        p = horner(EXP_P_64, EXP_COUNT_64, r)
    else:
        p = horner(EXP_P_32, EXP_COUNT_32, r)
    significand = multiply_add(r * r, p, r) + 1.0
    half = multiply_add(n, constant(n, 0.5), to_integer) - to_integer
    return significand * power_of_two(half) * power_of_two(n - half)
