"""Table and plot of the study of the skip-step loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from gmmkernel._files import write_whole
from studies.skip_step_methods import BASELINE, METHODS, SAMPLERS
from studies.statistics import Results, difference, mean_and_error

TABLE_FILE, PLOT_FILE = "skip_step_table.md", "skip_step.png"


class Settings(NamedTuple):
    """What decides the results.

    Attributes:
        training_steps: of each model.
        seeds: trainings of each loss.
        samples: digits for each distance.
        sampling_steps: numbers of steps that are tried.
    """

    training_steps: int
    seeds: int
    samples: int
    sampling_steps: tuple[int, ...]


def table(settings: Settings, results: Results) -> str:
    """Return the results as Markdown."""
    seeds = sorted({seed for _, seed in results})
    lines = [
        f"digit-FID of {settings.samples} samples, as many of each digit; models trained for "
        f"{settings.training_steps} steps; mean ± standard error over {len(seeds)} of {settings.seeds} training seeds. "
        f"Lower is better. Below the first line: the difference from {BASELINE}, seed by seed, ± its standard error, "
        "and in brackets the size that a true difference would need to be found (80% power, two-sided 5%).",
        "",
    ]
    for sampler in SAMPLERS:
        columns = [f"{sampler} {steps}" for steps in settings.sampling_steps]
        lines += ["| " + " | ".join(["", *(f"{column} steps" for column in columns)]) + " |"]
        lines += ["|" + "---|" * (len(columns) + 1)]
        for method in METHODS:
            cells = [_cell(results, method.name, column) for column in columns]
            lines.append("| " + " | ".join([method.name, *cells]) + " |")
        lines.append("")
    lines += ["| | held-out loss of the noise |", "|---|---|"]
    for method in METHODS:
        if method.trained:
            lines.append(f"| {method.name} | {_cell(results, method.name, 'held-out loss', 4)} |")
    return "\n".join(lines) + "\n"


def _cell(results: Results, method: str, column: str, digits: int = 2) -> str:
    if method == BASELINE:
        values = [found[column] for (name, _), found in results.items() if name == BASELINE]
        if not values:
            return ""
        mean, error = mean_and_error(values)
        return f"{mean:.{digits}f} ± {error:.{digits}f}"
    found = difference(results, method, BASELINE, column)
    if found is None:
        return ""
    return f"{found.mean:+.{digits}f} ± {found.error:.{digits}f} ({found.visible:.{digits}f})"


def write_plot(path: Path, settings: Settings, results: Results) -> None:
    """Draw the differences from the baseline: one panel a sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(SAMPLERS), 4.8), layout="constrained")
    axes = figure.subplots(1, len(SAMPLERS), sharey=True, squeeze=False)[0]
    methods = [method for method in METHODS if method.name != BASELINE]
    count = len(settings.sampling_steps)
    for axis, sampler in zip(axes, SAMPLERS, strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        for number, steps in enumerate(settings.sampling_steps):
            found = [difference(results, method.name, BASELINE, f"{sampler} {steps}") for method in methods]
            shown = [
                (-row - (number - (count - 1) / 2) * 0.2, d) for row, d in enumerate(found) if d is not None
            ]
            axis.errorbar(
                [d.mean for _, d in shown],
                [height for height, _ in shown],
                xerr=[0.0 if math.isnan(d.error) else d.error for _, d in shown],
                fmt="osD^v"[number % 5],
                markersize=5,
                capsize=2,
                label=f"{steps} steps",
            )
        axis.set_title(sampler)
        axis.set_xlabel(f"digit-FID, difference from {BASELINE}")
    axes[0].set_yticks([-row for row in range(len(methods))], [method.name for method in methods])
    axes[-1].legend(loc="best", frameon=False)
    figure.suptitle(
        "Skip-step loss against DDPM's, mean ± standard error over training seeds; left is better"
    )
    figure.savefig(path, dpi=110)


def write_report(folder: Path, settings: Settings, results: Results) -> str:
    """Write table and plot; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(settings, results)
    write_whole(folder / TABLE_FILE, text.encode())
    write_plot(folder / PLOT_FILE, settings, results)
    return text
