"""What decides the results of the study, and where they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DATA = "the data itself"
"""The line of other samples of the data, as many: what the distances are of a sampler that makes no error."""

Distances = Mapping[str, Mapping[str, float]]
"""Distances by line, then by name."""


def main_distance(task: str) -> str:
    """Return the distance by which a task's scales are chosen."""
    return {"digits": "digit-FID", "patches": "Frechet"}.get(task, "sliced W2")


class Cell(NamedTuple):
    """What is compared with each other.

    Attributes:
        task: its name.
        steps: of sampling, as many evaluations of the model.
        eta: of DDIM; None for what has no eta to be compared at.
        spacing: of DDIM's timesteps.
    """

    task: str
    steps: int
    eta: float | None
    spacing: str = "trailing"

    @property
    def column(self) -> str:
        """What it is called in tables, beside those of the same task and steps."""
        return f"eta {self.eta:g}" + ("" if self.spacing == "trailing" else f", {self.spacing}")

    @property
    def name(self) -> str:
        """What it is called in files and messages."""
        setting = "alternatives" if self.eta is None else self.column.replace(" ", "").replace(",", "-")
        return f"{self.task}-{self.steps}-{setting}"

    def file(self, kind: int | str) -> str:
        """The name of a file: of a seed, of what was chosen ("tuning"), or a lock."""
        return f"{self.name}.lock" if kind == "lock" else f"{self.name}-{kind}.json"


class Settings(NamedTuple):
    """What decides the results.

    Attributes:
        samples: of each run.
        seeds: runs that are reported.
        tuning_seeds: other runs, by which scales are chosen.
        steps: numbers of steps that are tried.
        eta: shares of DDPM's noise that are tried.
    """

    samples: int
    seeds: int
    tuning_seeds: int
    steps: tuple[int, ...]
    eta: tuple[float, ...]

    def cells(self, task: str) -> list[Cell]:
        """Return what there is to do for a task, in the order in which it is done."""
        first, *others = self.eta
        stages = [
            (first, "trailing"),
            (None, "trailing"),
            (first, "quadratic"),
            *((eta, "trailing") for eta in others),
        ]
        return [Cell(task, steps, eta, spacing) for eta, spacing in stages for steps in self.steps]

    def columns(self, task: str, steps: int) -> list[Cell]:
        """Return the cells of a row of tables: by eta, other timesteps last."""
        found = [Cell(task, steps, eta) for eta in sorted(self.eta)]
        return [*found, Cell(task, steps, self.eta[0], "quadratic")]

    def is_done(self, folder: Path, cell: Cell) -> bool:
        """Return whether all runs of a cell are there."""
        return all((folder / cell.file(seed)).exists() for seed in range(self.seeds))


class Found(NamedTuple):
    """What there is of a cell.

    Attributes:
        distances: by line's name and seed, then by the distance's name.
        levels: by line, the scale or other level that was chosen.
        tuning: by line, the main distance of each candidate.
    """

    distances: dict[tuple[str, int], dict[str, float]]
    levels: dict[str, float | str | None]
    tuning: dict[str, list[float]]


def read(folder: Path, settings: Settings, cell: Cell) -> Found:
    """Return what is done of a cell."""
    found = Found({}, {}, {})
    for seed in range(settings.seeds):
        path = folder / cell.file(seed)
        if path.exists():
            content = json.loads(path.read_text())
            found.levels.update(content["levels"])
            found.distances.update({(name, seed): of for name, of in content["distances"].items()})
    path = folder / cell.file("tuning")
    if path.exists():
        found.tuning.update(json.loads(path.read_text()))
    return found
