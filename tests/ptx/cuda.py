"""The CUDA extension with its kernels' PTX run on the CPU: linked with csrc/tests/cuda_runtime.c as its runtime.

The launches are the extension's own: their grids, their parameters, which kernel they choose. Only
`cudaLaunchKernel` leads elsewhere.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cuda_binary import BUILD, nvcc_release, read_ptx
from torch import Tensor

from gmmkernel.backends.compiled import CompiledKernels
from ptx.calls import mapped
from ptx.machine import Machine
from ptx.parse import PTXError, parse
from ptx.translate import Program

STREAM = 77
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    *[ctypes.c_uint] * 4,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.c_void_p,
)


def extension() -> Path:
    """Link the extension with `csrc/tests/cuda_runtime.c` and return it.

    Raises:
        pytest.skip.Exception: the CUDA kernels have not been built.
    """
    if not (BUILD / "csrc" / "cuda").is_dir() or importlib.util.find_spec("gmmkernel._cuda") is None:
        pytest.skip("the CUDA kernels have not been built here")
    subprocess.run(
        ["cmake", "--build", BUILD, "--target", "cuda_on_cpu"], check=True, stdout=subprocess.DEVNULL
    )
    return BUILD / "ptx" / "_cuda.so"


class _Seen:
    """The extension, with access allowed to the tensors that its functions are given, and to nothing else."""

    def __init__(self, backend: CudaOnCpu) -> None:
        self._backend = backend

    def __getattr__(self, function: str) -> Any:
        def call(*given: Any) -> Any:
            self._backend._memory.clear()
            mapped(given, self._backend._allow)
            return getattr(self._backend._extension, function)(*given)

        return call


class CudaOnCpu:
    """A backend: the functions of `gmmkernel.backends.cuda` for tensors on the CPU."""

    name = "CUDA"

    def __init__(self, architecture: str) -> None:
        """Link the extension, and read its PTX for an architecture ("80")."""
        made = extension()
        found = parse(read_ptx(made, architecture))
        # Under the name of the package's own extension, that one would come again.
        spec = importlib.util.spec_from_file_location("on_cpu._cuda", made)
        assert spec is not None
        assert spec.loader is not None
        self._extension = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._extension)
        self._library = ctypes.CDLL(str(made))
        self._library.ptx_kernel_name.restype = ctypes.c_char_p
        self._callback = _LAUNCH(self._launch)
        self._library.ptx_set_launch(self._callback)
        names = map(self._library.ptx_kernel_name, range(self._library.ptx_kernel_count()))
        self.programs = {name.decode(): Program(found[name.decode()]) for name in names}
        self.machine = Machine()
        self.launched: Counter[str] = Counter()
        self._device = 0
        self._memory: set[tuple[int, int]] = set()
        self._error: BaseException | None = None
        self._kernels: Any = CompiledKernels(_Seen(self), lambda tensor: (self._device, STREAM))

    def compiler(self) -> str:
        """Return what made the code."""
        return f"nvcc {nvcc_release()}"

    def set_small(self, small: bool) -> None:
        """Be a device of 1 multiprocessor, whose grids are those of many samples, rather than of 132."""
        self._device = int(small)

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            self._error = None
            try:
                getattr(self._kernels, function)(*arguments, **named)
            except RuntimeError:
                raise self._error or sys.exception() from None  # type: ignore[misc]

        return call

    def _allow(self, tensor: Tensor) -> Tensor:
        """Allow access to a tensor's memory."""
        if tensor.numel():
            begin = tensor.data_ptr()
            last = sum(
                (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            self._memory.add((begin, begin + (last + 1) * tensor.element_size()))
        return tensor

    def _launch(
        self, name: bytes, x: int, y: int, z: int, threads: int, arguments: Any, shared: int, stream: int
    ) -> int:
        try:
            program = self.programs[name.decode()]
            if stream != STREAM:
                raise PTXError(f"stream {stream}")
            values = bytearray(program.kernel.parameter_bytes)
            for i, (offset, size) in enumerate(program.kernel.parameters.values()):
                values[offset : offset + size] = ctypes.string_at(arguments[i], size)
            self.launched[name.decode()] += 1
            self.machine.launch(program, (x, y, z), threads, bytes(values), shared, self._memory)
        except BaseException as error:  # raised again where the extension was called
            self._error = error
            return 1
        return 0
