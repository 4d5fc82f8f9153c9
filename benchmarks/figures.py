"""What a case's measurement yields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Figure:
    """The durations of one case at one size with one number of threads.

    Attributes:
        case: the case's name.
        shape: shape of the batch.
        threads: torch's number of threads.
        moved_bytes: bytes that one pass has to move in a call.
        rounds: seconds of every timed call, one list a round.
    """

    case: str
    shape: tuple[int, ...]
    threads: int
    moved_bytes: int
    rounds: Sequence[Sequence[float]]

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(np.concatenate([np.asarray(r) for r in self.rounds]), percent))

    @property
    def median(self) -> float:
        """Median of all timed calls, in seconds."""
        return self._percentile(50)

    @property
    def p20(self) -> float:
        """20th percentile, in seconds."""
        return self._percentile(20)

    @property
    def p80(self) -> float:
        """80th percentile, in seconds."""
        return self._percentile(80)

    @property
    def round_medians(self) -> list[float]:
        """Median of each round, in seconds: figures of the same round were measured within moments."""
        return [float(np.median(r)) for r in self.rounds]

    @property
    def elements(self) -> int:
        """Elements of the batch."""
        return math.prod(self.shape)

    @property
    def ns_per_element(self) -> float:
        """Median time per element, in nanoseconds."""
        return self.median * 1e9 / self.elements

    @property
    def bytes_per_element(self) -> float:
        """Bytes that one pass has to move, per element."""
        return self.moved_bytes / self.elements

    @property
    def gigabytes_per_second(self) -> float:
        """Those bytes over the median time."""
        return self.moved_bytes / self.median * 1e-9


@dataclass(frozen=True)
class Missing:
    """A case that could not be measured.

    Attributes:
        case: the case's name.
        shape: shape of the batch.
        threads: torch's number of threads.
        reason: why.
    """

    case: str
    shape: tuple[int, ...]
    threads: int
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything that a run measured."""

    figures: list[Figure]
    missing: list[Missing]

    def find(self, case: str, shape: tuple[int, ...], threads: int) -> Figure | None:
        """Return a figure, or None if it was not measured."""
        for figure in self.figures:
            if (figure.case, figure.shape, figure.threads) == (case, shape, threads):
                return figure
        return None
