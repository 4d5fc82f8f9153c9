"""`--json`: the figures that a command prints, unrounded, and what they depend on, in a file."""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import gmmkernel
from gmmkernel.cli.outputs import write_file
from gmmkernel.cli.values import file
from gmmkernel.moments import MomentReport

_NO_SETTINGS = ("command", "json", "run")
"""What the parsed arguments hold besides options on which figures depend."""


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Add the option; the command tries the file by `check_file` before it begins."""
    parser.add_argument(
        "--json", type=file(".json"), metavar="FILE", help="write figures and what they depend on (.json)"
    )


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it computes with."""
    return {
        "gmmkernel": gmmkernel.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def settings(arguments: argparse.Namespace, **decided: Any) -> dict[str, Any]:
    """Return the options as they are now, with defaults, and what the command has `decided` of the others."""
    given = {name: value for name, value in vars(arguments).items() if name not in _NO_SETTINGS}
    return given | {"threads": torch.get_num_threads()} | decided


def moments(report: MomentReport) -> dict[str, Any]:
    """Return a report's figures, those of steps as tensors, and its verdict."""
    figures = {field.name: getattr(report, field.name) for field in fields(report)}
    return figures | {"matched": report.matched, "verdict": report.verdict}


def write_json(path: Path | None, known: Mapping[str, Any]) -> None:
    """Write what a command knows at its end to the file of `--json`; None: there is none.

    Tensors become lists. Numbers that are not finite, which JSON does not have, become "inf", "-inf" and
    "nan", the texts that `float` reads.

    Raises:
        OSError: it is not where it should be; the message says where it is.
    """
    if path is not None:
        text = json.dumps(_plain(known), indent=2, ensure_ascii=False, allow_nan=False)
        write_file("--json", path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path | torch.device):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
