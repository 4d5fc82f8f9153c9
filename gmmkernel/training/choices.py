"""The random choices of training, each a function of the seed and the step, so that none has a state to keep.

They are made on the CPU for the whole batch, and a rank takes its share: they are the same for any number of ranks.
NumPy's SeedSequence keeps all of (seed, purpose, step); torch's CPU generator would keep 32 bits of a seed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a choice is for, so that no two share random bits."""

    ORDER = 0
    TIMESTEPS = 1
    NOISE = 2
    CONDITIONING = 3
    MODEL = 4


def generator(seed: int, purpose: Purpose, *step: int) -> np.random.Generator:
    """Return the generator of one choice."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *step)))


def noise_seeds(seed: int, batch_size: int) -> Tensor:
    """Return the seed of each place in the batch, int64 [B]; the noise counter's step is the training step."""
    info = np.iinfo(np.int64)
    drawn = generator(seed, Purpose.NOISE).integers(info.min, info.max, batch_size, endpoint=True)
    return torch.from_numpy(drawn)


def antithetic_timesteps(seed: int, step: int, batch_size: int, num_timesteps: int) -> Tensor:
    """Return the timestep of each sample of a batch, int64 [B]: t for the first half, T - 1 - t for the second."""
    drawn = generator(seed, Purpose.TIMESTEPS, step).integers(num_timesteps, size=-(-batch_size // 2))
    return torch.from_numpy(np.concatenate([drawn, num_timesteps - 1 - drawn])[:batch_size])


def dropped(seed: int, step: int, batch_size: int, probability: float) -> Tensor:
    """Return which samples of a batch lose their conditioning, bool [B]."""
    return torch.from_numpy(generator(seed, Purpose.CONDITIONING, step).random(batch_size) < probability)


def model_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for the model's own random layers: theirs is torch's global generator."""
    return int(generator(seed, Purpose.MODEL, step, rank).integers(2**63))


class DataOrder:
    """Which samples each batch has: every sample once in an epoch, shuffled anew in each.

    Batches follow each other without a gap, so one may end an epoch and begin the next.

    Args:
        count: number of samples N.
        batch_size: of the whole batch.
        seed: of the shuffling.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._epochs: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}

    def batch(self, step: int) -> Tensor:
        """Return the indices of the samples of a batch, int64 [B]."""
        places = step * self._batch_size + np.arange(self._batch_size)
        epochs = places // self._count
        wanted = range(int(epochs[0]), int(epochs[-1]) + 1)
        known = self._epochs
        self._epochs = {e: known[e] if e in known else self._shuffled(e) for e in wanted}
        chosen = [self._epochs[epoch][places[epochs == epoch] % self._count] for epoch in wanted]
        return torch.from_numpy(np.concatenate(chosen))

    def _shuffled(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return generator(self._seed, Purpose.ORDER, epoch).permutation(self._count).astype(np.int64)
