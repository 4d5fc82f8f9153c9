"""Backends and the choice between them.

`cpu` is the compiled C++ core and `reference` the NumPy specification, both for CPU tensors; `cuda` are the compiled
kernels for CUDA tensors. All give the same bits.
A backend is chosen by the tensors' device, the first available one in the order of `available_backends`; ask for
another with the `backend` argument of an op, or with `use`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, cast

from gmmkernel.backends.protocol import Backend

__all__ = ["BackendStatus", "available_backends", "load", "resolve", "use"]


class BackendStatus(NamedTuple):
    """One backend of the package.

    Attributes:
        name: what the `backend` argument of an op takes.
        device_type: the type of the tensors it computes on.
        available: whether it can be used here.
        detail: what it runs on, or why it cannot be used.
    """

    name: str
    device_type: str
    available: bool
    detail: str


class _Entry(NamedTuple):
    module: str
    device_type: str


# In order of preference for each device type.
_ENTRIES = {
    "cpu": _Entry("gmmkernel.backends.cpu", "cpu"),
    "reference": _Entry("gmmkernel.backends.reference.backend", "cpu"),
    "cuda": _Entry("gmmkernel.backends.cuda", "cuda"),
}

_loaded: dict[str, Backend] = {}
_missing: dict[str, str] = {}
for _name, _entry in _ENTRIES.items():
    try:
        _loaded[_name] = cast(Backend, import_module(_entry.module))
    except ImportError as error:
        _missing[_name] = str(error)

_preferred: dict[str, str] = {}
for _name in _loaded:
    _preferred.setdefault(_ENTRIES[_name].device_type, _name)

_requested: str | None = None


def available_backends() -> list[BackendStatus]:
    """Return every backend, in order of preference, with what it runs on or why it is not there.

    It looks for devices, which starts their drivers: not something to do before a fork.
    """
    statuses = []
    for name, entry in _ENTRIES.items():
        missing = _missing.get(name) or _loaded[name].why_unusable()
        statuses.append(
            BackendStatus(name, entry.device_type, missing is None, missing or _loaded[name].describe())
        )
    return statuses


def load(name: str) -> Backend:
    """Return the module of an available backend."""
    return _loaded[name]


def resolve(device_type: str, backend: str | None = None) -> str:
    """Return the name of the backend to use.

    Args:
        device_type: type of the device the tensors are on.
        backend: the caller's explicit choice, or None: the one set by `use`, or the first available.

    Returns:
        Name of an available backend that computes on that device.

    Raises:
        ValueError: the name is unknown, or no backend computes on that device.
        RuntimeError: the backend asked for is not available here; the message says why.
    """
    wanted = backend
    if backend is None and _requested is not None and _ENTRIES[_requested].device_type == device_type:
        wanted = _requested
    if wanted is None and device_type in _preferred:
        return _preferred[device_type]
    if wanted is None:
        known = sorted({entry.device_type for entry in _ENTRIES.values()})
        raise ValueError(
            f"device: no backend computes on {device_type!r} tensors; devices supported: {known}"
        )
    if wanted not in _ENTRIES:
        raise ValueError(f"backend: expected one of {list(_ENTRIES)}, got {wanted!r}")
    if wanted not in _loaded:
        raise RuntimeError(f"backend: {wanted!r} is not available here: {_missing[wanted]}")
    if _ENTRIES[wanted].device_type != device_type:
        allowed = _ENTRIES[wanted].device_type
        raise ValueError(f"backend: {wanted!r} computes on {allowed!r} tensors, got {device_type!r}")
    return wanted


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
    resolve(_ENTRIES[name].device_type, name)
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before
