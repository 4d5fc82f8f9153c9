"""Backends and the choice between them.

`cpu` is the compiled C++ core and `reference` the NumPy specification, both for CPU tensors; `cuda` are the compiled
kernels for CUDA tensors and `triton` those that Triton compiles when they are first used. All give the same bits.
A backend is chosen by the tensors' device, the first in the order of `available_backends` that can compute on it; ask
for another with the `backend` argument of an op, or with `use`. Where the choice falls on the specification, since the
core is missing, a `SlowBackendWarning` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, cast

import torch

from gmmkernel.backends.devices import describe_device
from gmmkernel.backends.protocol import Backend

__all__ = ["BackendStatus", "SlowBackendWarning", "available_backends", "load", "resolve", "use"]


class SlowBackendWarning(RuntimeWarning):
    """The specification computes, since the compiled core is missing: a hundred times slower, and more."""


class BackendStatus(NamedTuple):
    """One backend of the package.

    Attributes:
        name: what the `backend` argument of an op takes.
        device_type: the type of the tensors it computes on.
        devices: those whose tensors it can compute on here.
        detail: what it is and runs on, and which devices it cannot compute on, and why.
    """

    name: str
    device_type: str
    devices: tuple[torch.device, ...]
    detail: str

    @property
    def available(self) -> bool:
        """Whether it can be used here."""
        return len(self.devices) > 0


class _Entry(NamedTuple):
    module: str
    device_type: str
    at_once: bool = True


# In order of preference for each device type. Triton takes long to import, so it waits until it is wanted.
_ENTRIES = {
    "cpu": _Entry("gmmkernel.backends.cpu", "cpu"),
    "reference": _Entry("gmmkernel.backends.reference.backend", "cpu"),
    "cuda": _Entry("gmmkernel.backends.cuda", "cuda"),
    "triton": _Entry("gmmkernel.backends.triton", "cuda", at_once=False),
}

_loaded: dict[str, Backend] = {}
_missing: dict[str, str] = {}


def _why_missing(name: str) -> str | None:
    """Import a backend unless that has been tried; return why it cannot be, or None."""
    if name not in _loaded and name not in _missing:
        try:
            _loaded[name] = cast(Backend, import_module(_ENTRIES[name].module))
        except ImportError as error:
            _missing[name] = str(error)
    return _missing.get(name)


for _name, _entry in _ENTRIES.items():
    if _entry.at_once:
        _why_missing(_name)

# The backend chosen, by what `resolve` was given, and why a backend cannot compute on a CUDA device or that it can.
_preferred: dict[torch.device | str, str] = {}
_refusals: dict[tuple[str, torch.device], str | None] = {}

_requested: str | None = None


def available_backends() -> list[BackendStatus]:
    """Return every backend, in order of preference, with what it runs on or why it is not there.

    It looks for devices, which starts their drivers: not something to do before a fork.
    """
    return [_status(name) for name in _ENTRIES]


def _status(name: str) -> BackendStatus:
    device_type = _ENTRIES[name].device_type
    missing = _why_missing(name) or _loaded[name].why_unusable()
    if missing is not None:
        return BackendStatus(name, device_type, (), missing)
    if device_type == "cpu":
        return BackendStatus(name, device_type, (torch.device("cpu"),), _loaded[name].describe())
    usable, details = [], [_loaded[name].describe()]
    for index in range(torch.cuda.device_count()):
        device = torch.device(device_type, index)
        reason = _loaded[name].why_unusable(index)
        if reason is None:
            usable.append(device)
        details.append(
            f"{device} {describe_device(index)}" + ("" if reason is None else f" cannot: {reason}")
        )
    return BackendStatus(name, device_type, tuple(usable), "; ".join(details))


def load(name: str) -> Backend:
    """Return the module of a backend; one that an exported program names may not have been imported yet.

    Raises:
        RuntimeError: it cannot be imported here; the message says why.
    """
    if name not in _loaded and (missing := _why_missing(name)):
        raise RuntimeError(f"backend: {name!r} is not available here: {missing}")
    return _loaded[name]


def resolve(device: torch.device | str, backend: str | None = None) -> str:
    """Return the name of the backend to use.

    Args:
        device: the device the tensors are on; "cuda" without an index is the current one, as in PyTorch.
        backend: the caller's explicit choice, or None: the one set by `use`, or the first available.

    Returns:
        Name of an available backend that computes on that device.

    Raises:
        ValueError: the name is unknown, or no backend computes on that type of device.
        RuntimeError: the backend asked for is not available here, or none is; the message says why.
    """
    if backend is None and _requested is None:
        return _prefer(device)
    device_type = device if isinstance(device, str) else device.type
    wanted = backend
    if backend is None and _requested is not None and _ENTRIES[_requested].device_type == device_type:
        wanted = _requested
    if wanted is None:
        return _prefer(device)
    if wanted not in _ENTRIES:
        raise ValueError(f"backend: expected one of {list(_ENTRIES)}, got {wanted!r}")
    if wanted not in _loaded and (missing := _why_missing(wanted)):
        raise RuntimeError(f"backend: {wanted!r} is not available here: {missing}")
    if _ENTRIES[wanted].device_type != device_type:
        allowed = _ENTRIES[wanted].device_type
        raise ValueError(f"backend: {wanted!r} computes on {allowed!r} tensors, got {device_type!r}")
    if device_type != "cpu" and (refusal := _why_refused(wanted, device)):
        raise RuntimeError(f"backend: {wanted!r} is not available for tensors on this device: {refusal}")
    return wanted


def _numbered(device: torch.device | str) -> torch.device:
    """Return a device with its index; a type of device stands for the current one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _why_refused(name: str, device: torch.device | str) -> str | None:
    """Return why a backend that is here cannot compute on tensors of a CUDA device, or None."""
    if not torch.cuda.is_available():
        return None  # fake tensors, of a program that is traced on another machine
    key = name, _numbered(device)
    if key not in _refusals:
        _refusals[key] = _loaded[name].why_unusable(key[1].index)
    return _refusals[key]


def _prefer(device: torch.device | str) -> str:
    """Return the first backend that is usable on a device, and remember it."""
    name = _preferred.get(device)
    if name is not None:
        return name
    numbered = _numbered(device)
    if numbered not in _preferred:
        _preferred[numbered] = _choose(numbered)
    if numbered.index == torch.device(device).index:  # otherwise the current device, which can change
        _preferred[device] = _preferred[numbered]
    return _preferred[numbered]


def _choose(device: torch.device) -> str:
    """Return the first backend that is usable on a device; warn where that is the specification."""
    reasons: dict[str, str] = {}
    for name, entry in _ENTRIES.items():
        if entry.device_type != device.type:
            continue
        reason = _why_missing(name) or _loaded[name].why_unusable(device.index)
        if reason is None:
            if name == "reference":
                warnings.warn(
                    "the NumPy reference computes on CPU tensors, a hundred times slower and more than the compiled "
                    f"core, which cannot be used: {reasons['cpu']}. Where the reference is meant, "
                    "backend='reference' or gmmkernel.backends.use('reference') says so",
                    SlowBackendWarning,
                    stacklevel=2,
                )
            return name
        reasons[name] = reason
    if reasons:
        raise RuntimeError(f"device: no backend is available for {str(device)!r} tensors: {reasons}")
    known = sorted({entry.device_type for entry in _ENTRIES.values()})
    raise ValueError(f"device: no backend computes on {device.type!r} tensors; devices supported: {known}")


# Not to be traced, only called, by torch.compile: what torch.compiler.assume_constant_result does, which would take
# seconds to import the compiler first.
_prefer._dynamo_marked_constant = True  # type: ignore[attr-defined]
_why_refused._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Use a backend for every op in a block that does not name one itself, on tensors of the backend's device type.

    Process-wide, like torch's defaults.

    Args:
        name: a backend's name.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not available here; the message says why.
    """
    global _requested
    if name not in _ENTRIES:
        raise ValueError(f"name: expected one of {list(_ENTRIES)}, got {name!r}")
    status = _status(name)
    if not status.available:
        raise RuntimeError(f"backend: {name!r} is not available here: {status.detail}")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before
