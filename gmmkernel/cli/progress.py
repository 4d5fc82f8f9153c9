"""Whether a command shows progress bars: on a terminal, and not in the text of a file or a pipe."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

_LIBRARIES = ("diffusers", "transformers")
"""Those that show bars of their own while they load, unless they are told not to."""

_NO_MATTER = re.compile("`accelerate`|requires torchvision|Couldn't connect to the Hub")
"""What they advise while they load, or what the error that follows says too; other warnings are shown."""


def shows_progress() -> bool:
    """Return whether standard error is a terminal: elsewhere a bar would leave control characters."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def loading() -> Iterator[None]:
    """Keep the libraries that a block loads pipelines with from bars where the command shows none, and from advice."""
    modules = [import_module(f"{name}.utils.logging") for name in _LIBRARIES if find_spec(name) is not None]
    showing = [] if shows_progress() else [module for module in modules if module.is_progress_bar_enabled()]
    handlers = [handler for module in modules for handler in module.get_logger().handlers]
    for handler in handlers:
        handler.addFilter(_matters)
    for module in showing:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in showing:
            module.enable_progress_bar()
        for handler in handlers:
            handler.removeFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    return _NO_MATTER.search(record.getMessage()) is None
