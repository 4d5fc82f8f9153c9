"""Philox4x32-10 (Salmon et al. 2011) in Triton: one block, four words, for each element of a tensor."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(word0, word1, word2, word3, key_low, key_high):
    """Return the four random words of each counter; all uint32."""
    for _ in tl.static_range(10):
        # One 64-bit product gives both halves: cheaper than two 32-bit ones.
        product0 = word0.to(tl.uint64) * 0xD2511F53
        product1 = word2.to(tl.uint64) * 0xCD9E8D57
        word0 = (product1 >> 32).to(tl.uint32) ^ word1 ^ key_low
        word1 = product1.to(tl.uint32)
        word2 = (product0 >> 32).to(tl.uint32) ^ word3 ^ key_high
        word3 = product0.to(tl.uint32)
        key_low += 0x9E3779B9
        key_high += 0xBB67AE85
    return word0, word1, word2, word3


@triton.jit
def random_words(seed, block, step, STREAM: tl.constexpr):
    """Return the four random words of int64 blocks, under an int64 seed and the counter's step and stream."""
    key_low = (seed & 0xFFFFFFFF).to(tl.uint32)
    key_high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word0 = (block & 0xFFFFFFFF).to(tl.uint32)
    word1 = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word2 = tl.zeros_like(word0) + (step & 0xFFFFFFFF).to(tl.uint32)
    word3 = tl.full(word0.shape, STREAM, tl.uint32)
    return philox(word0, word1, word2, word3, key_low, key_high)
