"""Where the kernels can run: what PyTorch finds, and which devices have the instructions."""

from __future__ import annotations

import torch
import triton

from gmmkernel.backends.devices import LEAST_CAPABILITY, capability_of, sm
from gmmkernel.backends.triton.grid import PTX
from gmmkernel.backends.triton.program import launches_as_expected


def why_unusable(device: int | None = None) -> str | None:
    """Return why no tensor, or none on this CUDA device, can be given to this backend here, or None."""
    if not torch.cuda.is_available():
        return "this PyTorch finds no CUDA device"
    if device is None or not PTX or capability_of(device) >= LEAST_CAPABILITY:
        return None
    return f"the kernels' instructions begin with {sm(LEAST_CAPABILITY)}, and this is {sm(capability_of(device))}"


def describe() -> str:
    """Return one line on the compiler."""
    known = launches_as_expected()
    return f"Triton {triton.__version__}" + (
        "" if known else ", not known here: launched its own, slower way"
    )
