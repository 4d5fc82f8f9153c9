"""Exact arithmetic in Triton: only operations that round once and correctly, each as the reference writes it.

Every kernel is launched with `enable_fp_fusion=False`, so that no multiplication and addition are fused but by `fma`.
Inline PTX takes the place of several operations where it gives the same bits; other compilers than NVIDIA's take the
portable form (`PTX` false).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_leading_zeros(word, PTX: tl.constexpr):
    """Return the leading zeros of uint32 words, as int32; 32 for the word 0."""
    if PTX:
        zeros = tl.inline_asm_elementwise("clz.b32 $0, $1;", "=r,r", [word], tl.int32, True, 1)
    else:
        # The exponent of the word as a float is the position of its top bit. Without the bit below the top one the
        # conversion cannot round up to the next power of two.
        top = word ^ (word & (word >> 1))
        exponent = (top.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255
        zeros = tl.minimum(158 - exponent, 32)
    return zeros


@triton.jit
def square_root(value, PTX: tl.constexpr):
    """Return correctly rounded square roots of numbers in [2^-31, 45): the range of the radius."""
    if PTX:
        # What the compiler makes of sqrt.rn for arguments from 2^-101 on, without its branch for the others.
        root = tl.inline_asm_elementwise(
            """
            {
            .reg .f32 estimate, root, half, error;
            rsqrt.approx.ftz.f32 estimate, $1;
            mul.rn.f32 root, $1, estimate;
            mul.rn.f32 half, estimate, 0f3F000000;
            neg.f32 error, root;
            fma.rn.f32 error, error, root, $1;
            fma.rn.f32 $0, error, half, root;
            }
            """,
            "=f,f",
            [value],
            tl.float32,
            True,
            1,
        )
    else:
        root = tl.sqrt_rn(value)
    return root


@triton.jit
def multiply_add(a, b, c):
    """Return a * b + c: fused in float32, two roundings in float64, whose reference has no fma."""
    if c.dtype == tl.float64:
        result = a * b + c
    else:
        result = tl.fma(a, b, c)
    return result


@triton.jit
def divide(a, b):
    """Return correctly rounded quotients; only in float32 has Triton others."""
    if b.dtype == tl.float64:
        result = a / b
    else:
        result = tl.div_rn(a, b)
    return result


@triton.jit
def clip(value, low, high, PTX: tl.constexpr):
    """Return value within [low, high]; NaN passes through, and of two zeros the value stays."""
    if PTX and value.dtype == tl.float32:
        # These take the larger of two zeros to be +0, so they do for bounds that are neither zero nor NaN.
        if ((low < 0) | (low > 0)) & ((high < 0) | (high > 0)):
            value = tl.inline_asm_elementwise(
                "max.NaN.f32 $0, $1, $2; min.NaN.f32 $0, $0, $3;",
                "=&f,f,f,f",
                [value, low, high],
                tl.float32,
                True,
                1,
            )
        else:
            value = tl.where(value < low, low, value)
            value = tl.where(value > high, high, value)
    else:
        value = tl.where(value < low, low, value)
        value = tl.where(value > high, high, value)
    return value


@triton.jit
def round_to(value, dtype: tl.constexpr, PTX: tl.constexpr):
    """Round float32 or float64 once to `dtype`, to nearest even, subnormals kept."""
    if dtype == tl.bfloat16 and not PTX:  # spelled out for compilers whose code has not been executed
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value != value, 0x7FC0, rounded)
        result = rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result
