"""Build of the compiled core: setuptools asks CMake, so that C++ users and Python share one build description."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure and build the `_core` target with CMake and Ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Put the extension where setuptools expects it."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Beside the sources when working in them, so that a rebuild compiles only what changed.
        working_in_place = self.inplace or self.editable_mode
        parent = ROOT / "build" if working_in_place else Path(self.build_temp).resolve()
        build = parent / f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DGMM_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_core"], check=True)


setup(ext_modules=[Extension("gmmkernel._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
