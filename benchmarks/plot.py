"""One picture of a run: time per element of every case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Results
from benchmarks.report import shape_name
from benchmarks.targets import HOST_SHAPE

_COLOURS = {"float32": "#0b5394", "bfloat16": "#d9720f", "float16": "#38761d"}
_MARKERS = ("o", "s", "D", "^", "v")


def plot_available() -> str | None:
    """Return None if a plot can be made, or what is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        return f'no plot: needs matplotlib, pip install "gmmkernel[bench]" ({error})'
    return None


def write_plot(results: Results, title: str, path: Path) -> None:
    """Write a picture: one panel a size, one line a case, 20th to 80th percentile as a bar.

    Args:
        results: what was measured; the size that only shows the cost of a call is left out if there are others.
        title: written above.
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    shapes = list(dict.fromkeys(figure.shape for figure in results.figures))
    shapes = [shape for shape in shapes if shape != HOST_SHAPE] or shapes
    labels = list(dict.fromkeys(_split(figure)[0] for figure in results.figures))
    looks = _looks(results)

    picture = Picture(figsize=(3.2 + 3.9 * len(shapes), 2.2 + 0.30 * len(labels)), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, len(shapes), sharey=True, sharex=True, squeeze=False)[0]
    for panel, shape in zip(panels, shapes, strict=True):
        for figure in results.figures:
            if figure.shape == shape:
                _draw(panel, figure, labels, looks)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_title(shape_name(shape), fontsize=10)
        panel.set_xlabel("time per element (ns)")
        panel.grid(axis="x", which="major", color="0.75", linewidth=0.8)
        panel.grid(axis="x", which="minor", color="0.92", linewidth=0.5)
        panel.grid(axis="y", color="0.92", linewidth=0.5)
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=9, family="monospace")
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    picture.suptitle(f"Median of each case, bar from 20th to 80th percentile\n{title}", fontsize=10)
    for (type_name, count), look in looks.items():
        panels[-1].plot([], [], label=f"{type_name}, {count} thread{'s' * (count > 1)}", **look)
    handles, names = panels[-1].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    picture.savefig(path, dpi=130)


def _split(figure: Figure) -> tuple[str, str]:
    name, type_name = figure.case.rsplit("/", 1)
    return name, type_name


def _looks(results: Results) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the look of a point: colour for the type, shape and filling for the number of threads."""
    types = {_split(figure)[1] for figure in results.figures}
    threads = sorted({figure.threads for figure in results.figures})
    looks = {}
    for type_name, colour in _COLOURS.items():
        for number, count in enumerate(threads):
            if type_name in types:
                face = "white" if number == 0 else colour
                marker = _MARKERS[number % len(_MARKERS)]
                look = {"marker": marker, "markersize": 4.5, "color": colour, "markerfacecolor": face}
                looks[type_name, count] = {"linestyle": "none", **look}
    return looks


def _draw(
    panel: Any, figure: Figure, labels: list[str], looks: dict[tuple[str, int], dict[str, Any]]
) -> None:
    name, type_name = _split(figure)
    per_element = 1e9 / figure.elements
    look = looks[type_name, figure.threads]
    slot = list(looks).index((type_name, figure.threads))
    y = labels.index(name) + 0.6 * ((slot + 0.5) / len(looks) - 0.5)
    low, high = figure.p20 * per_element, figure.p80 * per_element
    panel.hlines(y, low, high, color=look["color"], linewidth=1.5, alpha=0.5)
    panel.plot(figure.median * per_element, y, **look)
