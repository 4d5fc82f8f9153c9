"""The tensors of each op that has gradients, in the order in which operators and autograd take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from gmmkernel.ops.vmap import Merged, Role, merge, rows_of


class StepTensors(NamedTuple):
    """The tensors of a step, those with a gradient first; the history comes after them."""

    sample: Tensor
    model_output: Tensor
    model_output_uncond: Tensor | None
    coefficients: Tensor
    offsets: Tensor | None
    std: Tensor | None
    basis: Tensor | None
    std_delta: Tensor | None
    seeds: Tensor
    rows: Tensor | None
    steps: Tensor | None
    cdf: Tensor | None


class LogProbTensors(NamedTuple):
    """The tensors of a log-density, those with a gradient first; the history comes after them."""

    sample: Tensor
    model_output: Tensor
    model_output_uncond: Tensor | None
    coefficients: Tensor
    offsets: Tensor | None
    std: Tensor | None
    prev_sample: Tensor
    weights: Tensor | None
    basis: Tensor | None
    slopes: Tensor | None
    shifts: Tensor | None
    half_logdet: Tensor | None
    rows: Tensor | None


class NoiseTensors(NamedTuple):
    """The tensors of adding noise, the one with a gradient first."""

    sample: Tensor
    coefficients: Tensor
    seeds: Tensor
    rows: Tensor | None
    steps: Tensor | None


class LossTensors(NamedTuple):
    """The tensors of a training loss, those with a gradient first."""

    model_output: Tensor
    sample: Tensor | None
    coefficients: Tensor
    seeds: Tensor
    rows: Tensor | None
    steps: Tensor | None


@dataclass(frozen=True)
class Layout:
    """What can be said of tensors in one of these orders, whose first is always [B, ...].

    Attributes:
        differentiable: how many have a gradient, those of the history not counted.
        coefficients: which is the table of rows.
        roles: what the first dimension of each is.
    """

    differentiable: int
    coefficients: int
    roles: tuple[Role, ...]

    def primals(self, given: Sequence[Any]) -> list[Any]:
        """Return what belongs to the tensors with a gradient, of what belongs to all and to the history."""
        return [*given[: self.differentiable], *given[len(self.roles) :]]

    def among_all(self, of_primals: Sequence[Any], nothing: Any = None) -> tuple[Any, ...]:
        """Return the reverse: `nothing` for the tensors without a gradient."""
        none = [nothing] * (len(self.roles) - self.differentiable)
        return *of_primals[: self.differentiable], *none, *of_primals[self.differentiable :]

    def merge(
        self, size: int, dims: Sequence[int | None], given: Sequence[Any], wanted: Sequence[bool], row: int
    ) -> Merged:
        """Merge a mapped dimension of the tensors and the history into the batch; see `ops.vmap.merge`."""
        roles = (*self.roles, *[Role.BATCH] * (len(given) - len(self.roles)))
        batch, table_rows = (rows_of(given[i], dims[i]) for i in (0, self.coefficients))
        return merge(size, dims, given, roles, wanted, table_rows, batch, row)


_FIRST = (*[Role.BATCH] * 3, *[Role.TABLE] * 3)
STEP = Layout(8, 3, (*_FIRST, *[Role.TABLE] * 2, Role.BATCH, Role.ROWS, Role.STEPS, Role.TABLE))
DENSITY = Layout(12, 3, (*_FIRST, Role.BATCH, *[Role.TABLE] * 5, Role.ROWS))
_LAST = (Role.TABLE, Role.BATCH, Role.ROWS, Role.STEPS)
NOISE = Layout(1, 1, (Role.BATCH, *_LAST))
LOSS = Layout(2, 2, (Role.BATCH, Role.BATCH, *_LAST))
