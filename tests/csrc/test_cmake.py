"""The C++ side on its own: options of the build; in the slow tier ctest, install, a consumer, sanitizers."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES C CXX)
find_package(gmmkernel 0.2 REQUIRED)
add_executable(from_cpp sample.cpp)
target_link_libraries(from_cpp PRIVATE gmmkernel::gmmkernel)
add_executable(from_c header_in_c.c)
target_link_libraries(from_c PRIVATE gmmkernel::gmmkernel)
if(TARGET gmmkernel::gmmkernel_cuda)
  add_executable(from_c_with_cuda devices.c)
  target_link_libraries(from_c_with_cuda PRIVATE gmmkernel::gmmkernel_cuda)
endif()
"""

DEVICES = """
#include <stdio.h>
#include "gmmkernel/gmmkernel.h"
int main(void) {
  int32_t count = 0;
  const int status = gmm_cuda_device_count(&count);
  printf("status %d, %d devices: %s\\n", status, count, gmm_last_error());
  return status == GMM_SUCCESS || status == GMM_CUDA_ERROR ? 0 : 1;
}
"""


def _tool(name: str) -> str:
    """Return a build tool of the environment that runs the tests, or skip."""
    beside_python = Path(sys.prefix) / "bin" / name
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(*command: str | Path, directory: Path | None = None) -> str:
    """Run a command and return what it printed; a failure shows all of it."""
    parts = [str(part) for part in command]
    done = subprocess.run(
        parts, cwd=directory, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(parts)}\n{done.stdout}"
    return done.stdout


def _configure(source: Path, build: Path, *options: str) -> str:
    """Configure a build; of the CUDA architectures one, to be quick (building the package itself takes them all)."""
    common = (
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
        "-DGMM_CUDA_ARCHITECTURES=90",
        "--no-warn-unused-cli",
    )
    return _run(_tool("cmake"), "-S", source, "-B", build, *common, *options)


def _ctest(build: Path) -> str:
    return _run(_tool("ctest"), "--output-on-failure", "--parallel", "2", "--timeout", "300", directory=build)


@pytest.mark.slow
def test_build_test_install_and_use(tmp_path: Path) -> None:
    # Spaces in the names of folders: of the sources, of what is made of them, and where it goes.
    source, build = tmp_path / "a checkout", tmp_path / "a build"
    prefix, consumer = tmp_path / "a prefix", tmp_path / "a consumer"
    source.symlink_to(ROOT)
    _configure(source, build)
    printed = _run(_tool("cmake"), "--build", build)
    assert "warning:" not in printed, printed
    assert "100% tests passed" in _ctest(build)

    _run(_tool("cmake"), "--install", build, "--prefix", prefix)
    headers = sorted(path.name for path in (prefix / "include" / "gmmkernel").iterdir())
    assert headers == sorted(path.name for path in (ROOT / "csrc" / "include" / "gmmkernel").iterdir())
    for description in prefix.rglob("*.cmake"):
        text = description.read_text()
        for path in (ROOT, tmp_path):
            assert str(path) not in text, f"{description} holds an absolute path"

    # Moved elsewhere first: an installed package must not depend on where it was installed.
    moved = tmp_path / "moved elsewhere"
    prefix.rename(moved)
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(CONSUMER)
    shutil.copy(ROOT / "csrc" / "examples" / "sample.cpp", consumer)
    shutil.copy(ROOT / "csrc" / "tests" / "header_in_c.c", consumer)
    (consumer / "devices.c").write_text(DEVICES)
    _configure(consumer, consumer / "build", f"-DCMAKE_PREFIX_PATH={moved}")
    _run(_tool("cmake"), "--build", consumer / "build")
    assert "variance" in _run(consumer / "build" / "from_cpp")
    _run(consumer / "build" / "from_c")
    if (moved / "lib" / "libgmmkernel_cuda.a").exists():
        assert "status" in _run(consumer / "build" / "from_c_with_cuda")


def test_the_cuda_library_can_be_left_out(tmp_path: Path) -> None:
    assert "CUDA" not in _configure(ROOT, tmp_path, "-DGMM_CUDA=OFF")
    assert "gmmkernel_cuda" not in (tmp_path / "build.ninja").read_text()


IMPOSSIBLE = {
    "-DGMM_NVCC=/nowhere/nvcc": "does not run",
    "-DGMM_CUDA_ARCHITECTURES=90;12345": "does not know 12345",
    "-DGMM_CUDA_ARCHITECTURES=90 100": "does not know 90 100",
    "-DGMM_CUDA_ARCHITECTURES=90;75": r"expected 80 or more.*got\s75",
}


def test_cuda_options_that_cannot_be_met_are_errors(tmp_path: Path) -> None:
    for option, message in IMPOSSIBLE.items():
        if "NVCC" in option or shutil.which("nvcc") is not None:
            with pytest.raises(AssertionError, match=f"(?s){message}"):
                _configure(ROOT, tmp_path, "-DGMM_CUDA=ON", option)
            shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("architectures", "code"),
    [
        ("100;80;90;80", "sm_80 sm_90 sm_100 compute_80 compute_100"),  # in whatever order they are named
        ("90", "sm_90 compute_90"),
    ],
)
def test_ptx_of_the_lowest_and_the_highest_architecture_goes_with_the_code(
    tmp_path: Path, architectures: str, code: str
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    said = _configure(ROOT, tmp_path, "-DGMM_CUDA=ON", f"-DGMM_CUDA_ARCHITECTURES={architectures}")
    assert f", code for {code}\n" in said
    lines = (tmp_path / "build.ninja").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("  COMMAND = ") and "sums.cu" in line)
    asked = [word.replace("arch=", "").split(",code=") for word in shlex.split(command) if "code=" in word]
    assert [real for _, real in asked] == code.split()
    assert all(virtual == real.replace("sm_", "compute_") for virtual, real in asked)


@pytest.mark.slow
def test_sanitizers(tmp_path: Path) -> None:
    _configure(ROOT, tmp_path, "-DGMM_SANITIZE=ON", "-DGMM_CUDA=OFF")
    _run(_tool("cmake"), "--build", tmp_path)
    assert "100% tests passed" in _ctest(tmp_path)


@pytest.mark.slow
def test_accuracy_tool(tmp_path: Path) -> None:
    """A short run of the long check: every figure within what docs/exactness.md promises for all words."""
    _configure(ROOT, tmp_path, "-DGMM_TESTS=OFF", "-DGMM_TOOLS=ON", "-DGMM_CUDA=OFF")
    _run(_tool("cmake"), "--build", tmp_path)
    tool = tmp_path / "csrc" / "tools" / "normal_accuracy"
    printed = _run(tool, "--words", "1048576", "--pairs", "200000", "--threads", "2")
    rows = [line.split() for line in printed.splitlines()]
    table = [row for row in rows if len(row) > 2 and row[1].isdigit()]  # the rest is progress
    worst = {row[0]: float(row[2]) for row in table}
    assert set(worst) == {"radius", "cosine", "sine", "normal"}
    assert 0.5 < max(worst["radius"], worst["cosine"], worst["sine"]) < 2
    assert 0.5 < worst["normal"] < 5

    tool = tmp_path / "csrc" / "tools" / "elementary_accuracy"
    printed = _run(tool, "--words", "1048576", "--doubles", "2000000", "--threads", "2")
    rows = [line.split() for line in printed.splitlines()]
    worst = {row[0]: float(row[2]) for row in rows if len(row) > 2 and row[1].isdigit()}
    assert set(worst) == {"log", "exp", "log64", "exp64"}
    for error in worst.values():
        assert 0.5 < error < 1.1
