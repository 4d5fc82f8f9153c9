"""What a task of the study is: data, a model of its noise, and distances from the data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from studies.quality.settings import main_distance


class Task(ABC):
    """Data to sample.

    Attributes:
        name: in files and on the command line.
        shape: of one sample.
        chunk: samples carried together: a network's bits depend on it.
        thorough: the model costs little, so that more is tried.
        device: where samples are drawn; data and distances are on the CPU.
    """

    name: str
    shape: tuple[int, ...]
    chunk: int
    thorough: bool
    device = torch.device("cpu")

    @property
    def elements(self) -> int:
        """D."""
        return math.prod(self.shape)

    @abstractmethod
    def predict(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise in `sample` [B, *shape] at `timestep` [B]."""

    @abstractmethod
    def held_out(self, count: int, seed: int) -> Tensor:
        """Return data [count, *shape] that the model was not fitted to, in the order that `predict` expects."""

    @abstractmethod
    def data(self, count: int, seed: int) -> Tensor:
        """Return data [count, *shape] drawn from what samples are compared with."""

    @abstractmethod
    def distances(self, samples: Tensor) -> dict[str, float]:
        """Return the distances of samples [N, *shape] from the data, by name; lower is better."""

    def distance(self, samples: Tensor) -> float:
        """Return the distance by which scales are chosen alone."""
        return self.distances(samples)[main_distance(self.name)]
