"""The folder of a study: what it is for, what is done, and who does what, so that processes can share it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from gmmkernel._files import write_whole
from gmmkernel.cli.outputs import check_folder
from gmmkernel.cli.pictures import check_matplotlib


class OutOfTimeError(Exception):
    """The time given is over."""


def check_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Write what the folder is for, or refuse another study's."""
    path, own = folder / "settings.json", {**settings, "torch": torch.__version__}
    text = json.dumps(own) + "\n"
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{folder}: has a study with {path.read_text().strip()}, not {text.strip()}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def check_report(folder: Path) -> None:
    """Find out whether the report can be written and plotted: before hours of work, not after."""
    try:
        check_folder("--report", folder)
        check_matplotlib()
    except (OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def write_json(path: Path, content: object) -> None:
    """Write a result, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def taken(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, so that several processes can share a folder; wait, or yield False, where another holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
