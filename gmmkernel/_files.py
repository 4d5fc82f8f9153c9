"""Files that are there whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_LEFTOVERS = ".*.tmp-gmmkernel"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed.

    It is written under another name in the same folder, flushed to the disk, and renamed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp-gmmkernel")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for path in folder.glob(_LEFTOVERS):
        path.unlink(missing_ok=True)
