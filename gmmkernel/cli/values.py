"""Converters of an option's text; argparse names the option in front of their errors, before anything runs."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gmmkernel._checks import check_choice

MOST_THREADS = 1024
"""Far more than a machine starts at once, libraries end the process."""


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a converter to an integer from `low` to `high`; None: without an upper end."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {allowed}, got {text!r}")
        return value

    return convert


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """Return a converter to a finite number from `low` to `high`."""
    allowed = "a finite number"
    if low > -math.inf:
        allowed = f"a finite number >= {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"expected {allowed}, got {text!r}")
        return value

    return convert


def choice(names: Iterable[str]) -> dict[str, Any]:
    """Return what `add_argument` takes for an option with one of these names; its error suggests one."""
    allowed = tuple(names)

    def convert(text: str) -> str:
        try:
            check_choice("", text, allowed)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from error
        return text

    return {"type": convert, "metavar": "{" + ",".join(allowed) + "}"}


def file(suffix: str) -> Callable[[str], Path]:
    """Return a converter to the path of a file to write, which has to end in `suffix`."""

    def convert(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix or os.path.isdir(path):  # unlike Path's, it raises nothing
            kind = "the folder " if os.path.isdir(path) else ""
            raise argparse.ArgumentTypeError(f"expected the name of a {suffix} file, got {kind}{text!r}")
        return path

    return convert


def folder(text: str) -> Path:
    """Convert to the path of a folder to write into, which may not be there yet."""
    path = Path(text)
    if not text or (os.path.exists(path) and not os.path.isdir(path)):
        raise argparse.ArgumentTypeError(
            f"expected the name of a folder, got {'the file ' if text else ''}{text!r}"
        )
    return path


def existing_file(text: str, what: str = "the name of a file") -> Path:
    """Convert to the path of a file to read; its error says `what` is expected."""
    path = Path(text)
    if not os.path.isfile(path):
        got = f"the folder {text!r}" if os.path.isdir(path) else f"{text!r}, and there is no such file"
        raise argparse.ArgumentTypeError(f"expected {what}, got {got}")
    return path
