"""Noise schedules, the timesteps a sampler visits, and the coefficient rows of its steps."""

from __future__ import annotations

from gmmkernel.schedules.ddim import ddim_coefficients
from gmmkernel.schedules.flow import flow_coefficients, flow_times
from gmmkernel.schedules.noise import NoiseSchedule, noise_schedule
from gmmkernel.schedules.spacing import SPACINGS, timesteps

__all__ = [
    "SPACINGS",
    "NoiseSchedule",
    "ddim_coefficients",
    "flow_coefficients",
    "flow_times",
    "noise_schedule",
    "timesteps",
]
