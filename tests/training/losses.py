"""Random training batches, and what the ops make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from helpers import DTYPE_PAIRS, plant_special_values
from torch import Tensor

from gmmkernel import TrainingColumn, add_noise, skip_step_loss


@dataclass(frozen=True)
class TrainingCase:
    """The arguments of one call of `add_noise`, and of `skip_step_loss` on a model's output."""

    data: Tensor
    model_output: Tensor
    sample: Tensor | None
    coefficients: Tensor
    row: int | Tensor
    step: int | Tensor
    seeds: Tensor
    grad: Tensor

    def noised(self, **options: Any) -> Tensor:
        """Call `add_noise`."""
        of_sample = {"row": self.row, "step": self.step, "seeds": self.seeds}
        made: Tensor = add_noise(self.data, self.coefficients, **(of_sample | options))
        return made

    def loss(self, **options: Any) -> Tensor:
        """Call `skip_step_loss`; `options` are further arguments of it, or replace some of these."""
        names = ("model_output", "sample", "row", "step", "seeds")
        arguments = {name: getattr(self, name) for name in names} | options
        return skip_step_loss(arguments.pop("model_output"), self.coefficients, **arguments)

    def results(self, **options: Any) -> dict[str, Tensor]:
        """Return everything: x_t with its noise, losses, and gradients with and without that of the sample."""
        noised, noise = add_noise(
            self.data,
            self.coefficients,
            row=self.row,
            step=self.step,
            seeds=self.seeds,
            return_noise=True,
            **options,
        )
        made = {"noised": noised, "noise": noise, "loss": self.loss(**options)}
        names = ["model_output"] if self.sample is None else ["model_output", "sample"]
        leaves = [getattr(self, name).detach().clone().requires_grad_() for name in names]
        losses = self.loss(**dict(zip(names, leaves, strict=True)), **options)
        gradients = torch.autograd.grad(losses, leaves, self.grad)
        made |= {f"grad_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
        (alone,) = torch.autograd.grad(self.loss(model_output=leaves[0], **options), leaves[0], self.grad)
        return made | {"loss_with_gradient": losses.detach(), "grad_alone": alone}

    def map_samples(self, change: Any) -> TrainingCase:
        """Apply a function to every tensor that is shaped like the sample."""
        sample = None if self.sample is None else change(self.sample)
        changed = {"data": change(self.data), "model_output": change(self.model_output), "sample": sample}
        return replace(self, **changed)

    def take(self, index: Any) -> TrainingCase:
        """Return the case of some of the samples."""

        def of_batch(value: Any) -> Any:
            return value[index] if isinstance(value, Tensor) and value.numel() == len(self.seeds) else value

        own = {name: of_batch(getattr(self, name)) for name in ("row", "step", "seeds", "grad")}
        return replace(self.map_samples(lambda tensor: tensor[index]), **own)


def random_rows(rng: np.random.Generator, rows: int, dtype: torch.dtype, *, reads_sample: bool) -> Tensor:
    """Return training rows with every term on and off."""
    table = rng.standard_normal((rows, len(TrainingColumn)))
    table[:, [TrainingColumn.WEIGHT, TrainingColumn.SKIP_WEIGHT]] **= 2
    for column in (TrainingColumn.EPS_SAMPLE, TrainingColumn.SKIP_WEIGHT, TrainingColumn.SKIP_FRESH):
        table[rng.random(rows) < 0.3, column] = 0
    if not reads_sample:
        table[:, TrainingColumn.EPS_SAMPLE] = 0
    return torch.from_numpy(table).to(dtype)


def random_case(
    seed: int,
    *,
    batch: int = 3,
    shape: Sequence[int] = (63,),
    dtype: torch.dtype = torch.float32,
    sample_dtype: torch.dtype | None = None,
    rows: int = 5,
    with_sample: bool = True,
    per_sample: bool | None = None,
    special: bool = False,
) -> TrainingCase:
    """Return a batch with random values; the same seed and options give the same one.

    Args:
        seed: of everything.
        batch: number of samples.
        shape: shape of one sample.
        dtype: of the data and the model's output.
        sample_dtype: of the training sample; None: one of those allowed.
        rows: number of training rows.
        with_sample: whether rows may read the training sample, which is given then.
        per_sample: whether each sample has its own row and step; None: either.
        special: plant infinities, NaN, subnormals and the like in samples and rows.
    """
    rng = np.random.default_rng(seed)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    beside = [other for own, other in DTYPE_PAIRS if own == dtype]

    def like_sample(chosen: torch.dtype) -> Tensor:
        values = torch.from_numpy(rng.standard_normal((batch, *shape))).to(chosen)
        return plant_special_values(rng, values) if special else values

    coefficients = random_rows(rng, rows, arithmetic, reads_sample=with_sample)
    if special:
        planted = plant_special_values(rng, coefficients, 0.1)
        if not with_sample:
            planted[:, TrainingColumn.EPS_SAMPLE] = 0
        coefficients = planted
    if per_sample is None:
        per_sample = bool(rng.integers(2))
    return TrainingCase(
        data=like_sample(dtype),
        model_output=like_sample(dtype),
        sample=like_sample(sample_dtype or beside[rng.integers(len(beside))]) if with_sample else None,
        coefficients=coefficients,
        row=torch.from_numpy(rng.integers(rows, size=batch)) if per_sample else int(rng.integers(rows)),
        step=torch.from_numpy(rng.integers(2**32, size=batch)) if per_sample else int(rng.integers(2**32)),
        seeds=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size=batch)),
        grad=torch.from_numpy(rng.standard_normal(batch)).to(arithmetic),
    )
