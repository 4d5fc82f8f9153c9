"""`torch.func.vmap` over a step: the mapped dimension becomes part of the batch, whose samples know nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Where `ops.autograd.StepTensors` has them.
_COEFFICIENTS, _OFFSETS, _STD, _SEEDS, _ROWS, _STEPS, _THRESHOLDS, _HISTORY = 3, 4, 5, 6, 7, 8, 9, 10
_TABLES = (_COEFFICIENTS, _OFFSETS, _STD, _THRESHOLDS)


@dataclass(frozen=True)
class Merged:
    """A step of N * B samples.

    Attributes:
        size: N, the mapped dimension.
        table_rows: S, the rows of the coefficients before.
        row: the row of all samples, where no tensor says it.
        step: the same of the noise counter.
        tensors: the step's tensors, samples [N * B, ...]; tables that differ along N, or whose gradients do, are
            [N * S, ...].
        history: the stored predictions, merged.
    """

    size: int
    table_rows: int
    row: int
    step: int
    tensors: tuple[Tensor | None, ...]
    history: tuple[Tensor, ...]

    def flat(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """Return a tensor [B, ...], mapped over `dim` or not at all, as [N * B, ...]."""
        return None if tensor is None else _spread(tensor, dim, self.size).flatten(0, 1)

    def split(self, tensor: Tensor | None) -> Tensor | None:
        """Return a result [N * B, ...] as [N, B, ...]."""
        return None if tensor is None else tensor.unflatten(0, (self.size, -1))

    def split_gradients(
        self, gradients: Sequence[Tensor | None], given: Sequence[Tensor | None], dims: Sequence[int | None]
    ) -> tuple[Tensor | None, ...]:
        """Return gradients of the first tensors of a step and of its history for each of N."""
        apart = [self.split(gradient) for gradient in gradients]
        for i in _TABLES[:-1]:
            gradient, table = apart[i], given[i]
            if gradient is not None and table is not None:
                entries = table.shape[0] if dims[i] is None else table.movedim(dims[i], 0).shape[1]
                if entries < gradient.shape[1]:  # one entry served all rows
                    apart[i] = gradient.sum(1, keepdim=True)
        return tuple(apart)


def merge_step(
    size: int,
    dims: Sequence[int | None],
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
    row: int,
    step: int,
) -> Merged:
    """Merge a mapped dimension into the batch.

    Args:
        size: N, of the mapped dimension.
        dims: where each tensor has it, None where it does not.
        given: the step's tensors as in `ops.autograd.StepTensors`, then the history.
        wanted: which of the first tensors have a gradient that is wanted, for each of N.
        row: the row of all samples, where `given` has none.
        step: the same of the noise counter.
    """
    merged = [
        None if tensor is None or i in (*_TABLES, _ROWS, _STEPS) else _spread(tensor, dim, size).flatten(0, 1)
        for i, (tensor, dim) in enumerate(zip(given, dims, strict=True))
    ]
    coefficients, seeds = given[_COEFFICIENTS], given[_SEEDS]
    assert coefficients is not None and seeds is not None
    batch = _spread(seeds, dims[_SEEDS], size).shape[1]
    rows = _spread(coefficients, dims[_COEFFICIENTS], size).shape[1]
    own = [dims[i] is not None or (i < len(wanted) and wanted[i]) for i in _TABLES]
    for i, is_own in zip(_TABLES, own, strict=True):
        merged[i] = table = given[i]
        if table is not None and (is_own or (any(own) and (i == _COEFFICIENTS or table.shape[0] > 1))):
            entries = _spread(table, dims[i], size)
            merged[i] = entries.expand(size, rows, *entries.shape[2:]).flatten(0, 1)

    merged[_STEPS] = _merge_index(given[_STEPS], dims[_STEPS], size, batch)
    merged[_ROWS] = _merge_index(given[_ROWS], dims[_ROWS], size, batch)
    if any(own):
        index = merged[_ROWS] if merged[_ROWS] is not None else torch.full_like(seeds.flatten()[:1], row)
        index = index.expand(size * batch).reshape(size, batch)
        first = torch.arange(0, size * rows, rows, device=index.device)[:, None]
        # One that is out of range must not become another's.
        merged[_ROWS] = torch.where((index >= 0) & (index < rows), index + first, -1).flatten()
    return Merged(
        size,
        rows,
        row if merged[_ROWS] is None else 0,
        step,
        tuple(merged[:_HISTORY]),
        tuple(merged[_HISTORY:]),
    )


def _spread(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with the mapped dimension first."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _merge_index(index: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    if index is None or (dim is None and index.shape[0] == 1):
        return index
    return _spread(index, dim, size).expand(size, batch).flatten()
