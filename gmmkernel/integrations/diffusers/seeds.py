"""From a pipeline's generators to the seeds of its samples."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gmmkernel.ops.checks import check_seeds
from gmmkernel.samplers import seeds_from_generator

Generators = torch.Generator | Sequence[torch.Generator] | None

_KEPT = 64
"""Runs in flight whose seeds are kept; those of one more are drawn again at its next step."""


@dataclass
class _Drawn:
    """Seeds of a run, and how far it has come.

    Attributes:
        owners: the generators they are from. An id alone may belong to another one by now.
        initial: the seeds that these were given, which change where one is seeded anew.
        seeds: int64 [B] by device.
        run: the schedule of the last step.
        epoch: how many times a run had been begun then.
        done: the row of each sample in the last step, or one for all.
    """

    owners: tuple[weakref.ref[torch.Generator], ...]
    initial: tuple[int, ...]
    seeds: dict[torch.device, Tensor]
    run: object
    epoch: int
    done: tuple[int, ...]

    def serves(
        self, generators: tuple[torch.Generator, ...], run: object, epoch: int, rows: tuple[int, ...]
    ) -> bool:
        """Return whether these rows go on with the run."""
        for owner, one, initial in zip(self.owners, generators, self.initial, strict=True):
            if owner() is not one or one.initial_seed() != initial:
                return False
        if len(rows) != len(self.done):
            return False
        # set_timesteps was called since: by another request, if this one goes on where it was.
        following = epoch != self.epoch
        if following and run is not self.run:
            return False
        for row, last in zip(rows, self.done, strict=True):
            if row <= last or (following and row != last + 1):
                return False
        return True


class RunSeeds:
    """One seed for each sample, drawn at the first step of a run that has anything to draw.

    - one generator: `seeds_from_generator(generator, B)`;
    - a list: one seed from each sample's own generator, so that a sample does not depend on its batch;
    - None: as one generator, PyTorch's default for the CPU.

    The noise of a step is that of (seed, row of the step in the whole schedule), and no pair of seeds drawn and row is
    used twice: the seeds go with the generators and the batch, and a row that is not after the last one done with them
    begins a run, which draws anew. Other generators or another batch have runs of their own beside it.
    """

    def __init__(self) -> None:
        self._given: Tensor | None = None
        self._kept: OrderedDict[tuple[int, ...], _Drawn] = OrderedDict()
        self._placed: dict[object, Tensor] = {}
        self._epoch = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what goes with generators of this process: a pickled scheduler begins its runs anew."""
        return {"_given": self._given, "_epoch": self._epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def copy(self) -> RunSeeds:
        """Return a copy that goes on with the same runs, of the same generators."""
        made = RunSeeds()
        with self._lock:
            made.__setstate__(self.__getstate__())
            made._kept.update((key, replace(drawn)) for key, drawn in self._kept.items())
        return made

    def begin(self) -> None:
        """Begin a run; those in flight go on where they are."""
        with self._lock:
            self._epoch += 1

    def use(self, seeds: Tensor | None) -> None:
        """Use these seeds in every run from now on, whatever the generators; None: draw again.

        Args:
            seeds: int64 [B], on any device.

        Raises:
            TypeError: they are not an int64 tensor.
            ValueError: they are not 1-D.
        """
        self._given = None if seeds is None else check_seeds(seeds)
        self._placed = {}
        with self._lock:
            self._kept.clear()

    @property
    def given(self) -> Tensor:
        """The seeds given.

        Raises:
            ValueError: there are none.
        """
        if self._given is None:
            raise ValueError("set_seeds: expected a call with seeds before, got none")
        return self._given

    def nothing(self, batch: int, device: torch.device) -> Tensor:
        """Return what a step takes that draws nothing: int64 [batch] on `device`."""
        placed = self._placed.get((batch, device))
        if placed is None:
            zeros = torch.zeros(batch, dtype=torch.int64, device=device)
            placed = self._place((batch, device), zeros, device)
        return placed

    def of(
        self,
        generator: Generators,
        batch: int,
        device: torch.device,
        run: object,
        rows: tuple[int, ...] | None,
    ) -> Tensor:
        """Return the seeds of a step, int64 [batch] on `device`.

        Args:
            generator: what the pipeline passes.
            batch: B.
            device: where the samples are.
            run: the schedule.
            rows: of each sample in the whole schedule, or one for all; None, where a device has them: seeds of a run
                cannot be told from used ones then, and are drawn at each step.

        Raises:
            TypeError: `generator` is something else.
            ValueError: a generator is not on the CPU, the list has not one for each sample, or the seeds given to
                `use` are for another number of samples.
        """
        if self._given is not None:
            if self._given.shape[0] != batch:
                raise ValueError(
                    f"seeds: expected one for each of {batch} samples, got {self._given.shape[0]}"
                )
            return self._place(device, self._given, device)
        if generator is None:
            generator = torch.default_generator
        if rows is None:
            return _draw(generator, batch).to(device, non_blocking=True)
        many = isinstance(generator, (list, tuple))
        generators = tuple(generator) if many else (generator,)  # type: ignore[arg-type]
        key = (batch, many, *map(id, generators))
        with self._lock:
            drawn = self._kept.get(key)
            if drawn is None or not drawn.serves(generators, run, self._epoch, rows):  # type: ignore[arg-type]
                seeds = _draw(generator, batch)
                owners = tuple(map(weakref.ref, generators))
                initial = tuple(one.initial_seed() for one in generators)  # type: ignore[union-attr]
                drawn = _Drawn(owners, initial, {seeds.device: seeds}, run, self._epoch, rows)  # type: ignore[arg-type]
                self._kept[key] = drawn
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            drawn.run, drawn.epoch, drawn.done = run, self._epoch, rows
            self._kept.move_to_end(key)
            seeds = drawn.seeds.get(device)  # type: ignore[assignment]
            if seeds is None:
                seeds = drawn.seeds[device] = next(iter(drawn.seeds.values())).to(device, non_blocking=True)
            return seeds

    def _place(self, key: object, seeds: Tensor, device: torch.device) -> Tensor:
        """Return seeds on a device; copied once."""
        placed = self._placed.get(key)
        if placed is None:
            if len(self._placed) >= _KEPT:
                self._placed = {}
            self._placed[key] = placed = seeds.to(device, non_blocking=True)
        return placed


def _draw(generator: object, batch: int) -> Tensor:
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
