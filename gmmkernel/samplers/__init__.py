"""Sampling loops: which coefficient row, which mixture and which seed, at which step."""

from gmmkernel.samplers.ddim import DDIMSampler, Model
from gmmkernel.samplers.requests import StackedSamplers, stack_samplers
from gmmkernel.samplers.result import SampleResult, StepState
from gmmkernel.samplers.seeds import seeds_from_generator

__all__ = [
    "DDIMSampler",
    "Model",
    "SampleResult",
    "StackedSamplers",
    "StepState",
    "seeds_from_generator",
    "stack_samplers",
]
