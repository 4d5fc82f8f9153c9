"""The loss log: JSON lines, as they would be without any interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gmmkernel._files import write_whole


class LossLog:
    """A file with one JSON object a line, each with its `step`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, step: int) -> None:
        """Drop what was written after a step, and a line that was not finished."""
        if not self.path.exists():
            return
        written = self.path.read_bytes()
        lines = written[: written.rfind(b"\n") + 1].splitlines(keepends=True)
        kept = b"".join(line for line in lines if json.loads(line)["step"] <= step)
        if kept != written:
            write_whole(self.path, kept)

    def append(self, **record: float) -> None:
        """Add a line, and have it on the disk: no checkpoint is older than its log."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # which has no name where the disk is full
            raise OSError(error.errno, error.strerror, str(self.path)) from error
