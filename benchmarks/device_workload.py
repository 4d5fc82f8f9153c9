"""The inputs of one size on an accelerator: several sets of them, so that no call finds its own in the L2 cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.baselines import Unavailable
from benchmarks.machine import l2_bytes
from benchmarks.workload import Workload
from gmmkernel import MixtureTables

_TIMES_L2 = 2
_LARGEST_TABLE = 8_600_000_000  # bytes: 1024 components of 2^21 elements


class RotatingWorkload(Workload):
    """A workload with equal sets of sample, model output and result, together more than twice the L2 cache."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__(shape, device)
        self._sets: dict[torch.dtype, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def sets(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return sample, model output and a result to write of every set, at least two."""
        if dtype not in self._sets:
            sample, model_output = self.inputs(dtype)
            count = max(2, math.ceil(_TIMES_L2 * l2_bytes(self.device) / (3 * sample.nbytes)) + 1)
            stacked = [tensor.expand(count, *self.shape).contiguous() for tensor in (sample, model_output)]
            stacked.append(torch.empty_like(stacked[0]))
            self._sets[dtype] = list(zip(*(tensor.unbind(0) for tensor in stacked), strict=True))
        return self._sets[dtype]

    def mixture(self, components: int) -> MixtureTables:
        """Return the mixture of `Workload`.

        Raises:
            Unavailable: its offsets would fill too much of the device's memory.
        """
        size = 4 * components * self.elements
        if size > _LARGEST_TABLE:
            raise Unavailable(f"offsets of {components} components would take {size / 1e9:.0f} GB")
        return super().mixture(components)

    def step_bytes(self, dtype: torch.dtype, mixture: MixtureTables | None = None) -> int:
        """Return the bytes that one pass has to move: sample, model output, result, and the table rows in use once.

        Samples share the rows of a table in the L2 cache: the component rows that a batch may be expected to draw,
        and the one row of standard deviations.
        """
        moved = 3 * self.batch * self.elements * dtype.itemsize
        if mixture is not None:
            components = mixture.offsets.shape[1]
            drawn = components * (1 - (1 - 1 / components) ** self.batch)
            rows = drawn * mixture.offsets.shape[2] + mixture.std.shape[2]
            moved += int(rows * mixture.offsets.dtype.itemsize)
        return moved
