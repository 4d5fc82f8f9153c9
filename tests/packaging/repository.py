"""The files of the repository, as git sees them: tracked, or new and not ignored."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> tuple[Path, ...]:
    """Return the paths, relative to the root, of all files that are or will be part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = sorted({Path(name) for name in listed.split("\0") if name})
    return tuple(path for path in found if (ROOT / path).is_file())


def sources(*suffixes: str, under: str = ".") -> list[Path]:
    """Return those with one of the suffixes in a folder."""
    return [path for path in files() if path.suffix in suffixes and path.is_relative_to(under)]
