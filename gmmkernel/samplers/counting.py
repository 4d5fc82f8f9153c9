"""Count a model's calls, for a progress bar over more than one run of a sampler."""

from __future__ import annotations

from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel.samplers.base import Model


def counted(model: Model, bar: tqdm[None], share: float = 1) -> Model:
    """Return the model with a bar that each of its calls moves on by `share`."""

    def call(*arguments: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        made = model(*arguments)
        bar.update(share)
        return made

    return call
