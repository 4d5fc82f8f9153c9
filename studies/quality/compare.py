"""How lines of the study compare with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from studies.quality.choices import ALTERNATIVES
from studies.quality.settings import Cell, Found, Settings, main_distance, read
from studies.statistics import Difference, difference

TITLES = {
    "gaussians-2": "10 Gaussians, D = 2",
    "points-2": "50 points, D = 2",
    "gaussians-64": "10 Gaussians, D = 64",
    "points-64": "50 points, D = 64",
    "gaussians-1024": "10 Gaussians, D = 1024",
    "points-1024": "50 points, D = 1024",
    "digits": "digits, trained model",
    "patches": "patches, trained model",
}
"""What the tasks are called in tables, in their order."""

Results = dict[Cell, Found]
"""What there is of each cell; to those of an eta, what has no eta is added."""


def read_all(folder: Path, settings: Settings, tasks: Sequence[str]) -> Results:
    """Return what is done of the tasks."""
    results = {cell: read(folder, settings, cell) for task in tasks for cell in settings.cells(task)}
    for cell, found in results.items():
        if cell.eta is not None:
            others = results[Cell(cell.task, cell.steps, None)]
            found.levels.update(others.levels)
            for key, distances in others.distances.items():
                found.distances.setdefault(key, distances)
    return results


def values(found: Found, name: str, column: str) -> list[float]:
    """Return what a line has, seed by seed."""
    return [of[column] for (line, _), of in found.distances.items() if line == name and column in of]


def mean(found: Found, name: str, column: str) -> float | None:
    """Return the mean of a line, None where it has nothing."""
    known = values(found, name, column)
    return sum(known) / len(known) if known else None


def compared(found: Found, name: str, against: str, column: str) -> Difference | None:
    """Return the difference of a line from another, seed by seed; None where they have nothing in common."""
    known = {key: of for key, of in found.distances.items() if column in of}
    return difference(known, name, against, column)


def best_alternative(found: Found, column: str) -> str | None:
    """Return the best line, by its mean, of those that a user would pick instead."""
    means = {line.name: mean(found, line.name, column) for line in ALTERNATIVES}
    known = {name: value for name, value in means.items() if value is not None}
    return min(known, key=lambda name: known[name]) if known else None


class Outcome(NamedTuple):
    """In how many cells a line was better than another, not clearly different, or worse."""

    better: int
    same: int
    worse: int

    def __str__(self) -> str:
        return f"{self.better} / {self.same} / {self.worse}"


def outcome(results: Results, column: str, name: str, against: str | None) -> Outcome:
    """Count the tasks and numbers of steps at which a line is better than another, by the main distance.

    Args:
        results: of all cells.
        column: of tables, in which both are.
        name: of a line.
        against: another; None: the best of those that have no eta.
    """
    counts = [0, 0, 0]
    for cell, found in results.items():
        if cell.eta is None or cell.column != column:
            continue
        distance = main_distance(cell.task)
        other = against or best_alternative(found, distance)
        seen = None if other is None else compared(found, name, other, distance)
        if seen is not None:
            is_clear = abs(seen.mean) > seen.margin
            counts[(0 if seen.mean < 0 else 2) if is_clear else 1] += 1
    return Outcome(*counts)
