"""Checks of plain arguments; each error names the argument, what came and what is allowed.

NumPy's scalars and 0-d arrays are taken where Python's numbers are, and come back as these.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

_OTHER_NAMES = {
    "cosine": ("squaredcos_cap_v2",),
    "dance": ("dance-sde",),
    "dpm++": ("dpm-solver",),
    "dpm++2m": ("dpm-solver",),
    "dpmpp2m": ("dpm-solver",),
    "dpmsolver++": ("dpm-solver",),
    "eps": ("epsilon",),
    "euler": ("flow", "ddim"),
    "noise": ("epsilon",),
    "quad": ("quadratic",),
    "sde": ("flow-sde", "sde-dpmsolver++", "sde-dpm-solver"),
    "uniform": ("leading",),
    "v": ("v_prediction",),
    "velocity": ("v_prediction",),
    "x0": ("sample",),
}
"""What the field or other libraries call something that has a name here, without case and separators."""


def plain(value: Any) -> Any:
    """Return a NumPy scalar or 0-d array as the Python number it is, and everything else as it came."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int if it is an integer (not a bool) in [low, high].

    Raises:
        TypeError: it is not an int.
        ValueError: it is out of range.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: expected {allowed}, got {number}")
    return number


def check_number(name: str, value: object, *, low: float = -math.inf, above: float = -math.inf) -> float:
    """Return `value` as a float if it is a finite real number (not a bool), >= `low` and > `above`.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or too small.
    """
    allowed = "a finite number"
    if low > -math.inf:
        allowed += f" >= {low:g}"
    if above > -math.inf:
        allowed += f" > {above:g}"
    number = plain(value)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if not math.isfinite(number) or number < low or number <= above:
        raise ValueError(f"{name}: expected {allowed}, got {number!r}")
    return float(number)


def check_share(name: str, value: object) -> float:
    """Return a number from 0 to 1 as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.
    """
    allowed = "a number from 0 to 1"
    share = plain(value)
    if not isinstance(share, int | float) or isinstance(share, bool):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: expected {allowed}, got {share:g}")
    return float(share)


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Accept `value` if it is one of the strings allowed.

    Raises:
        ValueError: it is not; the message suggests what it may have meant.
    """
    choices = tuple(allowed)
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}{suggestion(value, choices)}")


def suggestion(value: object, choices: Sequence[str]) -> str:
    """Return the end of a message about a name that is no choice: "; did you mean 'x'?"; "" without a guess.

    A guess is the same name in other letters, what others call it, or one spelt much like it, in this order.
    """
    if not isinstance(value, str):
        return ""
    bare = {choice: _bare(choice) for choice in choices}
    guesses = [choice for choice in choices if bare[choice] == _bare(value)]
    if not guesses:
        guesses = [choice for choice in _OTHER_NAMES.get(_bare(value), ()) if choice in choices]
    if not guesses:
        near = difflib.get_close_matches(_bare(value), bare.values(), n=1, cutoff=0.7)
        guesses = [choice for choice in choices if bare[choice] in near][:1]
    return f"; did you mean {' or '.join(map(repr, guesses))}?" if guesses else ""


def _bare(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is a bool.

    Raises:
        TypeError: it is not.
    """
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return flag


def check_callable(name: str, value: Callable[..., object]) -> None:
    """Accept `value` if it can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{name}: expected something that can be called, got {value!r}")


def check_device(name: str, device: torch.device | str) -> torch.device:
    """Return `device` as a torch.device if this machine has it.

    Raises:
        ValueError: it is no device, or not there.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # All that PyTorch raises: for no device's name, for another type, for a build without it, for a missing one.
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        expected = ", ".join(map(repr, there))
        raise ValueError(f"{name}: expected a device of this machine ({expected}), got {device!r}") from error
    return found


def type_name(value: object) -> str:
    """Return the name of a value's type, with its module: others have a Generator or a Module, too."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__name__}".removeprefix("builtins.")


def check_numbers(name: str, values: object, count: int, of: str = "") -> Tensor:
    """Return `values`, a sequence, array or tensor of real numbers, as float64 [count] on the CPU.

    Args:
        name: the argument's.
        values: what came.
        count: how many there are to be.
        of: what says so, for the message.

    Raises:
        TypeError: it holds something else than real numbers, or requires a gradient.
        ValueError: there are more or less than `count`, or more dimensions than one.
    """
    try:
        tensor = values.cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected {count} real numbers, got {values!r}") from error
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected {count} real numbers, got {tensor.dtype}")
    if tensor.requires_grad:
        raise TypeError(f"{name}: expected numbers without gradient, got a tensor that requires one")
    if list(tensor.shape) != [count]:
        raise ValueError(f"{name}: expected shape [{count}]{of and ' of ' + of}, got {list(tensor.shape)}")
    return tensor.double()
