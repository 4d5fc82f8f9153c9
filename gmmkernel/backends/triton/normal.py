"""Box-Muller in Triton, as gmmkernel/backends/reference/normal.py explains it."""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.reference import normal
from gmmkernel.backends.triton.arithmetic import count_leading_zeros, square_root
from gmmkernel.backends.triton.philox import random_words

Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7 = (tl.constexpr(float(q)) for q in normal.LOG_Q)
S0, S1, S2, S3 = (tl.constexpr(float(s)) for s in normal.SIN_S)
C0, C1, C2 = (tl.constexpr(float(c)) for c in normal.COS_C)
TWO_LN_2 = tl.constexpr(float(normal.TWO_LN_2))
MINUS_2_31 = tl.constexpr(-(2.0**-31))
TWO_32 = tl.constexpr(2.0**-32)


@triton.jit
def constant(like, value: tl.constexpr):
    """Return a tensor of one float32 value, in the shape of another."""
    return tl.full(like.shape, value, tl.float32)


@triton.jit
def radius(word, PTX: tl.constexpr):
    """Return r = sqrt(-2 ln u) of u = word / 2^32 (0 counts as 1); word is uint32."""
    zeros = count_leading_zeros(word, PTX)
    below_one = (word << (zeros & 31).to(tl.uint32)).to(tl.int32, bitcast=True)
    g = below_one.to(tl.float32) * MINUS_2_31
    q = tl.fma(constant(g, Q7), g, constant(g, Q6))
    q = tl.fma(q, g, constant(g, Q5))
    q = tl.fma(q, g, constant(g, Q4))
    q = tl.fma(q, g, constant(g, Q3))
    q = tl.fma(q, g, constant(g, Q2))
    q = tl.fma(q, g, constant(g, Q1))
    q = tl.fma(q, g, constant(g, Q0))
    minus_2_ln_m = tl.fma(g * g, q, g)
    return square_root(tl.fma(zeros.to(tl.float32), constant(g, TWO_LN_2), minus_2_ln_m), PTX)


@triton.jit
def cos_sin(word):
    """Return cosine and sine of the full turn that a uint32 word stands for."""
    t = ((word << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * TWO_32
    t2 = t * t
    s = tl.fma(constant(t, S3), t2, constant(t, S2))
    s = tl.fma(s, t2, constant(t, S1))
    s = tl.fma(s, t2, constant(t, S0))
    c = tl.fma(constant(t, C2), t2, constant(t, C1))
    c = tl.fma(c, t2, constant(t, C0))
    sine = tl.fma(t, s, t)
    cosine = tl.fma(c, t2, constant(t, 1.0))
    cosine = (cosine.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)
    swap = (word & 0x40000000) != 0
    return tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)


@triton.jit
def four_normals(seed, block, step, STREAM: tl.constexpr, PTX: tl.constexpr):
    """Return the four normals of each block: [N] int64 blocks -> four float32 [N]."""
    word0, word1, word2, word3 = random_words(seed, block, step, STREAM)
    r0, r1 = radius(word0, PTX), radius(word2, PTX)
    cos0, sin0 = cos_sin(word1)
    cos1, sin1 = cos_sin(word3)
    return r0 * cos0, r0 * sin0, r1 * cos1, r1 * sin1


@triton.jit
def normals(seed, first, step, N: tl.constexpr, DTYPE: tl.constexpr, STREAM: tl.constexpr, PTX: tl.constexpr):
    """Return N normals for the elements from `first`, a multiple of 8, on: float32 [N] in order.

    16 bytes of `DTYPE`, 4 elements at least, lie in one thread's registers, so that loads and stores need no
    exchange between threads: one Philox block, or two of the 16-bit types.
    """
    if DTYPE.primitive_bitwidth != 16:
        block = first // 4 + tl.arange(0, N // 4)
        z0, z1, z2, z3 = four_normals(seed, block, step, STREAM, PTX)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [N])
    else:
        block = first // 4 + 2 * tl.arange(0, N // 8)
        a0, a1, a2, a3 = four_normals(seed, block, step, STREAM, PTX)
        b0, b1, b2, b3 = four_normals(seed, block + 1, step, STREAM, PTX)
        even = tl.join(tl.join(a0, b0), tl.join(a2, b2))
        odd = tl.join(tl.join(a1, b1), tl.join(a3, b3))
        z = tl.reshape(tl.join(even, odd), [N])
    return z


@triton.jit
def normals_from(
    seed, start, step, N: tl.constexpr, DTYPE: tl.constexpr, STREAM: tl.constexpr, PTX: tl.constexpr
):
    """Return the same for the elements from any `start` on, an int64 taken as unsigned."""
    if ((start & 7) == 0) & (start >= 0):
        z = normals(seed, start, step, N, DTYPE, STREAM, PTX)
    else:
        element = (start + tl.arange(0, N)).to(tl.uint64, bitcast=True)
        z0, z1, z2, z3 = four_normals(seed, (element >> 2).to(tl.int64, bitcast=True), step, STREAM, PTX)
        word = (element & 3).to(tl.int32)
        z = tl.where(word < 2, tl.where(word == 0, z0, z1), tl.where(word == 2, z2, z3))
    return z


@triton.jit
def shard_normals(
    seed, start, step,
    N: tl.constexpr, DTYPE: tl.constexpr, STREAM: tl.constexpr, SHARD: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Return `normals_from` where SHARD says that a sample's noise may begin anywhere, else `normals`."""
    if SHARD:
        z = normals_from(seed, start, step, N, DTYPE, STREAM, PTX)
    else:
        z = normals(seed, start, step, N, DTYPE, STREAM, PTX)
    return z
