"""Tables of the study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from gmmkernel._files import write_whole
from studies.quality.choices import ALTERNATIVES, DDIM, ISOTROPIC
from studies.quality.compare import (
    TITLES,
    Results,
    best_alternative,
    compared,
    outcome,
    read_all,
    values,
)
from studies.quality.plots import write_plots
from studies.quality.settings import DATA, Cell, Found, Settings, main_distance
from studies.statistics import mean_and_error

SUMMARY_FILE = "quality_table.md"
DETAILS_FOLDER = "quality"

_ORDER = (DATA, DDIM, "RAND", "ORTHO", "VUB", "VUB*", "EXACT", ISOTROPIC)
_DIFFERENCES = (
    "DDIM, and differences from it, seed by seed. The control is isotropic noise of the variance that ORTHO adds, the "
    'column after it isotropic noise of a scale of its own. "By loss": no scale is chosen, each step gets the variance '
    "that it loses."
)
_OUTCOMES = (
    "In how many cells (tasks times numbers of steps) a line's main distance is smaller, not clearly different, or "
    "larger than another's, seed by seed; clear is where the 95% confidence interval leaves out 0. DDIM is at the "
    "same eta and timesteps. The best alternative is, by its mean, of DDIM with the best eta, and of DDIM and "
    "DPM-Solver++(2M) at trailing, linspace and quadratic timesteps."
)


def summary(results: Results, settings: Settings) -> str:
    """Return what the study found in short, as Markdown."""
    text = [
        f"{settings.samples} samples a run; mean ± standard error over {settings.seeds} seeds; scales chosen on "
        f"{settings.tuning_seeds} other. Main distances: digit-FID for the digits, the Fréchet distance of pixels for "
        "the patches, sliced W2 for the rest; lower is better.",
        "",
    ]
    for column, title in (
        ("eta 0", "At eta = 0"),
        ("eta 0, quadratic", "At eta = 0 and quadratic timesteps"),
    ):
        text += [f"## {title}", "", _DIFFERENCES, "", *_main_table(results, column), ""]
    text += ["## Better / no different / worse", "", _OUTCOMES, ""]
    text += _head(["", "", f"than {DDIM}", "than its control", "than the best alternative"])
    for column in dict.fromkeys(cell.column for cell in settings.columns("", 0)):
        names = _names(results[cell] for cell in _cells_with_results(results, column))
        for name in names:
            if name in (DATA, DDIM) or name.endswith("control"):
                continue
            control = f"{name}, control"
            text.append(
                _row(
                    [
                        column,
                        name,
                        str(outcome(results, column, name, DDIM)),
                        str(outcome(results, column, name, control)) if control in names else "",
                        str(outcome(results, column, name, None)),
                    ]
                )
            )
    return "\n".join(text) + "\n"


def _main_table(results: Results, column: str) -> list[str]:
    shown = ["ORTHO", "ORTHO, control", ISOTROPIC, "ORTHO, by loss", f"{ISOTROPIC}, by loss"]
    text = _head(["", "steps", DATA, DDIM, *shown, "best alternative"])
    for cell in _cells_with_results(results, column):
        found, distance = results[cell], main_distance(cell.task)
        cells = [
            TITLES[cell.task],
            str(cell.steps),
            *(_plain(found, name, distance) for name in (DATA, DDIM)),
        ]
        cells += [_difference(found, name, distance) for name in shown]
        best = best_alternative(found, distance)
        cells.append("" if best is None else f"{_difference(found, best, distance)} ({best})")
        text.append(_row(cells))
    return text


def details(results: Results, settings: Settings, task: str) -> str:
    """Return all distances of a task, as Markdown."""
    columns = [main_distance(task)]
    for cell, found in results.items():
        for distances in found.distances.values() if cell.task == task else ():
            columns += [name for name in distances if name not in columns]
    text = [
        f"# {TITLES[task]}",
        "",
        f"Mean ± standard error over {settings.seeds} seeds of {settings.samples} samples; lower is better. Lines "
        f"below {DDIM} have the difference from it in the same column, seed by seed; in brackets the level that was "
        f"chosen by {columns[0]} on other seeds: s/sqrt(D), rho for EXACT, the standard deviation of isotropic noise. "
        "The last lines have no eta; the differences are those from DDIM at the first.",
        "",
    ]
    for column in columns:
        text += [f"## {column}", ""]
        for steps in sorted(settings.steps):
            cells = settings.columns(task, steps)
            all_found = [results[cell] for cell in cells]
            names = _names(all_found)
            if not names:
                continue
            text += _head([f"{steps} steps", *(cell.column for cell in cells)])
            for name in names:
                show = _plain if name in (DATA, DDIM) else _with_level
                text.append(_row([name, *(show(found, name, column) for found in all_found)]))
            text += [_row([line.name, _with_level(all_found[0], line.name, column)]) for line in ALTERNATIVES]
            text.append("")
    return "\n".join(text).rstrip() + "\n"


def write_report(target: Path, folder: Path, settings: Settings, tasks: Sequence[str]) -> str:
    """Write tables and plots of what there is in a folder; return the summary."""
    results = read_all(folder, settings, tasks)
    (target / DETAILS_FOLDER).mkdir(parents=True, exist_ok=True)
    text = summary(results, settings)
    write_whole(target / SUMMARY_FILE, text.encode())
    for task in tasks:
        write_whole(target / DETAILS_FOLDER / f"{task}.md", details(results, settings, task).encode())
    write_plots(target, results)
    return text


def _cells_with_results(results: Results, column: str) -> list[Cell]:
    """Return the cells of a column in which DDIM has been measured, by task and number of steps."""
    known = [
        cell
        for cell, found in results.items()
        if cell.eta is not None and cell.column == column and values(found, DDIM, main_distance(cell.task))
    ]
    return sorted(known, key=lambda cell: (list(TITLES).index(cell.task), cell.steps))


def _names(all_found: Iterable[Found]) -> list[str]:
    """Return the lines that have an eta, as tables show them."""
    without_eta = {line.name for line in ALTERNATIVES}
    names = {name for found in all_found for name, _ in found.distances} - without_eta

    def place(name: str) -> tuple[int, bool, str]:
        return _ORDER.index(name.split(", ")[0]), " by " in name, name

    return sorted(names, key=place)


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(found: Found, name: str, column: str) -> str:
    known = values(found, name, column)
    if not known:
        return ""
    average, error = mean_and_error(known)
    return _with_error(average, error)


def _difference(found: Found, name: str, column: str) -> str:
    seen = compared(found, name, DDIM, column)
    return "" if seen is None else _with_error(seen.mean, seen.error, "+")


def _with_level(found: Found, name: str, column: str) -> str:
    shown, level = _difference(found, name, column), found.levels.get(name)
    return f"{shown} ({level:g})" if shown and isinstance(level, float) else shown


def _with_error(value: float, error: float, sign: str = "") -> str:
    """Two decimals, or as many, up to six, as show two digits of the error."""
    digits = min(max(2, 1 - math.floor(math.log10(error))), 6) if 0 < error < 1 else 2
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"
