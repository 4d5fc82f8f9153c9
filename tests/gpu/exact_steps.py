"""Random steps and log-densities whose noise is changed along directions, for the tests on a GPU and tools/gpu_bits.py.

The tables are random numbers, not those of a mixture: whatever they hold, every backend computes the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from differentiable import Density, random_density
from helpers import StepCase, random_case


def with_directions(case: StepCase, seed: int, directions: int) -> StepCase:
    """Return the case of a mixture without std with a random basis and what comes with it, by row or shared."""
    tables, rows = case.mixture, case.coefficients.shape[0]
    assert tables is not None
    components = tables.offsets.shape[1]
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> torch.Tensor:
        entries = (1, rows)[int(torch.randint(2, (), generator=generator))]
        values = torch.randn(entries, *shape, generator=generator, dtype=torch.float64) / components**0.5
        return values.to(tables.offsets.dtype)

    def shared_or_own() -> int:
        return (1, components)[int(torch.randint(2, (), generator=generator))]

    mixture = tables._replace(
        basis=table(directions, components),
        std_delta=table(shared_or_own(), directions),
        slopes=table(shared_or_own(), directions),
        shifts=table(components, directions),
        half_logdet=table(shared_or_own()),
    )
    return replace(case, mixture=mixture)


def exact_step(seed: int, components: int = 8, directions: int | None = None, **options: Any) -> StepCase:
    """Return a step; K - 1 directions, or as many as asked for; `options` are those of `random_case`."""
    case = random_case(seed, components=components, removed=0, **options)
    return with_directions(case, seed, directions or max(1, components - 1))


def exact_density(seed: int, components: int = 8, directions: int | None = None, **options: Any) -> Density:
    """Return the same of a log-density."""
    density = random_density(seed, components=components, removed=0, **options)
    return replace(density, case=with_directions(density.case, seed, directions or max(1, components - 1)))
