"""Noise schedules, the timesteps a sampler visits, the coefficient rows of its steps, and of training."""

from __future__ import annotations

from gmmkernel.schedules.ddim import ddim_coefficients
from gmmkernel.schedules.deis import DEIS_INTERPOLATIONS, deis_coefficients
from gmmkernel.schedules.dpm_solver import DPM_SOLVER_ALGORITHMS, dpm_solver_coefficients
from gmmkernel.schedules.flow import flow_coefficients, flow_times
from gmmkernel.schedules.flow_sde import (
    FLOW_DYNAMICS,
    FlowTransitions,
    flow_sde_coefficients,
    window_rows,
)
from gmmkernel.schedules.noise import NoiseSchedule, noise_schedule
from gmmkernel.schedules.pndm import pndm_coefficients
from gmmkernel.schedules.sigmas import sigma_coefficients
from gmmkernel.schedules.spacing import SPACINGS, timesteps, timesteps_of
from gmmkernel.schedules.training import TARGETS, training_coefficients

__all__ = [
    "DEIS_INTERPOLATIONS",
    "DPM_SOLVER_ALGORITHMS",
    "FLOW_DYNAMICS",
    "SPACINGS",
    "TARGETS",
    "FlowTransitions",
    "NoiseSchedule",
    "ddim_coefficients",
    "deis_coefficients",
    "dpm_solver_coefficients",
    "flow_coefficients",
    "flow_sde_coefficients",
    "flow_times",
    "noise_schedule",
    "pndm_coefficients",
    "sigma_coefficients",
    "timesteps",
    "timesteps_of",
    "training_coefficients",
    "window_rows",
]
