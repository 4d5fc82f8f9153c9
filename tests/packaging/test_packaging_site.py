"""The site of `make docs`: every public name has its place in the reference, every page in the navigation."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from repository import ROOT, files, sources
from test_packaging_house import MAY_IMPORT

REFERENCE = ROOT / "docs" / "reference"
ROOMS = (
    "gmmkernel",
    "gmmkernel.backends",
    "gmmkernel.digits",
    "gmmkernel.evaluation",
    "gmmkernel.integrations.diffusers",
    "gmmkernel.integrations.flow_grpo",
    "gmmkernel.integrations.k_diffusion",
    "gmmkernel.mixtures",
    "gmmkernel.moments",
    "gmmkernel.ops",
    "gmmkernel.pipelines",
    "gmmkernel.recipes",
    "gmmkernel.samplers",
    "gmmkernel.schedules",
    "gmmkernel.sharding",
    "gmmkernel.training",
)
FOREIGN = {"SchedulerMixin"}  # diffusers' own, which it looks for beside our schedulers


def entries() -> list[str]:
    """Return what the reference documents: the lines `::: name`."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md"))]
    return [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def public_names(module: str) -> set[str]:
    """Return a module's public names: `__all__`, or what it defines itself without an underscore."""
    loaded = import_module(module)
    listed = getattr(loaded, "__all__", None)
    if listed is None:
        own = [name for name, value in vars(loaded).items() if getattr(value, "__module__", None) == module]
        listed = [name for name in own if not name.startswith("_")]
        assert listed, module
    return set(listed) - FOREIGN


@pytest.mark.parametrize("module", ROOMS)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    """Under the module, or, what the package itself has, under the package."""
    shown = set(entries())
    missing = {name for name in public_names(module) if not {f"{module}.{name}", f"gmmkernel.{name}"} & shown}
    assert missing == set()


def test_no_public_module_is_forgotten() -> None:
    """Packages that list names are rooms of the reference, except the command line and single backends."""
    initials = [path for path in files() if path.name == "__init__.py" and path.parts[0] == "gmmkernel"]
    public = {
        ".".join(path.parent.parts)
        for path in initials
        if re.search(r"^__all__ = ", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    }
    inner = ("gmmkernel.cli", "gmmkernel.backends.")
    assert len(public) > 10
    assert {module for module in public if not module.startswith(inner)} <= set(ROOMS)


def documented_constants() -> set[str]:
    """Return the names in the package that a string follows, and those that a sentence follows on their page."""
    found = set()
    for path in sources(".py", under="gmmkernel"):
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for statement, following in pairwise(body):
            if isinstance(statement, ast.Assign) and isinstance(following, ast.Expr):
                found.add(ast.unparse(statement.targets[0]))
    for path in REFERENCE.glob("*.md"):
        found |= set(re.findall(r"^::: [\w.]+\.(\w+)\n\n\w", path.read_text(encoding="utf-8"), re.MULTILINE))
    return found


def test_the_reference_shows_each_name_once_and_says_what_it_is() -> None:
    shown = entries()
    assert sorted(shown) == sorted(set(shown))
    constants = documented_constants()
    for entry in set(shown) - {"gmmkernel"}:
        module, _, name = entry.rpartition(".")
        assert module in ROOMS, entry
        value = getattr(import_module(module), name)
        assert name in constants or (callable(value) and value.__doc__), entry


def pages_of_the_navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return re.findall(r"([\w/.-]+\.md)$", text, re.MULTILINE)


def test_every_page_has_a_place() -> None:
    """Also those that are outside of docs/, which docs/outside.py names."""
    (table,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "docs" / "outside.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGES"
    )
    assert [source for source in table if not (ROOT / source).is_file()] == []
    inside = [
        str(path.relative_to("docs")) for path in files() if path.suffix == ".md" and path.parts[0] == "docs"
    ]
    assert sorted(pages_of_the_navigation()) == sorted([*inside, *table.values()])


def test_the_drawing_of_the_house_is_the_house() -> None:
    """Each room is drawn above those that it imports."""
    drawing = (ROOT / "docs" / "drawings" / "house.svg").read_text(encoding="utf-8")
    heights = {
        name: int(y) for name, y in re.findall(r'<text class="middle" id="(\w+)" x="\d+" y="(\d+)"', drawing)
    }
    rooms = {name for name in MAY_IMPORT if not name.startswith("_")}
    assert set(heights) == rooms
    for name in rooms:
        assert all(heights[name] < heights[below] for below in MAY_IMPORT[name] & rooms), name


def mkdocs() -> Path | None:
    """Return a Python that has MkDocs: that of `make docs`, or this one."""
    made = ROOT / "build" / "docs" / "venv" / "bin" / "python"
    for python in (made, Path(sys.executable)):
        if python.exists():
            found = subprocess.run([python, "-c", "import material, mkdocstrings"], capture_output=True)
            if found.returncode == 0:
                return python
    return None


@pytest.mark.slow
def test_the_site_is_built_and_its_faults_are_seen(tmp_path: Path) -> None:
    """Strictly, of a copy; then with a broken link, which shows that strict means something."""
    python = mkdocs()
    if python is None:
        pytest.skip("nothing is installed for this test: `make docs` makes the environment that it uses")
    for path in files():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)
    words = [python, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = build()
    assert done.returncode == 0, done.stderr
    reference = "".join(path.read_text() for path in (tmp_path / "site" / "reference").glob("*.html"))
    assert [name for name in entries() if f'id="{name}"' not in reference] == []
    modules = [name for name in entries() if f'id="{name}.{name.rpartition(".")[2]}"' in reference]
    assert modules == []  # in a function's place
    page = tmp_path / "README.md"
    page.write_text(page.read_text() + "\n[a page](docs/nowhere.md), [a file](csrc/nowhere.h)\n")
    done = build()
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "nowhere.h" in done.stderr
