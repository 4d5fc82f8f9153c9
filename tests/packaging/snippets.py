"""The Python examples of a Markdown file."""

from __future__ import annotations

import re
from typing import NamedTuple

NOT_RUN = "<!-- not run -->"
_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """A block of code and the line of the file on which it starts."""

    line: int
    code: str


def snippets(text: str) -> list[Snippet]:
    """Return the blocks to run, in order; one after a comment `<!-- not run -->` is left out."""
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        if before.rstrip().endswith(NOT_RUN):
            continue
        found.append(Snippet(before.count("\n") + 2, match.group(1)))
    return found
