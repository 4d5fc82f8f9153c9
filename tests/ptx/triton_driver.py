"""Triton with a driver that runs its PTX on the CPU; what compiles, specialises and launches is as on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from gmmkernel.backends import triton as backend
from gmmkernel.backends.triton import launch, launch_density
from gmmkernel.backends.triton.program import WARPS, Program
from ptx import translate
from ptx.machine import WARP, Machine
from ptx.parse import PTXError, parse

STREAM = 77
DEVICE = -1  # what a CPU tensor says its device is
PROGRAMS = {
    value
    for module in (launch, launch_density)
    for value in vars(module).values()
    if isinstance(value, Program)
}
BUILD = Path(__file__).parents[2] / "build" / "triton"


def forget() -> None:
    """Throw away what was compiled for one device, so that nothing of it is launched on another."""
    for program in PROGRAMS:
        program.compiled.clear()
        program.kernel.device_caches.clear()


@contextmanager
def without_assembler() -> Iterator[None]:
    """Let Triton's compiler stop at PTX: the rest takes half of its time, and cannot be run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(BUILD))
        patch.setattr(CUDABackend, "make_cubin", lambda self, text, *options: text.encode())
        yield


class TritonOnCpu:
    """A backend: the functions of `gmmkernel.backends.triton` for tensors on the CPU."""

    name = "Triton"
    _last: TritonOnCpu | None = None  # whose kernels Triton holds

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.machine = Machine()
        self.launched: Counter[str] = Counter()
        self.programs: list[translate.Program] = []
        self._by_text: dict[bytes, int] = {}
        self._memory: list[tuple[int, int]] = []
        self._multiprocessors = 132
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**17},
            load_binary=self._load,
            unload_module=lambda module: None,
        )

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            with self.current():
                getattr(backend, function)(*arguments, **named)

        return call

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this Triton's device, among CPU tensors."""
        if TritonOnCpu._last is not self:
            forget()
            TritonOnCpu._last = self
        launching = Program.launch

        def seen(program: Program, grid: Any, device: int, tensors: Any, *others: Any) -> None:
            self.allow(*(tensor for tensor in tensors if tensor is not None))
            launching(program, grid, device, tensors, *others)

        with without_assembler(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton.runtime.driver, "_active", self)
            patch.setattr(torch.cuda, "current_device", self.get_current_device)
            patch.setattr(torch._C, "_cuda_getCurrentRawStream", self.get_current_stream, raising=False)
            patch.setattr(launch, "_multiprocessors", lambda device: self._multiprocessors)
            patch.setattr(Program, "launch", seen)
            yield

    def set_small(self, small: bool) -> None:
        """Be a device of 1 multiprocessor, whose grids are those of many samples, rather than of 132."""
        self._multiprocessors = 1 if small else 132

    def allow(self, *tensors: Tensor) -> None:
        """Allow access to these tensors, and to nothing else."""
        self._memory = [extent(tensor) for tensor in tensors]

    def compiler(self) -> str:
        """Return what made the code."""
        return f"Triton {triton.__version__}"

    def get_current_target(self) -> GPUTarget:
        """Return what Triton compiles for."""
        return GPUTarget("cuda", self.architecture, WARP)

    def get_current_device(self) -> int:
        """Return the device's number."""
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        """Return the stream that is current on the device, and none on others."""
        return STREAM if device == DEVICE else 0

    def _load(self, name: str, text: bytes, shared: int, device: int) -> tuple[Any, int, int, int, int]:
        if text not in self._by_text:
            (kernel,) = parse(text.decode()).values()
            self._by_text[text] = len(self.programs)
            self.programs.append(translate.Program(kernel))
        return object(), self._by_text[text], 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Return what launches a compiled kernel."""
        kinds = list(source.signature.values())

        def launcher(x: int, y: int, z: int, stream: int, function: int, packed: Any, *others: Any) -> None:
            given = [value for value, kind in zip(others[3:], kinds, strict=True) if kind != "constexpr"]
            addresses = [value.data_ptr() if isinstance(value, Tensor) else value for value in given]
            program = self.programs[function]
            places = program.kernel.parameters.values()
            values = bytearray(program.kernel.parameter_bytes)
            # Two addresses more, of memory that Triton's own tools use.
            for value, (offset, size) in zip([*addresses, 0, 0], places, strict=True):
                values[offset : offset + size] = int(value).to_bytes(size, "little", signed=value < 0)
            if stream != STREAM or packed[0] != WARPS:
                raise PTXError(f"stream {stream}, {packed[0]} warps")
            self.launched[metadata.name] += 1
            self.machine.launch(
                program, (x, y, z), packed[0] * WARP, bytes(values), metadata.shared, self._memory
            )

        return launcher


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses between which a tensor's elements lie."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
