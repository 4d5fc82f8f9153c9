"""What a run was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gmmkernel.backends import available_backends, cpu

_PACKAGES = ("gmmkernel", "torch", "numpy", "diffusers", "matplotlib")
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "MKL_NUM_THREADS",
)


def cpu_model() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> list[float]:
    """Return the load of the last 1, 5 and 15 minutes: runnable processes, this one included."""
    return [round(load, 2) for load in os.getloadavg()]


def describe(device: torch.device) -> dict[str, Any]:
    """Return device, processor, instruction sets, backends, versions and thread settings."""
    return {
        "device": str(device),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "instruction_sets": cpu.instruction_sets(),
        "instruction_set_used": cpu.best_instruction_set(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "backends": {status.name: status.detail for status in available_backends()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "thread_settings": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
