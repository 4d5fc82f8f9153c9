"""The house's rules: dependence in one direction, no framework in the core, rooms of a readable size."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT, files, sources

# What each room may import of the package, besides itself. Everything points down; a new room needs a line here.
MAY_IMPORT = {
    "_checks": set(),
    "_files": set(),
    "_sqrt": set(),
    "backends": {"_core", "_cuda"},
    "ops": {"_checks", "backends"},
    "schedules": {"_checks", "_sqrt", "backends"},
    "mixtures": {"_checks", "_sqrt", "backends", "ops"},
    "moments": {"backends", "mixtures"},
    "samplers": {"_checks", "backends", "mixtures", "ops", "schedules"},
    "integrations": {"_checks", "backends", "mixtures", "ops", "samplers", "schedules"},
    "sharding": {"_checks", "_files", "ops", "samplers"},
    "pipelines": {"_checks", "integrations", "mixtures", "recipes", "samplers"},
    "training": {"_checks", "_files", "ops", "schedules"},
    "digits": {"schedules", "training"},
    "recipes": {"_checks", "schedules", "training"},
    "evaluation": {"_checks", "sharding"},
    "golden": {"backends", "mixtures", "ops", "schedules"},
    "cli": {
        *(
            "",
            "_checks",
            "_files",
            "backends",
            "digits",
            "evaluation",
            "golden",
            "mixtures",
            "moments",
            "ops",
            "pipelines",
            "recipes",
            "samplers",
            "schedules",
            "sharding",
            "training",
        ),
    },
    "__main__": {"cli"},
    "__init__": {"backends", "mixtures", "moments", "ops", "samplers", "schedules", "sharding", "training"},
}

MODULES = sources(".py", under="gmmkernel")
RUN_TIME = {"torch", "numpy", "safetensors", "tqdm"}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Yield the full names that a module imports, wherever, or only those that run when it is loaded."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if top_level:
        functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
        inside = {id(inner) for function in functions for inner in ast.walk(function)}
        nodes = [node for node in nodes if id(node) not in inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """Return the part of the package that a module belongs to."""
    return path.parts[1].removesuffix(".py")


def test_every_room_has_a_place() -> None:
    assert {room(path) for path in MODULES} == set(MAY_IMPORT)


def test_dependence_has_one_direction() -> None:
    """Nothing may be reached from itself in the table above."""
    known = {name: allowed - {""} for name, allowed in MAY_IMPORT.items()} | {"_core": set(), "_cuda": set()}
    order: list[str] = []
    while len(order) < len(known):
        ready = [name for name, allowed in known.items() if name not in order and allowed <= set(order)]
        assert ready, f"a circle among {set(known) - set(order)}"
        order += ready


def test_imports_point_down() -> None:
    assert [fault for path in MODULES for fault in upward_imports(path)] == []


def upward_imports(path: Path) -> Iterator[str]:
    """Yield what a module imports that its room may not."""
    allowed = MAY_IMPORT[room(path)] | {room(path)}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "gmmkernel":
            continue
        below = ROOT / "gmmkernel" / (parts[1] if len(parts) > 1 else "")
        is_module = len(parts) > 1 and (
            below.is_dir() or below.with_suffix(".py").exists() or parts[1] in ("_core", "_cuda")
        )
        target = parts[1] if is_module else ""
        if target not in allowed:
            yield f"{path} imports {name}; a {room(path)} module may import {sorted(allowed)}"


def test_the_specification_is_numpy_alone() -> None:
    """Only the module that joins it to tensors knows torch."""
    reference = [path for path in MODULES if path.is_relative_to("gmmkernel/backends/reference")]
    assert len(reference) > 5
    for path in reference:
        if path.name != "backend.py":
            assert not [name for name in imports(path) if name.split(".")[0] == "torch"], path


def test_loading_needs_the_run_time_dependencies_alone() -> None:
    faults = {str(path): sorted(unknown_imports(path)) for path in MODULES}
    assert {path: names for path, names in faults.items() if names} == {}


def unknown_imports(path: Path) -> set[str]:
    """Return what a module needs to be loaded, and no run-time dependency is; functions may import more."""
    known = {*sys.stdlib_module_names, *RUN_TIME, "gmmkernel"}
    if path.is_relative_to("gmmkernel/backends/triton"):
        known.add("triton")  # loaded when it is wanted
    if path.is_relative_to("gmmkernel/integrations/diffusers"):
        known.add("diffusers")  # the same
    if path.is_relative_to("gmmkernel/pipelines"):
        known |= {"diffusers", "PIL"}  # the same
    return {name.split(".")[0] for name in imports(path, top_level=True)} - known


def test_the_declared_dependencies_are_those() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (declared,) = re.findall(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'"([a-z]+)', declared)) == RUN_TIME


def test_the_core_knows_no_python_and_no_framework() -> None:
    foreign = re.compile(r'#\s*include\s*[<"](Python\.h|pybind11/|torch/|ATen/|c10/|numpy/)')
    core = sources(".h", ".cpp", ".inl", ".c", ".cc", ".hpp", ".cu", ".cuh", under="csrc")
    users = [path for path in core if foreign.search((ROOT / path).read_text(encoding="utf-8"))]
    assert len(core) > 20
    assert {path.parent for path in users} == {Path("csrc/python")}


def test_the_mathematics_includes_nothing_above_it() -> None:
    """csrc/include is for host and device: it must not reach into the CPU's loops."""
    for path in sources(".h", under="csrc/include"):
        included = re.findall(r'#\s*include\s*"([^"]+)"', (ROOT / path).read_text(encoding="utf-8"))
        assert all(name.startswith("gmmkernel/") for name in included), (path, included)


def test_examples_use_what_is_public_and_are_short() -> None:
    examples = sources(".py", under="examples")
    assert len(examples) >= 2
    for path in examples:
        ours = {name.rpartition(".")[0] for name in imports(path) if name.split(".")[0] == "gmmkernel"}
        assert ours <= {"gmmkernel", "gmmkernel.digits", "gmmkernel.recipes"}, path
        assert (ROOT / path).stat().st_size < 15_000, path


def test_files_can_be_read_in_one_sitting() -> None:
    code = [path for path in files() if path.suffix in {".py", ".h", ".cpp", ".inl", ".c", ".cu", ".cuh"}]
    sizes = {path: (ROOT / path).stat().st_size for path in code}
    assert {str(path): size for path, size in sizes.items() if size > 25_000} == {}
    package = sorted(size for path, size in sizes.items() if path.parts[0] in {"gmmkernel", "csrc"})
    assert package[len(package) // 2] < 8_000


def test_no_large_file_slips_in() -> None:
    assert [str(path) for path in files() if (ROOT / path).stat().st_size > 1_500_000] == []
