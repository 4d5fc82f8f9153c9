"""Seeds: each sample's only source of randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel._checks import INT64_MAX, check_integer


def seeds_from_generator(generator: torch.Generator, count: int) -> Tensor:
    """Draw one seed for each sample from a generator, in order.

    Args:
        generator: a CPU generator, so that the same state gives the same seeds for every device.
        count: number of samples, at least 0.

    Returns:
        int64 [count] on the CPU, 0 to 2^63 - 2.

    Raises:
        TypeError: `generator` is not a torch.Generator, or `count` not an int.
        ValueError: the generator is not on the CPU, or `count` is negative.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator: expected one on the CPU, got one on {generator.device}")
    count = check_integer("count", count, 0)
    return torch.randint(0, INT64_MAX, (count,), generator=generator, dtype=torch.int64, device="cpu")
