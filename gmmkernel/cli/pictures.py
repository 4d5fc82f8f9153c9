"""Pictures of digits, drawn with matplotlib (an extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gmmkernel.cli.outputs import write_file

IMAGE_COLUMNS = 10


class Row(NamedTuple):
    """A block of images with what is written beside it."""

    label: str
    images: Tensor


class Panel(NamedTuple):
    """A title over rows of images."""

    title: str
    rows: Sequence[Row]


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Lay out images [N, 1, H, W] in [-1, 1] as one array in [0, 1], with a gap of 1 between them."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.float32)
    for index, image in enumerate(images[:, 0].clamp(-1, 1).add(1).div(2).cpu().numpy()):
        top, left = divmod(index, columns)
        top, left = top * (height + gap), left * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def check_matplotlib() -> None:
    """Raise ImportError, with the extra to install, where matplotlib is missing: before a long run, not after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "gmmkernel[plot]"') from error


def write_panels(option: str, path: Path, title: str, panels: Sequence[Panel], *, panel_columns: int) -> None:
    """Write panels of labelled rows into a PNG file.

    Args:
        option: the one that names the file, for errors.
        path: file to write; its folder is made.
        title: written on top.
        panels: in reading order, all with the same number of rows.
        panel_columns: panels side by side.

    Raises:
        ImportError: matplotlib is missing; the message says which extra has it.
        OSError: the file could not be written; the message says where the picture is.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    panel_rows = -(-len(panels) // panel_columns)
    row_count = max(len(panel.rows) for panel in panels)
    lines = max(-(-len(row.images) // IMAGE_COLUMNS) for panel in panels for row in panel.rows)
    size = (8.5 * panel_columns, ((0.66 * lines + 0.15) * row_count + 0.5) * panel_rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=15, fontweight="bold")
    grid = figure.subfigures(panel_rows, panel_columns, squeeze=False)
    for index, panel in enumerate(panels):
        part = grid[index // panel_columns][index % panel_columns]
        part.suptitle(panel.title, fontsize=13)
        axes = part.subplots(len(panel.rows), 1, squeeze=False)
        for (axis,), row in zip(axes, panel.rows, strict=True):
            axis.imshow(tile(row.images, IMAGE_COLUMNS), cmap="gray", vmin=0, vmax=1, aspect="equal")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            axis.set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_file(option, path, picture.getvalue())
