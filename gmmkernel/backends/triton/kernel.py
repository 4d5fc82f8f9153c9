"""What a kernel of this package is to Triton, and the constants of coefficient rows as kernels read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from gmmkernel.backends.constants import Column, Stream

COLUMNS = tl.constexpr(len(Column))
(
    X0_SAMPLE, X0_OUTPUT, CLIP_MIN, CLIP_MAX, SAMPLE, OUTPUT, X0, HISTORY_0, HISTORY_1, HISTORY_2, HISTORY_3, GUIDANCE,
    SIGMA, OFFSET, EPS_SAMPLE, EPS_OUTPUT,
) = (tl.constexpr(int(column)) for column in Column)  # fmt: skip
TRANSITION, COMPONENT, _, TRAINING, TRAINING_SKIP, _ = (tl.constexpr(int(stream)) for stream in Stream)


def kernel(function: Callable[..., None]) -> Any:
    """Return a function of tensors, then numbers (`tl.int64`), then constants (`tl.constexpr`) as a Triton kernel.

    Absent tensors are None, which compiles a kernel without them. No size, index or address compiles one anew: what is
    compiled for one launch does for all of the same types.
    """
    kinds = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
    return triton.jit(
        do_not_specialize_on_alignment=[i for i, kind in enumerate(kinds) if kind is inspect.Parameter.empty],
        do_not_specialize=[i for i, kind in enumerate(kinds) if kind == "tl.int64"],
    )(function)
