"""Sampling loops: which coefficient row, which mixture and which seed, at which step."""

from gmmkernel.samplers.ddim import DDIMSampler, Model
from gmmkernel.samplers.result import SampleResult, StepState
from gmmkernel.samplers.seeds import seeds_from_generator
from gmmkernel.samplers.thresholding import dynamic_thresholding

__all__ = [
    "DDIMSampler",
    "Model",
    "SampleResult",
    "StepState",
    "dynamic_thresholding",
    "seeds_from_generator",
]
