"""What the rows of multistep solvers share: noise-to-signal ratios, their logarithms, and the order of each step."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import check_flag, check_integer
from gmmkernel._sqrt import square_root
from gmmkernel.backends.reference import elementary

FEW_STEPS = 15
"""Runs of fewer steps than this end with lower orders, as in diffusers."""


def noise_to_signal(a: Tensor) -> Tensor:
    """Return rho = sqrt((1 - a)/a), float64, infinite where a = 0."""
    return square_root(1 - a) / square_root(a)


def natural_log(values: Tensor) -> Tensor:
    """Return ln of float64 values with the bits that every machine has."""
    return torch.from_numpy(elementary.log(values.numpy()))


def orders_of_steps(
    a_s: Tensor, solver_order: int, *, largest: int, first_step: int, lower_order_final: bool
) -> list[int]:
    """Return the order of each step: rising from 1 at `first_step`, and falling again towards the end.

    The last step is of order 1 where it ends at a = 1 (its history says nothing about a step to rho = 0) or, with
    `lower_order_final`, in runs of fewer than 15 steps, where the one before it is of order 2 at most.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `solver_order` or `first_step` is out of range.
    """
    solver_order = check_integer("solver_order", solver_order, 1, largest)
    steps = len(a_s)
    first_step = check_integer("first_step", first_step, 0, steps - 1)
    lower_order_final = check_flag("lower_order_final", lower_order_final)
    orders = [min(solver_order, max(row - first_step, 0) + 1) for row in range(steps)]
    few = lower_order_final and steps < FEW_STEPS
    if few and steps > 1:
        orders[-2] = min(orders[-2], 2)
    if few or float(a_s[-1]) == 1:
        orders[-1] = 1
    return orders
