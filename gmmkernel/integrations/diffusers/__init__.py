"""Schedulers for diffusers' pipelines whose step is one launch of `gmm_step`; imported before a saved one is loaded."""

from __future__ import annotations

try:
    from diffusers import SchedulerMixin
except ImportError as error:
    raise ImportError(
        f'gmmkernel.integrations.diffusers needs diffusers: pip install "gmmkernel[diffusers]" ({error})'
    ) from error

from gmmkernel.integrations.diffusers.ddim import GMMDDIMScheduler
from gmmkernel.integrations.diffusers.flow import FlowTransition, GMMFlowMatchScheduler
from gmmkernel.integrations.diffusers.samplers import sampler_from_config

# model_index.json of a saved pipeline names the module a class says it is from, and diffusers looks there for the
# class and for the base that tells how to load it: this module is the one to keep.
GMMDDIMScheduler.__module__ = GMMFlowMatchScheduler.__module__ = __name__

__all__ = [
    "FlowTransition",
    "GMMDDIMScheduler",
    "GMMFlowMatchScheduler",
    "SchedulerMixin",
    "sampler_from_config",
]
