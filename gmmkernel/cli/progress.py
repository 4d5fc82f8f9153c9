"""Whether a command shows progress bars: on a terminal, and not in the text of a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

_LIBRARIES = ("diffusers", "transformers")
"""Those that show bars of their own while they load, unless they are told not to."""


def shows_progress() -> bool:
    """Return whether standard error is a terminal: elsewhere a bar would leave control characters."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def loading() -> Iterator[None]:
    """Keep the libraries that a block loads pipelines with from showing bars where the command shows none."""
    there = [] if shows_progress() else [name for name in _LIBRARIES if find_spec(name) is not None]
    modules = [import_module(f"{name}.utils.logging") for name in there]
    showing = [module for module in modules if module.is_progress_bar_enabled()]
    for module in showing:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in showing:
            module.enable_progress_bar()
