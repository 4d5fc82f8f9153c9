"""Triton kernels on CUDA tensors: the bits of every other backend, and no compiler needed to install.

The modules mirror csrc/include/gmmkernel function by function. A kernel is compiled by Triton when it is first
called with a combination of types and options; sizes, seeds, steps and addresses never compile it again.
"""

from __future__ import annotations

try:
    import triton as _triton  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('Triton is not installed: pip install "gmmkernel[triton]"') from error
from gmmkernel.backends.triton.availability import describe, why_unusable
from gmmkernel.backends.triton.launch import (
    add_noise,
    draw_components,
    gmm_step,
    gmm_step_backward,
    project,
    scale_residual,
    skip_step_loss,
    skip_step_loss_backward,
    standard_normal,
)
from gmmkernel.backends.triton.launch_density import (
    log_prob,
    log_prob_backward,
    log_ratio,
    log_ratio_backward,
)

__all__ = [
    "add_noise",
    "describe",
    "draw_components",
    "gmm_step",
    "gmm_step_backward",
    "log_prob",
    "log_prob_backward",
    "log_ratio",
    "log_ratio_backward",
    "project",
    "scale_residual",
    "skip_step_loss",
    "skip_step_loss_backward",
    "standard_normal",
    "why_unusable",
]
