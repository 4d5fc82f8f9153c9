"""Links of the pages that leave docs/, and where the search looks first, for the site of `make docs`.

A checkout has everything where the pages say; the site has docs/ alone. So the Markdown files of `PAGES` become pages,
other files are copied as plain text, and a link to a folder becomes the folder's name. What leads nowhere is left as it
is, and is an error of MkDocs.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "studies/README.md": "studies/about.md",
}
"""Files outside of docs/ that are pages of the site, and what they are called there."""

_SOURCES = {uri: source for source, uri in PAGES.items()}
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the files that links lead to."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for _, target, _ in _LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            uri = _in_site(path)
            if uri is not None and files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links that leave docs/, or come from outside of it, into links of the site; rank the page."""
    own = page.file.src_uri
    if own.startswith("reference/"):
        page.meta["search"] = {"boost": 4}  # whoever searches for a name wants to know what it is

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = _in_repository(own, target)
        uri = _in_site(path)
        if uri is None or not (ROOT / path).exists():
            return match.group()
        if (ROOT / path).is_dir():
            return f"{text[1:-1]} (`{path}`)"
        return f"{text}({posixpath.relpath(uri, posixpath.dirname(own))}{anchor or ''})"

    return _LINK.sub(replace, markdown)


def _in_repository(page: str, target: str) -> str:
    """Return the path, from the repository's root, that a page's link leads to."""
    source = _SOURCES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _in_site(path: str) -> str | None:
    """Return where the site has a file of the repository; None for what is no file of it."""
    if path.startswith("..") or ":" in path:
        return None
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"source/{path}.txt")
