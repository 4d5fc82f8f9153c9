"""Backends and the choice between them.

`cpu` is the compiled C++ core and `reference` the NumPy specification, both for CPU tensors; `cuda` are the compiled
kernels for CUDA tensors and `triton` those that Triton compiles when they are first used. All give the same bits.
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

_preferred: dict[str, str] = {}  # device type -> the backend chosen, once it has been asked for

_requested: str | None = None


def available_backends() -> list[BackendStatus]:
    """Return every backend, in order of preference, with what it runs on or why it is not there.

    It looks for devices, which starts their drivers: not something to do before a fork.
    """
    statuses = []
    for name, entry in _ENTRIES.items():
        missing = _why_missing(name) or _loaded[name].why_unusable()
        statuses.append(
            BackendStatus(name, entry.device_type, missing is None, missing or _loaded[name].describe())
        )
    return statuses


def load(name: str) -> Backend:
    """Return the module of a backend; one that an exported program names may not have been imported yet.

    Raises:
        RuntimeError: it cannot be imported here; the message says why.
    """
    if name not in _loaded and (missing := _why_missing(name)):
        raise RuntimeError(f"backend: {name!r} is not available here: {missing}")
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
    if wanted is None:
        return _prefer(device_type)
    if wanted not in _ENTRIES:
        raise ValueError(f"backend: expected one of {list(_ENTRIES)}, got {wanted!r}")
    if wanted not in _loaded and (missing := _why_missing(wanted)):
        raise RuntimeError(f"backend: {wanted!r} is not available here: {missing}")
    if _ENTRIES[wanted].device_type != device_type:
        allowed = _ENTRIES[wanted].device_type
        raise ValueError(f"backend: {wanted!r} computes on {allowed!r} tensors, got {device_type!r}")
    return wanted


def _prefer(device_type: str) -> str:
    """Return the first backend that is usable on a device type, and remember it."""
    if device_type in _preferred:
        return _preferred[device_type]
    reasons = {}
    for name, entry in _ENTRIES.items():
        if entry.device_type != device_type:
            continue
        reason = _why_missing(name) or _loaded[name].why_unusable()
        if reason is None:
            _preferred[device_type] = name
            return name
        reasons[name] = reason
    if reasons:
        raise RuntimeError(f"device: no backend is available for {device_type!r} tensors: {reasons}")
    known = sorted({entry.device_type for entry in _ENTRIES.values()})
    raise ValueError(f"device: no backend computes on {device_type!r} tensors; devices supported: {known}")


# Not to be traced, only called, by torch.compile: what torch.compiler.assume_constant_result does, which would take
# seconds to import the compiler first.
_prefer._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    if unusable := _loaded[name].why_unusable():
        raise RuntimeError(f"backend: {name!r} is not available here: {unusable}")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before
