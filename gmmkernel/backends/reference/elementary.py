"""Natural logarithm and exponential, float32 or float64, for log-densities.

Only the operations of ``arithmetic.py``: a reduction on the exponent's bits, then a polynomial. In float32 every
multiply-add is fused as written, in float64 each is a product and a sum. The coefficients come from
``tools/fit_elementary.py``; docs/exactness.md states the errors in ulp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gmmkernel.backends.reference.arithmetic import Array, clip, fma, horner


@dataclass(frozen=True)
class _Format:
    """The constants of one floating-point format."""

    real: type[np.floating[Any]]
    integer: type[np.signedinteger[Any]]
    fraction_bits: int
    bias: int
    sqrt_half: int  # the bits of sqrt(1/2): significands are taken from there to sqrt(2)
    smallest_normal: float
    to_integer: (
        float  # 1.5 2^fraction_bits: adding it rounds to an integer and puts that into the lowest bits
    )
    ln_2_high: float  # few enough bits for an exact product with any exponent
    ln_2_low: float
    log2_e: float
    exp_low: float  # exp is 0 from here down
    exp_high: float  # and infinite from here up
    log_p: tuple[float, ...]  # ln(1 + f) = f + f^2 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], lowest degree first
    exp_p: tuple[float, ...]  # exp(r) = 1 + r + r^2 P(r) on [-ln(2) / 2, ln(2) / 2]

    def constant(self, value: float) -> Array:
        """Return a number in this format."""
        return np.array(value, dtype=self.real)

    def polynomial(self, coefficients: tuple[float, ...], x: Array) -> Array:
        """Evaluate a polynomial in this format."""
        return horner([self.constant(coefficient) for coefficient in coefficients], x)

    def power_of_two(self, exponent: Array) -> Array:
        """Return 2^exponent for integers within the normal numbers."""
        low_bits = (exponent + self.constant(self.to_integer + self.bias)).view(self.integer)
        power: Array = (low_bits << self.integer(self.fraction_bits)).view(self.real)
        return power


def _numbers(*hexadecimal: str) -> tuple[float, ...]:
    return tuple(float.fromhex(text) for text in hexadecimal)


FLOAT32 = _Format(
    real=np.float32,
    integer=np.int32,
    fraction_bits=23,
    bias=127,
    sqrt_half=0x3F3504F3,
    smallest_normal=2.0**-126,
    to_integer=1.5 * 2.0**23,
    ln_2_high=float.fromhex("0x1.62e4p-1"),
    ln_2_low=float.fromhex("0x1.7f7d1cp-20"),
    log2_e=float.fromhex("0x1.715476p+0"),
    exp_low=-104.0,
    exp_high=89.0,
    log_p=_numbers(
        "-0x1p-1", "0x1.555554p-2", "-0x1.000226p-2", "0x1.99a01cp-3", "-0x1.54728ap-3",
        "0x1.22d92ep-3", "-0x1.0d8242p-3", "0x1.055ec6p-3", "-0x1.38c9dep-4",
    ),
    exp_p=_numbers("0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558aap-5", "0x1.12396ep-7", "0x1.6a524ep-10"),
)  # fmt: skip
FLOAT64 = _Format(
    real=np.float64,
    integer=np.int64,
    fraction_bits=52,
    bias=1023,
    sqrt_half=0x3FE6A09E667F3BCD,
    smallest_normal=2.0**-1022,
    to_integer=1.5 * 2.0**52,
    ln_2_high=float.fromhex("0x1.62e42fefap-1"),
    ln_2_low=float.fromhex("0x1.cf79abc9e3b3ap-40"),
    log2_e=float.fromhex("0x1.71547652b82fep+0"),
    exp_low=-746.0,
    exp_high=710.0,
    log_p=_numbers(
        "-0x1p-1", "0x1.5555555555556p-2", "-0x1.fffffffffffe7p-3", "0x1.999999999901p-3",
        "-0x1.5555555558074p-3", "0x1.24924925376dap-3", "-0x1.fffffffe0374fp-4", "0x1.c71c713ccca51p-4",
        "-0x1.9999999711ba3p-4", "0x1.745d343946656p-4", "-0x1.555574cd5f5abp-4", "0x1.3b105762c04e6p-4",
        "-0x1.248bbb2b73ddp-4", "0x1.1148d6d97be33p-4", "-0x1.009d9ede13925p-4", "0x1.de2b25a838da5p-5",
        "-0x1.b7c4ffe0c77fep-5", "0x1.b81071d2b9325p-5", "-0x1.f6223b4ebae32p-5", "0x1.d03182232bb2p-5",
        "-0x1.9a9a68c44703ep-6",
    ),
    exp_p=_numbers(
        "0x1p-1", "0x1.5555555555557p-3", "0x1.5555555555556p-5", "0x1.11111111100dcp-7",
        "0x1.6c16c16c162d4p-10", "0x1.a01a01abe7fe1p-13", "0x1.a01a01a6d889cp-16", "0x1.71de0231960ebp-19",
        "0x1.27e4db646b17ep-22", "0x1.af4de97ca4194p-26", "0x1.1f730349868cep-29",
    ),
)  # fmt: skip


def _format(x: Array) -> _Format:
    return {np.dtype(np.float32): FLOAT32, np.dtype(np.float64): FLOAT64}[x.dtype]


def log(x: Array) -> Array:
    """Return ln x in x's dtype: -inf at zeros, NaN below them, infinity and NaN unchanged.

    x = m 2^e with m in [sqrt(1/2), sqrt(2)), so that e is 0 around 1. With f = m - 1, exact, the logarithm is
    e ln 2 + f + f^2 P(f). The first sum's rounding error is found again and added to the last terms.

    Args:
        x: float32 or float64 array, subnormals included.
    """
    form = _format(x)
    with np.errstate(all="ignore"):
        subnormal = x < form.constant(form.smallest_normal)
        scaled = np.where(subnormal, x * form.constant(2.0**form.fraction_bits), x)
        above = scaled.view(form.integer) - form.integer(form.sqrt_half)
        fraction = above & form.integer(2**form.fraction_bits - 1)
        m = (fraction + form.integer(form.sqrt_half)).view(form.real)
        e = (above >> form.integer(form.fraction_bits)).astype(form.real)
        e = np.where(subnormal, e - form.constant(form.fraction_bits), e)

        f = m - form.constant(1)
        whole = e * form.constant(form.ln_2_high)  # exact, and 0 or larger than f
        first = whole + f
        lost = f - (first - whole)
        rest = fma(e, form.constant(form.ln_2_low), lost)
        result = first + fma(f * f, form.polynomial(form.log_p, f), rest)

        result = np.where(x > 0, result, form.constant(-np.inf))
        result = np.where(x < 0, form.constant(np.nan), result)
        return np.where(x < form.constant(np.inf), result, x)


def exp(x: Array) -> Array:
    """Return e^x in x's dtype: infinity where it is too large, through the subnormals down to 0, NaN for NaN.

    With n the integer nearest to x / ln 2 and r = x - n ln 2, the exponential is 2^n (1 + r + r^2 P(r)). 2^n is
    multiplied in as two powers, whose exponents are always normal: the first product is exact, so that only the
    second one rounds, where the result is subnormal.

    Args:
        x: float32 or float64 array.
    """
    form = _format(x)
    to_integer = form.constant(form.to_integer)
    with np.errstate(all="ignore"):
        x = clip(x, form.constant(form.exp_low), form.constant(form.exp_high))
        n = fma(x, form.constant(form.log2_e), to_integer) - to_integer
        r = fma(n, form.constant(-form.ln_2_high), x)
        r = fma(n, form.constant(-form.ln_2_low), r)
        significand = form.constant(1) + fma(r * r, form.polynomial(form.exp_p, r), r)
        half = fma(n, form.constant(0.5), to_integer) - to_integer
        return significand * form.power_of_two(half) * form.power_of_two(n - half)
