"""From a pipeline's generators to the seeds of its samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmmkernel.ops.checks import check_seeds
from gmmkernel.samplers import seeds_from_generator

Generators = torch.Generator | Sequence[torch.Generator] | None


class RunSeeds:
    """One seed for each sample, drawn once a run, at its first step that has anything to draw.

    - one generator: `seeds_from_generator(generator, B)`;
    - a list: one seed from each sample's own generator, so that a sample does not depend on its batch;
    - None: as one generator, PyTorch's default for the CPU.

    The seeds stay the same until the next run; the noise of a step is that of (seed, index of the step in the whole
    schedule). Another batch size or other generators in the same run draw seeds of their own.
    """

    def __init__(self) -> None:
        self._given: Tensor | None = None
        self._kept: dict[object, Tensor] = {}

    def copy(self) -> RunSeeds:
        """Return a copy that goes on with the same seeds, of the same generators."""
        made = RunSeeds()
        made._given, made._kept = self._given, dict(self._kept)
        return made

    def begin(self) -> None:
        """Begin a run: forget what was drawn."""
        self._kept.clear()

    def use(self, seeds: Tensor | None) -> None:
        """Use these seeds in every run from now on, whatever the generators; None: draw again.

        Args:
            seeds: int64 [B], on any device.

        Raises:
            TypeError: they are not an int64 tensor.
            ValueError: they are not 1-D.
        """
        self._given = None if seeds is None else check_seeds(seeds)
        self._kept.clear()

    def nothing(self, batch: int, device: torch.device) -> Tensor:
        """Return what a step takes that draws nothing: int64 [batch] on `device`."""
        key = (batch, device)
        if key not in self._kept:
            self._kept[key] = torch.zeros(batch, dtype=torch.int64, device=device)
        return self._kept[key]

    def of(self, generator: Generators, batch: int, device: torch.device) -> Tensor:
        """Return the run's seeds, int64 [batch] on `device`.

        Raises:
            TypeError: `generator` is something else.
            ValueError: a generator is not on the CPU, the list has not one for each sample, or the seeds given to
                `use` are for another number of samples.
        """
        many = isinstance(generator, (list, tuple))
        key = (batch, device, tuple(generator) if many else generator)  # type: ignore[arg-type]
        seeds = self._kept.get(key)
        if seeds is None:
            seeds = self._given if self._given is not None else _draw(generator, batch)
            if seeds.shape[0] != batch:
                raise ValueError(f"seeds: expected one for each of {batch} samples, got {seeds.shape[0]}")
            self._kept[key] = seeds = seeds.to(device, non_blocking=True)
        return seeds


def _draw(generator: Generators, batch: int) -> Tensor:
    if generator is None:
        generator = torch.default_generator
    if not isinstance(generator, (list, tuple)):
        return seeds_from_generator(generator, batch)  # type: ignore[arg-type]
    if len(generator) != batch:
        raise ValueError(
            f"generator: expected one for each of {batch} samples, got a list of {len(generator)}"
        )
    for index, one in enumerate(generator):
        if isinstance(one, torch.Generator) and one.device.type != "cpu":
            raise ValueError(f"generator[{index}]: expected one on the CPU, got one on {one.device}")
    return torch.cat([seeds_from_generator(one, 1) for one in generator])
