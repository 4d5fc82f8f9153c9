"""Orthonormal rows with the same bits on every machine, for the ORTHO mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel import backends
from gmmkernel.ops import checks


def orthonormalize(rows: Tensor, *, backend: str | None = None) -> Tensor:
    """Return an orthonormal basis of the span of the rows, by modified Gram-Schmidt in a fixed order of operations.

    Args:
        rows: float64 [K, D] on the CPU, 1 <= K <= D, linearly independent.
        backend: "cpu" or "reference"; None chooses.

    Returns:
        float64 [K, D]; row k spans the same space with rows 0 .. k as the input's.

    Raises:
        TypeError: `rows` is not a float64 tensor.
        ValueError: wrong shape or device, or the rows are not linearly independent: of one of them, no more than
            2^-40 is left once the rows before it are taken out.
        RuntimeError: `rows` requires a gradient.
    """
    checks.check_tensor(rows, "rows")
    if rows.dtype != torch.float64:
        raise TypeError(f"rows: expected float64, got {rows.dtype}")
    if rows.dim() != 2 or not 1 <= rows.shape[0] <= rows.shape[1]:
        raise ValueError(f"rows: expected shape [K, D] with 1 <= K <= D, got {tuple(rows.shape)}")
    if rows.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("rows: requires a gradient, which this function does not compute; detach it")
    name = backends.resolve(rows.device, backend)
    result = rows.detach().clone(memory_format=torch.contiguous_format)
    backends.load(name).orthonormalize(result)
    return result
