"""Checks of plain Python arguments; each error names the argument, what came and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an int (not a bool) in [low, high].

    Raises:
        TypeError: it is not an int.
        ValueError: it is out of range.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected {allowed}, got {value}")
    return value


def check_number(name: str, value: object, *, low: float = -math.inf, above: float = -math.inf) -> float:
    """Return `value` as a float if it is a finite int or float (not a bool), >= `low` and > `above`.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or too small.
    """
    allowed = "a finite number"
    if low > -math.inf:
        allowed += f" >= {low:g}"
    if above > -math.inf:
        allowed += f" > {above:g}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {allowed}, got {value!r}")
    if not math.isfinite(value) or value < low or value <= above:
        raise ValueError(f"{name}: expected {allowed}, got {value!r}")
    return float(value)


def check_share(name: str, value: object) -> float:
    """Return a number from 0 to 1 as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.
    """
    share = check_number(name, value, low=0)
    if share > 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {share:g}")
    return share


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Accept `value` if it is one of the strings allowed.

    Raises:
        ValueError: it is not.
    """
    choices = tuple(allowed)
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Accept `value` if it is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_numbers(name: str, values: object, count: int) -> Tensor:
    """Return `values`, a sequence, array or tensor of real numbers, as float64 [count] on the CPU.

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
        raise ValueError(f"{name}: expected shape [{count}], got {list(tensor.shape)}")
    return tensor.double()
