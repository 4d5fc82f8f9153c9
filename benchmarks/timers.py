"""Clocks: how long calls take on a device. Another device is another `Timer` in `timer_for`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch


class Timer(Protocol):
    """Times calls on one kind of device."""

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        """Return the seconds that each of call(i), i in `indices`, took on its own.

        Args:
            call: what is timed; the release of what it returns is part of it.
            indices: its arguments.
            before: called ahead of every call, outside the timed part.
        """


class WallClock:
    """The clock on the wall, for devices whose calls return when the work is done."""

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        """Return the seconds that each call took; see `Timer`."""
        clock = time.perf_counter_ns
        seconds = []
        for index in indices:
            if before is not None:
                before()
            start = clock()
            call(index)
            seconds.append((clock() - start) * 1e-9)
        return seconds


_TIMERS: dict[str, Callable[[], Timer]] = {"cpu": WallClock}


def timer_for(device: torch.device) -> Timer:
    """Return the timer of a device.

    Raises:
        ValueError: nothing here can time that device.
    """
    if device.type not in _TIMERS:
        raise ValueError(f"device: expected one of {sorted(_TIMERS)}, got {device.type!r}")
    return _TIMERS[device.type]()
