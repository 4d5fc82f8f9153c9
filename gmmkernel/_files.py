"""Files that are there whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

_LEFTOVERS = ".*.tmp-gmmkernel"


def _temporary(path: Path) -> Path:
    """Return the name under which a file is written first."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp-gmmkernel")


def write_whole(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed.

    It is written under another name in the same folder, flushed to the disk, and renamed. Without `flush` a loss of
    power may leave it empty or in part.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            # A full disk is told where it is written to, without the file's name.
            error.filename = str(path)
        raise
    if not flush:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


def check_writable(path: Path) -> None:
    """Find out whether `write_whole` could write a file, before the work whose result it is; make its folder.

    Raises:
        OSError: it could not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not os.access(
        path, os.W_OK
    ):  # it could be replaced, but whoever protected it would mind
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.touch(exist_ok=False)
    temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for path in folder.glob(_LEFTOVERS):
        path.unlink(missing_ok=True)
