"""Build of the compiled parts: setuptools asks CMake, so that C++ users and Python share one build description.

The CUDA kernels are built where nvcc is found: by CUDA_HOME, on PATH, or among pip's nvidia packages. CMAKE_ARGS takes
more options, as a shell takes words (-DGMM_CUDA=OFF leaves the kernels out, -DCMAKE_CXX_FLAGS='-O2 -g' is one option),
GMM_CUDA_ARCHITECTURES narrows what they are compiled for ("80;90").
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import OptionError

ROOT = Path(__file__).resolve().parent


def cmake_options() -> list[str]:
    """Return the options in CMAKE_ARGS."""
    text = os.environ.get("CMAKE_ARGS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise OptionError(
            f"CMAKE_ARGS: expected words as a shell takes them, got {text!r}: {error}"
        ) from error


class CMakeBuild(build_ext):
    """Configure and build `_core`, and `_cuda` where it can be, with CMake and Ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Put the extension where setuptools expects it: one build makes all there are."""
        import pybind11

        if ext.optional:
            return

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Beside the sources when working in them, so that a rebuild compiles only what changed.
        working_in_place = self.inplace or self.editable_mode
        parent = ROOT / "build" if working_in_place else Path(self.build_temp).resolve()
        build = parent / f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        packages = Path(sysconfig.get_path("purelib"))
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-UGMM_*",  # an earlier build's, which would prevail over what the environment says now
            "-DGMM_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DGMM_NVCC_HINTS={';'.join(str(folder) for folder in packages.glob('nvidia/*/bin'))}",
            *cmake_options(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


EXTENSIONS = [
    Extension("gmmkernel._core", sources=[]),
    Extension("gmmkernel._cuda", sources=[], optional=True),
]

setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": CMakeBuild})
