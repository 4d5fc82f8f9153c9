"""CUDA devices by their compute capability, written as compilers write it: sm_90 is capability 9.0."""

from __future__ import annotations

from functools import cache

import torch

LEAST_CAPABILITY = (8, 0)
"""With it begin the instructions max.NaN, min.NaN and cvt.rn.bf16x2, which every kernel may use."""


@cache
def capability_of(index: int) -> tuple[int, int]:
    """Return the compute capability, major and minor, of a CUDA device."""
    return torch.cuda.get_device_capability(index)


def sm(capability: tuple[int, int]) -> str:
    """Return a compute capability as compilers name it."""
    return f"sm_{10 * capability[0] + capability[1]}"


def describe_device(index: int) -> str:
    """Return the name and the compute capability of a CUDA device."""
    return f"{torch.cuda.get_device_name(index)} ({sm(capability_of(index))})"


def runs_code(capability: tuple[int, int], architectures: str) -> bool:
    """Return whether a device runs any of the code that a binary has.

    Machine code runs on devices of the same major capability and the same or a higher minor one, PTX on every device
    of the same or a higher capability, once the driver has compiled it.

    Args:
        capability: the device's.
        architectures: what the binary has, such as "sm_80 sm_90 compute_80": machine code, PTX.
    """
    for architecture in architectures.split():
        kind, _, number = architecture.partition("_")
        built = divmod(int(number), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False
