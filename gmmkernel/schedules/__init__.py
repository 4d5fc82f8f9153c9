"""Noise schedules, the timesteps a sampler visits, the coefficient rows of its steps, and of training."""

from __future__ import annotations

from gmmkernel.schedules.ddim import ddim_coefficients
from gmmkernel.schedules.noise import NoiseSchedule, noise_schedule
from gmmkernel.schedules.spacing import SPACINGS, timesteps
from gmmkernel.schedules.training import TARGETS, training_coefficients

__all__ = [
    "SPACINGS",
    "TARGETS",
    "NoiseSchedule",
    "ddim_coefficients",
    "noise_schedule",
    "timesteps",
    "training_coefficients",
]
