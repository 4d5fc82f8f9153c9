"""The samplers of noise schedules by their names, for command lines and configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from gmmkernel.samplers.base import Sampler
from gmmkernel.samplers.ddim import DDIMSampler
from gmmkernel.samplers.deis import DEISSampler
from gmmkernel.samplers.dpm_solver import DPMSolverSampler
from gmmkernel.samplers.pndm import PNDMSampler


class Method(NamedTuple):
    """A sampler that goes by a name.

    Attributes:
        title: what pictures and tables call it.
        make: takes schedule, number of steps and the common options.
        has_eta: it takes `eta`.
        has_mixture: its steps draw noise that a mixture can replace.
        clips: it takes the options that bound the predicted data; the others store noise and do not clip.
    """

    title: str
    make: Callable[..., Sampler]
    has_eta: bool = False
    has_mixture: bool = False
    clips: bool = False


METHODS = {
    "ddim": Method("DDIM", DDIMSampler, has_eta=True, has_mixture=True, clips=True),
    "pndm": Method("F-PNDM", PNDMSampler),
    "plms": Method("PLMS", partial(PNDMSampler, skip_prk_steps=True)),
    "deis": Method("DEIS", DEISSampler),
    "dpm-solver": Method("DPM-Solver++(2M)", DPMSolverSampler, clips=True),
    "sde-dpm-solver": Method(
        "SDE-DPM-Solver++(2M)",
        partial(DPMSolverSampler, algorithm_type="sde-dpmsolver++"),
        has_mixture=True,
        clips=True,
    ),
}
"""By the names that `python -m gmmkernel sample --sampler` takes."""
