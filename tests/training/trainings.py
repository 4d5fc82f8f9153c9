"""A small training, whole or killed on the way, in any process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from gmmkernel import Trainer, noise_schedule

STEPS, EVERY, LOG_EVERY = 23, 5, 2
KILLED_AT = 13  # done are 13 steps then; logged 12, in the checkpoint 10


class Network(nn.Module):
    """Two convolutions with dropout and an embedding of time and class; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)
        self.conv_out = nn.Conv2d(6, 1, 3, padding=1)
        self.embedding = nn.Embedding(4, 6)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        self.calls.append((sample.detach().clone(), timestep, label))
        hidden = self.norm(self.conv_in(sample))
        hidden = hidden + self.embedding(label)[:, :, None, None] + timestep.view(-1, 1, 1, 1) / 1000
        made: Tensor = self.conv_out(self.dropout(F.silu(hidden)))
        return made


class Plain(Network):
    """Without what differs between ranks: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()
        self.dropout = nn.Identity()


def new_network(kind: type[Network] = Network) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind()


def new_data(count: int = 19) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(count, 1, 6, 5, generator=generator)
    return images, torch.arange(count) % 3


class Items(Dataset[Any]):
    """The same data item by item; ends its process, as it is, when asked for one too many."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.images, self.labels = new_data()
        self.left = kill_after

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index], self.labels[index]


OPTIONS: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 0.01,
    "cosine_steps": STEPS,
    "weight_decay": 0.01,
    "ema_decay": 0.9,
    "conditioning_dropout": 0.4,
    "null_conditioning": [3],
    "seed": 11,
}


def new_trainer(network: nn.Module | None = None, **changes: Any) -> Trainer:
    return Trainer(network or new_network(), noise_schedule(), **(OPTIONS | changes))


def fit(
    trainer: Trainer, folder: Path | None, *, data: Any = None, steps: int = STEPS, **changes: Any
) -> None:
    options = {"checkpoint_every": EVERY, "log_every": LOG_EVERY, "progress": False} | changes
    trainer.fit(new_data() if data is None else data, steps, folder=folder, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(new_trainer(), Path(sys.argv[1]), data=Items(KILLED_AT * OPTIONS["batch_size"] + 3))
