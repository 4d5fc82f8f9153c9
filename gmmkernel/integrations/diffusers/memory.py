"""Whether a mixture fits into memory, before it is built."""

from __future__ import annotations

from pathlib import Path

import torch

_FLOAT64 = 8
_NOISE_ROWS = 8
"""K rows of float64 each: the noise of a step, and what is made of it on the way to its offsets, as measured."""


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device, or None where that cannot be told."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def check_fits(
    steps: int, components: int, deviations: int, elements: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Accept a mixture that fits beside what is in memory now.

    It is built in float64, with the noise of a step at a time, and bound, both on the CPU; its tables go to the device.

    Args:
        steps: mixtures, 1 if all steps share one.
        components: K.
        deviations: rows of variances in a step, 1 or K.
        elements: D, of a sample; of each row.
        device: where the tables go.
        dtype: their type.

    Raises:
        MemoryError: it does not; the message has its size and what would make it smaller.
    """
    table = steps * (components + deviations) * elements
    building = _FLOAT64 * _NOISE_ROWS * components * elements + dtype.itemsize * steps * deviations * elements
    tables = dtype.itemsize * table
    needed = {torch.device("cpu"): _FLOAT64 * table + building + tables}
    if device.type != "cpu":
        needed[device] = tables
    for place, size in needed.items():
        there = available_bytes(place)
        if there is not None and size > there:
            smaller = "" if steps == 1 else f"shared_mixture=True (a {steps}th of it), "
            raise MemoryError(
                f"mixture: {steps} x {components} components of {elements} elements need {_gigabytes(size)} "
                f"on {place}, which has {_gigabytes(there)} left; use {smaller}fewer n_components, fewer steps or "
                "smaller samples"
            )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
