"""The machine code and the PTX that an extension or a cubin holds, as cuobjdump prints them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / f"cpython-{sys.version_info.major}{sys.version_info.minor}"


class MissingTool(RuntimeError):
    """There is no cuobjdump, or no extension or code to look into."""


def _package_folders(package: str, pattern: str) -> list[Path]:
    """Return folders inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return [folder for place in places or () for folder in sorted(Path(place).glob(pattern))]


def _first(name: str, folders: Iterable[Path]) -> Path | None:
    return next((folder / name for folder in folders if os.access(folder / name, os.X_OK)), None)


def find_cuobjdump() -> Path:
    """Return cuobjdump of PATH, of pip's nvidia packages, or the copy that comes with Triton.

    Raises:
        MissingTool: there is none.
    """
    path = [Path(folder) for folder in os.get_exec_path()]
    packages = [*_package_folders("nvidia", "*/bin"), *_package_folders("triton", "backends/nvidia/bin")]
    found = _first("cuobjdump", [*path, *packages])
    if found is None:
        raise MissingTool("cuobjdump was not found: on PATH, or in pip's nvidia or triton packages")
    return found


def find_extension() -> Path:
    """Return the extension with the CUDA kernels.

    Raises:
        MissingTool: it has not been built.
    """
    spec = importlib.util.find_spec("gmmkernel._cuda")
    if spec is None or spec.origin is None:
        raise MissingTool("the CUDA kernels have not been built here")
    return Path(spec.origin)


def nvcc_release() -> str:
    """Return the release of the nvcc that the extension was built with, such as "13.0"; "unknown" elsewhere."""
    cache = BUILD / "CMakeCache.txt"
    found = re.search(r"^GMM_NVCC:FILEPATH=(.+)$", cache.read_text("utf-8"), re.M) if cache.exists() else None
    said = re.search(r"release (\d+\.\d+)", run([found.group(1), "--version"])) if found else None
    return said.group(1) if said else "unknown"


def run(command: Sequence[str | Path], folder: Path | None = None) -> str:
    """Return what a command prints; the tools beside it come first on PATH, since it may call them."""
    beside = str(Path(command[0]).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def read_sass(binary: Path, architecture: str | None = None) -> tuple[str, str, str]:
    """Return what cuobjdump prints of instructions, sections and resources, of one architecture ("90") or of all.

    Raises:
        MissingTool: there is no cuobjdump, or the binary has no code of that architecture.
    """
    cuobjdump = find_cuobjdump()
    chosen = [] if architecture is None else ["-arch", f"sm_{architecture}"]
    sass, elf, resources = (
        run([cuobjdump, what, *chosen, binary]) for what in ("-sass", "-elf", "--dump-resource-usage")
    )
    if architecture is not None and "Function : " not in sass:
        raise MissingTool(
            f"{binary.name} has no code for sm_{architecture}: build it with GMM_CUDA_ARCHITECTURES, or choose others"
        )
    return sass, elf, resources


def read_ptx(binary: Path, architecture: str) -> str:
    """Return the PTX of all kernels for a virtual architecture ("80"), the assembler's input."""
    with tempfile.TemporaryDirectory() as folder:
        run([find_cuobjdump(), "-xptx", "all", binary], Path(folder))
        parts = sorted(Path(folder).glob(f"*.sm_{architecture}.ptx"))
        return "\n".join(part.read_text("utf-8") for part in parts)
