"""What a run was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gmmkernel.backends import available_backends, cpu

_PACKAGES = ("gmmkernel", "torch", "triton", "numpy", "diffusers", "matplotlib")
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
        **({"gpu": describe_gpu(device)} if device.type == "cuda" else {}),
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


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return what a CUDA device is and which CUDA torch was built for."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes(device),
        "torch_cuda": torch.version.cuda,
    }


def l2_bytes(device: torch.device) -> int:
    """Return the size of a device's L2 cache; 0 where PyTorch does not tell it."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
