"""What README.md and docs/ show is run: every Python block, in order, one namespace for each file."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT, files
from snippets import snippets

PAGES = [
    path
    for path in files()
    if path.suffix == ".md" and path.parts[0] in {"README.md", "CONTRIBUTING.md", "docs"}
]


def run(text: str, name: str) -> dict[str, object]:
    """Run a page's blocks; an error names the page and its line."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets(text):
        padded = "\n" * (snippet.line - 1) + snippet.code
        exec(compile(padded, name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_a_page_does_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    set_threads(1)
    run((ROOT / path).read_text(encoding="utf-8"), str(path))


def test_the_readme_shows_python() -> None:
    assert snippets((ROOT / "README.md").read_text(encoding="utf-8"))


PAGE = """
# Title
```python
x = 1
```
text
```sh
y = 2
```
<!-- not run -->

```python
raise AssertionError
```
```python title="shown"
x += 1
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    assert [(snippet.line, snippet.code) for snippet in snippets(PAGE)] == [(4, "x = 1\n"), (16, "x += 1\n")]
    assert run(PAGE, "page")["x"] == 2


def test_an_error_names_page_and_line() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run("\n\n```python\nx = 1\nx / 0\n```\n", "page.md")
    last = traceback.extract_tb(raised.tb)[-1]
    assert (last.filename, last.lineno) == ("page.md", 5)


def test_links_lead_somewhere() -> None:
    broken = {str(path): broken_links(path) for path in PAGES}
    assert {path: targets for path, targets in broken.items() if targets} == {}


def broken_links(path: Path) -> list[str]:
    """Return the links to files that are not there."""
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    return [target for target in local if not (ROOT / path.parent / target).exists()]
