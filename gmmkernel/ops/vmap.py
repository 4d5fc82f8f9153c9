"""`torch.func.vmap` over a transition: the mapped dimension joins the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Role(Enum):
    """What the first dimension of a tensor is."""

    BATCH = 1
    TABLE = 2  # S coefficient rows, or 1 entry for all
    ROWS = 3  # an index into tables, with one entry or B
    STEPS = 4  # any other index


@dataclass(frozen=True)
class Merged:
    """A transition of N * B samples.

    Attributes:
        size: N, the mapped dimension.
        tensors: [N * B, ...]; tables that differ along N, or whose gradients do, are [N * S, ...].
    """

    size: int
    tensors: tuple[Tensor | None, ...]

    def split(self, tensor: Tensor | None) -> Tensor | None:
        """Return a result [N * B, ...] as [N, B, ...]."""
        return None if tensor is None else tensor.unflatten(0, (self.size, -1))

    def split_gradients(
        self, gradients: Sequence[Tensor | None], given: Sequence[Tensor | None], dims: Sequence[int | None]
    ) -> tuple[Tensor | None, ...]:
        """Return gradients of tensors for each of N; of a table whose one entry served all rows, their sum."""
        apart = []
        for gradient, tensor, dim in zip(gradients, given, dims, strict=True):
            made = self.split(gradient)
            if made is not None and tensor is not None and _spread(tensor, dim, 1).shape[1] < made.shape[1]:
                made = made.sum(1, keepdim=True)
            apart.append(made)
        return tuple(apart)


def merge(
    size: int,
    dims: Sequence[int | None],
    given: Sequence[Tensor | None],
    roles: Sequence[Role],
    wanted: Sequence[bool],
    table_rows: int,
    batch: int,
    row: int,
) -> Merged:
    """Merge a mapped dimension into the batch.

    Args:
        size: N, of the mapped dimension.
        dims: where each tensor has it, None where it does not.
        given: the tensors.
        roles: what they are.
        wanted: for each, whether its gradient is wanted, for each of N.
        table_rows: S.
        batch: B.
        row: the row of all samples, where no tensor of role ROWS says it.
    """
    is_own = [
        role is Role.TABLE and (dim is not None or asked)
        for dim, role, asked in zip(dims, roles, wanted, strict=True)
    ]
    apart = any(is_own)
    merged: list[Tensor | None] = []
    for tensor, dim, role, own in zip(given, dims, roles, is_own, strict=True):
        if role is Role.ROWS:
            rows = None if tensor is None else _merge_index(tensor, dim, size, batch)
            if apart:
                like = next(other for other in given if other is not None)
                rows = torch.tensor([row], device=like.device) if rows is None else rows
                rows = _shift(rows, size, batch, table_rows)
            merged.append(rows)
        elif tensor is None:
            merged.append(None)
        elif role is Role.STEPS:
            merged.append(_merge_index(tensor, dim, size, batch))
        elif role is Role.BATCH:
            merged.append(_spread(tensor, dim, size).flatten(0, 1))
        elif own or (apart and tensor.shape[0] == table_rows):
            entries = _spread(tensor, dim, size)
            merged.append(entries.expand(size, table_rows, *entries.shape[2:]).flatten(0, 1))
        else:
            merged.append(tensor)
    return Merged(size, tuple(merged))


def merge_batch(
    size: int, dims: Sequence[int | None], given: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return tensors [B, ...] with a mapped dimension as part of the batch."""
    return tuple(
        None if tensor is None else _spread(tensor, dim, size).flatten(0, 1)
        for tensor, dim in zip(given, dims, strict=True)
    )


def rows_of(tensor: Tensor, dim: int | None) -> int:
    """Return the length of a tensor's first dimension but for the mapped one."""
    return _spread(tensor, dim, 1).shape[1]


def _spread(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with the mapped dimension first."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _merge_index(index: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    if dim is None and index.shape[0] == 1:
        return index
    return _spread(index, dim, size).expand(size, batch).flatten()


def _shift(rows: Tensor, size: int, batch: int, table_rows: int) -> Tensor:
    """Return the rows in tables of N * S; one that is out of range must not become another's."""
    first = torch.arange(0, size * table_rows, table_rows, device=rows.device)[:, None]
    rows = rows.expand(size * batch).reshape(size, batch)
    return torch.where((rows >= 0) & (rows < table_rows), rows + first, -1).flatten()
