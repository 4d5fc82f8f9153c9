"""What the tests on a GPU share, and tools/gpu_bits.py with them: cases moved to a device and laid out otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import StepCase
from torch import Tensor

from gmmkernel import MixtureTables

DEVICE = torch.device("cuda")


def moved(case: StepCase, device: torch.device = DEVICE) -> StepCase:
    """Return the case with everything on a device, in tensors of its own."""

    def move(value: Any) -> Any:
        return value.clone().to(device) if isinstance(value, Tensor) else value

    return replace(
        case.map_samples(move),
        coefficients=move(case.coefficients),
        row=move(case.row),
        step=move(case.step),
        first_element=move(case.first_element),
        seeds=move(case.seeds),
        mixture=None
        if case.mixture is None
        else case.mixture._replace(**{name: move(table) for name, table in case.mixture._asdict().items()}),
    )


def strided(tensor: Tensor) -> Tensor:
    """Return equal values whose elements lie in the reverse order of dimensions."""
    made = torch.empty(tensor.shape[::-1], dtype=tensor.dtype, device=tensor.device)
    return made.permute(*reversed(range(tensor.dim()))).copy_(tensor)


def padded(tensor: Tensor) -> Tensor:
    """Return equal values, each sample contiguous, with a gap after it."""
    flat = tensor.reshape(tensor.shape[0], -1)
    wide = torch.empty(flat.shape[0], flat.shape[1] + 3, dtype=tensor.dtype, device=tensor.device)
    return wide[:, : flat.shape[1]].copy_(flat).unflatten(1, tensor.shape[1:])


def unaligned(tensor: Tensor) -> Tensor:
    """Return equal values, contiguous, that begin one element after an aligned address."""
    longer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return longer[1:].view(tensor.shape).copy_(tensor)


def _unaligned_case(case: StepCase) -> StepCase:
    tables = case.mixture
    if tables is not None:
        tables = MixtureTables(*(None if table is None else unaligned(table) for table in tables))  # type: ignore[arg-type]
    return replace(
        case.map_samples(unaligned),
        coefficients=unaligned(case.coefficients),
        seeds=unaligned(case.seeds),
        mixture=tables,
    )


def _into(make: Callable[[Tensor], Tensor]) -> Callable[[StepCase], tuple[StepCase, Tensor]]:
    return lambda case: (case, make(torch.full_like(case.sample, math.nan)))


# From a case to the case laid out otherwise and the tensor to write, if any.
LAYOUTS: dict[str, Callable[[StepCase], tuple[StepCase, Tensor | None]]] = {
    "plain": lambda case: (case, None),
    "in place": lambda case: (case, case.sample),
    "strided": lambda case: (case.map_samples(strided), None),
    "padded": lambda case: (case.map_samples(padded), None),
    "unaligned": lambda case: (_unaligned_case(case), None),
    "out": _into(lambda out: out),
    "strided out": _into(strided),
    "padded out": _into(padded),
    "unaligned out": _into(unaligned),
}
