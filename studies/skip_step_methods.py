"""What the study of the skip-step loss compares: losses to train with, and what stands for them without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    NoiseSchedule,
    PNDMSampler,
    TrainingColumn,
    training_coefficients,
)
from gmmkernel.digits import NUM_CLASSES, DigitsUNet
from gmmkernel.samplers import Model, Sampler

BASELINE = "DDPM"
TAU = 0.99


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        name: what it is called.
        target: of the loss; None: DDPM's loss alone.
        skip: of the loss.
        trained: with that loss; otherwise the baseline's output is scaled to that loss's optimum.
    """

    name: str
    target: str | None
    skip: int
    trained: bool

    @property
    def tau(self) -> float:
        """Weight of DDPM's loss."""
        return 1.0 if self.target is None else TAU

    @property
    def folder(self) -> str:
        """The name of the folder of a trained model, without the seed."""
        return "baseline" if self.target is None else f"{self.target}-{self.skip}"


LOSSES = (("independent", 1), ("independent", 9), ("independent", 49), ("same", 9))
METHODS = (
    Method(BASELINE, None, 9, True),
    *(Method(f"{target}, skip {skip}", target, skip, True) for target, skip in LOSSES),
    *(Method(f"{target}, skip {skip}, by scaling", target, skip, False) for target, skip in LOSSES),
)

SAMPLERS = ("DDIM", "PNDM", "DEIS")


def make_sampler(name: str, schedule: NoiseSchedule, steps: int) -> Sampler:
    """Return a sampler without noise after the start: DDIM, PNDM (PLMS) or DEIS of order 3."""
    if name == "DDIM":
        return DDIMSampler(schedule, steps)
    if name == "PNDM":
        return PNDMSampler(schedule, steps, skip_prk_steps=True)
    return DEISSampler(schedule, steps)


def optimal_scale(schedule: NoiseSchedule, method: Method) -> Tensor:
    """Return what the minimiser of a method's loss is, at each timestep, as a multiple of that of DDPM's loss.

    The minimiser of w E(e1 - o)^2 + v E(n e1 + f e2 - c o)^2 is o = (w + v c n)/(w + v c^2) E[e1 | x_t].

    Returns:
        float32 [T].
    """
    if method.target is None:
        return torch.ones(schedule.num_train_timesteps)
    rows = training_coefficients(
        schedule, skip=method.skip, tau=method.tau, target=method.target, dtype=torch.float64
    )
    weight, skip_weight, scale, noise = (
        rows[:, column]
        for column in (
            TrainingColumn.WEIGHT,
            TrainingColumn.SKIP_WEIGHT,
            TrainingColumn.SKIP_SCALE,
            TrainingColumn.SKIP_NOISE,
        )
    )
    return ((weight + skip_weight * scale * noise) / (weight + skip_weight * scale.square())).float()


def scaled(unet: DigitsUNet, scale: Tensor) -> Model:
    """Return the model that asks for 0, 1, ..., 9, 0, 1, ... and scales the noise that the network predicts."""

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        labels = torch.arange(sample.shape[0]) % NUM_CLASSES
        noise: Tensor = unet(sample, timestep, labels) * scale[timestep][:, None, None, None]
        return noise

    return predict
