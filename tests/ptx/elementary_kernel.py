"""A kernel of the Triton backend's logarithm and exponential alone."""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.triton.elementary import exp, log


@triton.jit
def elementary_kernel(x, logarithm, exponential, N: tl.constexpr):
    place = tl.program_id(0) * N + tl.arange(0, N)
    value = tl.load(x + place)
    tl.store(logarithm + place, log(value))
    tl.store(exponential + place, exp(value))
