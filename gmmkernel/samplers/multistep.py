"""What solvers share that read the predictions of the steps before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.base import Sampler


class MultistepSampler(Sampler):
    """A sampler whose steps read up to `depth` stored predictions, the latest first.

    Attributes:
        depth: how many predictions a step reads when all of them are there.
    """

    def __init__(
        self,
        timesteps: Tensor,
        rows: Callable[..., Tensor],
        *,
        stored_prediction: PredictionName,
        depth: int,
        **options: Any,
    ) -> None:
        """Make one whose rows are `rows(first_step=...)`; the other options are those of `Sampler`."""
        super().__init__(timesteps, rows(first_step=0), **options)
        self.stored_prediction = stored_prediction if depth else None
        self.depth = int(depth)
        self._rows = rows
        self._first = 0

    def starting_at(self, first_step: int) -> tuple[Self, int]:
        """Return the sampler of a run that begins, with order 1, at `first_step`; and `first_step`."""
        _, first_step = super().starting_at(first_step)
        if first_step == self._first:
            return self, first_step
        changed = self._bound_to(self.timesteps, self._rows(first_step=first_step), self.mixture)
        changed._first = first_step
        return changed, first_step

    def _read(self, index: int, history: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        check_length(history, min(max(index - self._first, 0), self.depth), index)
        return history

    def _write(
        self, index: int, history: tuple[Tensor, ...], sample: Tensor, prediction: Tensor
    ) -> tuple[Tensor, ...]:
        return (prediction, *history)[: self.depth]


def check_length(history: tuple[Tensor, ...], expected: int, index: int) -> None:
    """Check that the history is of the length that a step leaves for the next.

    Raises:
        TypeError: it is not a tuple.
        ValueError: it has more or fewer tensors.
    """
    if not isinstance(history, tuple):
        raise TypeError(f"history: expected a tuple of tensors, got {type(history).__name__}")
    if len(history) != expected:
        raise ValueError(
            f"history: expected {expected} tensors at step {index}, as the step before returned them, "
            f"got {len(history)}"
        )
