"""What commands write: files that are tried before the work and not lost after it, and a standard output that lasts.

A result that took minutes is not lost to where it goes: neither to a folder that cannot be written to, nor to a
terminal without the signs it is written in, nor to a reader that has left (`| head`).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmmkernel._files import check_writable, write_whole

_ASCII = str.maketrans({"±": "+-", "×": "x", "−": "-", "é": "e"})


def check_file(option: str, path: Path | None) -> None:
    """Try whether a file that an option names can be written, and make its folder; None: there is none to try.

    Raises:
        OSError: it cannot; the message names the option.
    """
    if path is not None:
        _try(option, path, f"write {str(path)!r}")


def check_folder(option: str, folder: Path) -> None:
    """Try whether files can be written in a folder that an option names, and make it.

    Raises:
        OSError: they cannot; the message names the option.
    """
    _try(option, folder / "trial", f"write in {str(folder)!r}")


def _try(option: str, path: Path, what: str) -> None:
    try:
        check_writable(path)
    except OSError as error:
        raise OSError(f"{option}: cannot {what}: {error.strerror}") from error


def write_file(option: str, path: Path, data: bytes) -> None:
    """Write a result to the file that an option names, or else to the working folder or the temporary one.

    Raises:
        OSError: it is not where it should be; the message names the option, and says where it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        problem = f"{option}: cannot write {str(path)!r}: {error.strerror}"
        kept = _write_elsewhere(path.suffix, data)
        where = "and nowhere else either" if kept is None else f"what it should have is in {str(kept)!r}"
        raise OSError(f"{problem}; {where}") from error


def _write_elsewhere(suffix: str, data: bytes) -> Path | None:
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        path = folder / f"gmmkernel-{uuid.uuid4().hex[:8]}{suffix}"
        with contextlib.suppress(OSError):
            write_whole(path, data)
            return path
    return None


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding does not have: by what it looks like, or by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end].translate(_ASCII)
    return signs.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("gmmkernel.in_ascii", _in_ascii)


class _Output:
    """A stream that is written to as long as that works, then not at all; `failure` is why, unless its reader left."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        with self._as_long_as_it_works():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._as_long_as_it_works():
            self._stream.flush()

    @contextmanager
    def _as_long_as_it_works(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            # What the stream still holds has to go somewhere, or Python tries again at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Keep a block's printing from ending it: signs that standard output lacks are replaced, and readers may leave.

    Raises:
        OSError: standard output could not be written, as on a full disk; only when the block has ended.
    """
    before: Any = sys.stdout
    if before is None:  # closed from the start: nothing is printed
        yield
        return
    errors = before.errors if isinstance(before, io.TextIOWrapper) else None
    if isinstance(before, io.TextIOWrapper):
        before.reconfigure(errors="gmmkernel.in_ascii")
    output = _Output(before)
    sys.stdout = output
    try:
        yield
    finally:
        output.flush()
        sys.stdout = before
        if errors is not None:
            before.reconfigure(errors=errors)
    if output.failure is not None:
        raise OSError(f"standard output: {output.failure.strerror}") from output.failure
