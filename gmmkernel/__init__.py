"""One diffusion sampling step, with a Gaussian-mixture transition, in one pass: the same bits on every backend."""

from importlib.metadata import version as _version

from gmmkernel.backends.constants import MAX_COMPONENTS, MAX_HISTORY, Column, Stream, TrainingColumn
from gmmkernel.mixtures import Mixture, gaussian_mixture
from gmmkernel.moments import MomentReport, moment_report
from gmmkernel.ops import (
    GMMStepOutput,
    MixtureMoments,
    MixtureTables,
    add_noise,
    draw_components,
    gmm_step,
    gmm_step_log_prob,
    mixture_moments,
    orthonormalize,
    skip_step_loss,
    standard_normal,
)
from gmmkernel.samplers import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Sampler,
    SampleResult,
    SamplerStep,
    StackedSamplers,
    StepState,
    dynamic_thresholding,
    seeds_from_generator,
    stack_samplers,
)
from gmmkernel.schedules import (
    NoiseSchedule,
    ddim_coefficients,
    deis_coefficients,
    dpm_solver_coefficients,
    flow_coefficients,
    flow_times,
    noise_schedule,
    pndm_coefficients,
    sigma_coefficients,
    timesteps,
    training_coefficients,
)
from gmmkernel.sharding import ShardedSamples, ShardReport, load_shards, sample_shards
from gmmkernel.training import Trainer

__version__ = _version("gmmkernel")

__all__ = [
    "MAX_COMPONENTS",
    "MAX_HISTORY",
    "Column",
    "DDIMSampler",
    "DEISSampler",
    "DPMSolverSampler",
    "FlowSampler",
    "GMMStepOutput",
    "Mixture",
    "MixtureMoments",
    "MixtureTables",
    "MomentReport",
    "NoiseSchedule",
    "PNDMSampler",
    "SampleResult",
    "Sampler",
    "SamplerStep",
    "ShardReport",
    "ShardedSamples",
    "StackedSamplers",
    "StepState",
    "Stream",
    "Trainer",
    "TrainingColumn",
    "add_noise",
    "ddim_coefficients",
    "deis_coefficients",
    "dpm_solver_coefficients",
    "draw_components",
    "dynamic_thresholding",
    "flow_coefficients",
    "flow_times",
    "gaussian_mixture",
    "gmm_step",
    "gmm_step_log_prob",
    "load_shards",
    "mixture_moments",
    "moment_report",
    "noise_schedule",
    "orthonormalize",
    "pndm_coefficients",
    "sample_shards",
    "seeds_from_generator",
    "sigma_coefficients",
    "skip_step_loss",
    "stack_samplers",
    "standard_normal",
    "timesteps",
    "training_coefficients",
]
