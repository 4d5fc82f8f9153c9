"""nvcc and cuobjdump on the CUDA kernels: find them, compile, read the machine code back."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = tuple(
    ROOT / "csrc" / "cuda" / f"{name}.cu"
    for name in ("kernels", "backward", "sums", "density", "low_rank", "training")
)

# Those of csrc/cuda/CMakeLists.txt that decide about device code.
COMPILER_FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false")


class MissingTool(RuntimeError):
    """nvcc or cuobjdump is not installed."""


def _package_folders(package: str, pattern: str) -> list[Path]:
    """Return folders inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return [folder for place in places or () for folder in sorted(Path(place).glob(pattern))]


def _first(name: str, folders: Iterable[Path]) -> Path | None:
    return next((folder / name for folder in folders if os.access(folder / name, os.X_OK)), None)


def find_nvcc() -> Path:
    """Return nvcc of CUDA_HOME or CUDA_PATH, of PATH, of pip's nvidia packages, or of /usr/local/cuda.

    Raises:
        MissingTool: there is none.
    """
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = [Path(folder) for folder in os.get_exec_path()]
    found = _first("nvcc", [*homes, *path, *_package_folders("nvidia", "*/bin"), Path("/usr/local/cuda/bin")])
    if found is None:
        raise MissingTool("nvcc was not found: by CUDA_HOME, on PATH or among pip's nvidia packages")
    return found


def find_cuobjdump(nvcc: Path | None = None) -> Path:
    """Return cuobjdump from beside nvcc, of PATH, of pip's nvidia packages, or the copy that comes with Triton.

    Raises:
        MissingTool: there is none.
    """
    path = [Path(folder) for folder in os.get_exec_path()]
    packages = [*_package_folders("nvidia", "*/bin"), *_package_folders("triton", "backends/nvidia/bin")]
    beside = [] if nvcc is None else [nvcc.parent]
    found = _first("cuobjdump", [*beside, *path, *packages])
    if found is None:
        raise MissingTool(
            "cuobjdump was not found: beside nvcc, on PATH, or in pip's nvidia or triton packages"
        )
    return found


def run(command: Sequence[str | Path]) -> tuple[str, str]:
    """Return what a command wrote to its two outputs; its folder comes first on PATH, for the tools it calls."""
    folder = str(Path(command[0]).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stderr or done.stdout}")
    return done.stdout, done.stderr


def nvcc_release(nvcc: Path) -> str:
    """Return the release of nvcc, such as "13.0"."""
    said = re.search(r"release (\d+\.\d+)", run([nvcc, "--version"])[0])
    return said.group(1) if said else "unknown"


def _compile(nvcc: Path, output: Path, options: Sequence[str], source: Path) -> str:
    includes = [ROOT / "csrc", ROOT / "csrc" / "include"]
    if "site-packages" in nvcc.parts:  # pip's packages may have the runtime's headers in another one's folder
        includes += sorted(nvcc.parent.parent.parent.glob("*/include"))
    command: list[str | Path] = [
        nvcc,
        *COMPILER_FLAGS,
        *(f"-I{folder}" for folder in includes),
        *options,
        "-o",
        output,
        source,
    ]
    return run(command)[1]


def compile_sass(
    nvcc: Path,
    cuobjdump: Path,
    architecture: str,
    folder: Path,
    sources: Iterable[Path] = SOURCES,
    options: Sequence[str] = (),
) -> tuple[str, str, str]:
    """Compile for one architecture ("90"); return what `report` takes, of all sources together."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    parts = []
    for source in sources:
        cubin = folder / f"{source.stem}.sm_{architecture}.cubin"
        said = _compile(nvcc, cubin, [target, "--resource-usage", "-cubin", *options], source)
        parts.append((run([cuobjdump, "-sass", cubin])[0], run([cuobjdump, "-elf", cubin])[0], said))
    sass, elf, resources = ("\n".join(texts) for texts in zip(*parts, strict=True))
    return sass, elf, resources


def compile_ptx(nvcc: Path, architecture: str, folder: Path, sources: Iterable[Path] = SOURCES) -> str:
    """Compile to PTX, the assembler's input, in which every rounding is spelled out; return it."""
    parts = []
    for source in sources:
        ptx = folder / f"{source.stem}.compute_{architecture}.ptx"
        _compile(nvcc, ptx, [f"-arch=compute_{architecture}", "-ptx"], source)
        parts.append(ptx.read_text(encoding="utf-8"))
    return "\n".join(parts)
