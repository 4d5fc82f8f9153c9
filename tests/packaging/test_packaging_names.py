"""The repository belongs to no machine: no path of one, no package index, no trace of a working place."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from repository import ROOT, files

# In pieces, so that they do not find themselves.
FOREIGN = re.compile(
    "|".join(
        (
            r"(?<![\w.])/(?:" + "|".join(("work", "farm", "root", "home")) + r")/",
            r"/tmp" + r"/w\b",
            r"(?<!\w)\.lib" + "rary" + r"\b",
            r"\bfarm" + "-" + r"(?:bench|studio)",
            r"before" + "-stop",
            "DEVELOPERS" + r"\.md",
            "COM" + "PASS",
            r"\.\./" + "shared",
            "bash" + "_jobs",
        )
    )
)


def texts() -> dict[Path, str]:
    found = {}
    for path in files():
        try:
            found[path] = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights and pictures
            continue
    return found


def test_no_path_of_a_machine() -> None:
    here = re.compile(rf"(?<![\w.]){re.escape(str(ROOT))}(?![\w-])")
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if FOREIGN.search(line) or here.search(line)
    ]
    assert found == []


def index_hosts() -> set[str]:
    """Return the hosts of the package indexes that pip uses here, and the public ones."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    words = " ".join([listed, *(value for name, value in os.environ.items() if name.startswith("PIP_"))])
    urls = re.findall(r"https?://[^\s'\"]+", words)
    hosts = {urlsplit(url).hostname for url in urls}
    return {host for host in hosts if host} | {
        "py" + "pi.org",
        "python" + "hosted.org",
        "download.py" + "torch.org",
    }


def test_no_package_index() -> None:
    hosts = index_hosts()
    found = [
        f"{path}: {host}"
        for path, text in texts().items()
        for host in hosts
        if re.search(re.escape(host), text)
    ]
    assert found == []
    options = ("--index-" + "url", "--extra-index-" + "url", "--find-" + "links")
    for path, text in texts().items():
        assert not any(option in text for option in options), path


def test_the_patterns_find_what_they_should() -> None:
    for line in (
        "see /ho" + "me/someone/x",
        "cd /wo" + "rk/main",
        "../sha" + "red/notes",
        "see .libr" + "ary/x",
    ):
        assert FOREIGN.search(line), line
    for line in (
        "https://a.b/wo" + "rk/x",
        "tests/ro" + "ot/x",
        "torch.libr" + "ary",
        shlex.join(["make", "test"]),
    ):
        assert not FOREIGN.search(line), line
