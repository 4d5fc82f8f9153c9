"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def start_average(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the average's weights towards the model's by 1 - decay, by more in the first steps; copy its buffers.

    Args:
        average: what `start_average` returned.
        model: the model, after the optimiser's step number `step`, counted from 0.
        step: that number; the decay is at most (1 + step)/(10 + step), so that random first weights are forgotten.
        decay: in [0, 1).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)
