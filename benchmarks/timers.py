"""Clocks: how long calls take on a device, or on its host. Another device is another `Timer` in `timer_for`."""

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


class CudaEvents:
    """Events of the current CUDA stream.

    The calls of a block are timed together, and each is given the block's mean: an event between every two of them
    would cost as much as a small step. An untimed call goes ahead, so that the device is busy while the host makes
    the first calls ready; where the host is slower than the device throughout, the time is the host's.
    """

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        """Return the mean seconds of the calls, once for each; see `Timer`."""
        chosen = list(indices)
        if before is not None:
            before()
        if len(chosen) > 1:
            call(chosen[0])
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for index in chosen:
            call(index)
        end.record()
        end.synchronize()
        return [start.elapsed_time(end) * 1e-3 / len(chosen)] * len(chosen)


class HostClock:
    """The host's time for calls that only queue work on a CUDA device."""

    _between_waits = 32  # far fewer launches than a queue holds, so that no call waits for room

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        """Return the seconds until each call returned; see `Timer`."""
        clock = time.perf_counter_ns
        seconds: list[float] = []
        for index in indices:
            if len(seconds) % self._between_waits == 0:
                torch.cuda.synchronize()
            if before is not None:
                before()
            start = clock()
            call(index)
            seconds.append((clock() - start) * 1e-9)
        torch.cuda.synchronize()
        return seconds


_TIMERS: dict[str, Callable[[], Timer]] = {"cpu": WallClock, "cuda": CudaEvents}


def timer_for(device: torch.device) -> Timer:
    """Return the timer of a device.

    Raises:
        ValueError: nothing here can time that device.
    """
    if device.type not in _TIMERS:
        raise ValueError(f"device: expected one of {sorted(_TIMERS)}, got {device.type!r}")
    return _TIMERS[device.type]()
