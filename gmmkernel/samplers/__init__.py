"""Sampling loops: which coefficient row, which mixture and which seed, at which step."""

from gmmkernel.samplers.base import Model, Sampler
from gmmkernel.samplers.ddim import DDIMSampler
from gmmkernel.samplers.deis import DEISSampler
from gmmkernel.samplers.dpm_solver import DPMSolverSampler
from gmmkernel.samplers.flow import FlowSampler
from gmmkernel.samplers.pndm import PNDMSampler
from gmmkernel.samplers.requests import StackedSamplers, stack_samplers
from gmmkernel.samplers.result import KeptSteps, SampleResult, SamplerStep, StepState
from gmmkernel.samplers.seeds import seeds_from_generator, seeds_from_ids
from gmmkernel.samplers.thresholding import dynamic_thresholding

__all__ = [
    "DDIMSampler",
    "DEISSampler",
    "DPMSolverSampler",
    "FlowSampler",
    "KeptSteps",
    "Model",
    "PNDMSampler",
    "SampleResult",
    "Sampler",
    "SamplerStep",
    "StackedSamplers",
    "StepState",
    "dynamic_thresholding",
    "seeds_from_generator",
    "seeds_from_ids",
    "stack_samplers",
]
