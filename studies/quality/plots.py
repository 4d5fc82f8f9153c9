"""Plots of the study: what each way to sample gains over plain DDIM, and how that depends on the scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from studies.quality.choices import DDIM, ISOTROPIC, SCALES
from studies.quality.compare import TITLES, Results, best_alternative, values
from studies.quality.settings import DATA, Cell, Found, main_distance
from studies.statistics import mean_and_error

GAINS_FILE, SCALES_FILE = "quality.png", "quality_scales.png"


def write_plots(folder: Path, results: Results) -> None:
    """Write both plots, of eta = 0; nothing where there is nothing to show."""
    cells = [
        cell
        for cell, found in results.items()
        if cell.eta == 0 and cell.spacing == "trailing" and _ratio(found, cell, DDIM)
    ]
    if not cells:
        return
    steps = sorted({cell.steps for cell in cells})
    tasks = [task for task in TITLES if any(cell.task == task for cell in cells)]
    _write_gains(folder / GAINS_FILE, results, tasks, steps)
    _write_scales(folder / SCALES_FILE, results, tasks, steps)


def _ratio(found: Found, cell: Cell, name: str | None) -> tuple[float, float] | None:
    """Return a line's distance over plain DDIM's, seed by seed: mean and standard error."""
    column = main_distance(cell.task)
    if name is None:
        return None
    own, plain = values(found, name, column), values(found, DDIM, column)
    if not own or len(own) != len(plain):
        return None
    return mean_and_error([value / base for value, base in zip(own, plain, strict=True)])


def _write_gains(path: Path, results: Results, tasks: list[str], steps: list[int]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(steps) + 1.8, 0.55 * len(tasks) + 2.2), layout="constrained")
    axes = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("ORTHO", "mixture (ORTHO), best scale", {"fmt": "o", "color": "C0"}),
        (
            "ORTHO, control",
            "isotropic noise of the same variance",
            {"fmt": "s", "color": "C1", "mfc": "none"},
        ),
        ("", "best of DPM-Solver++, eta, timesteps", {"fmt": "D", "color": "C2"}),
        (DATA, "other samples of the data", {"fmt": "|", "color": "0.4"}),
    ]
    for axis, count in zip(axes, steps, strict=True):
        axis.axvline(1, color="0.6", linewidth=1)
        for number, (name, label, style) in enumerate(kinds):
            points = []
            for row, task in enumerate(tasks):
                cell = Cell(task, count, 0.0)
                found = results.get(cell)
                if found is None:
                    continue
                ratio = _ratio(found, cell, name or best_alternative(found, main_distance(task)))
                if ratio is not None:
                    points.append((ratio, -row + 0.12 * (1 - number) if number < 3 else -row))
            axis.errorbar(
                [mean for (mean, _), _ in points],
                [height for _, height in points],
                xerr=[0.0 if math.isnan(error) else error for (_, error), _ in points],
                label=label,
                markersize=6,
                linewidth=0,
                elinewidth=1,
                capsize=2,
                **style,
            )
        axis.set_title(f"{count} steps")
        axis.set_xscale("log")
        axis.set_xlabel("distance / plain DDIM's")
    axes[0].set_yticks([-row for row in range(len(tasks))], [TITLES[task] for task in tasks])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Distance from the data at eta = 0, relative to plain DDIM's; left is better")
    figure.savefig(path, dpi=110)


def _write_scales(path: Path, results: Results, tasks: list[str], steps: list[int]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(3.0 * len(steps), 1.9 * len(tasks) + 0.8), layout="constrained")
    axes = figure.subplots(len(tasks), len(steps), sharex=True, squeeze=False)
    kinds = (("RAND", "^-"), ("ORTHO", "o-"), ("VUB*", "v-"), (ISOTROPIC, "s--"))
    for row, task in zip(axes, tasks, strict=True):
        for axis, count in zip(row, steps, strict=True):
            found = results.get(Cell(task, count, 0.0))
            plain = [] if found is None else values(found, DDIM, main_distance(task))
            if found is None or not plain:
                axis.set_visible(False)
                continue
            base = sum(plain) / len(plain)
            axis.axhline(1, color="0.6", linewidth=1)
            for name, style in kinds:
                if name in found.tuning:
                    shares = [value / base for value in found.tuning[name]]
                    axis.plot(SCALES, shares, style, markersize=4, label=name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(SCALES, [f"{scale:g}" for scale in SCALES])
            axis.set_yticks([0.25, 0.5, 1, 2, 4])
            axis.set_ylim(0.25, 4)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(labelsize=7)
            axis.set_title(f"{TITLES[task]}, {count} steps", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("s / sqrt(D), or standard deviation", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    figure.suptitle("Distance / plain DDIM's, by scale, eta = 0, one seed", fontsize=9)
    figure.savefig(path, dpi=80)
