"""diffusers, loaded when it is wanted: it takes seconds, and it is an extra."""

from __future__ import annotations

from typing import Any


def load_diffusers() -> Any:
    """Return the module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f'training on images needs diffusers: pip install "gmmkernel[pipelines]" ({error})'
        ) from error
    return diffusers
