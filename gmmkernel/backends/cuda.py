"""The compiled CUDA kernels, on the tensors' device and the current stream of PyTorch: one launch a step.

Contiguous tensors cost no allocation (sums over elements do: they need room), and nothing is waited for or read back:
a call may be captured in a CUDA graph, after one like it has been made outside, which loads the kernels.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("gmmkernel._cuda") is None:
    raise ImportError(
        "this package was built without CUDA kernels, which takes an nvcc: by CUDA_HOME, on PATH or among pip's nvidia "
        "packages"
    )
from gmmkernel import _cuda
from gmmkernel.backends.compiled import CompiledKernels
from gmmkernel.backends.devices import capability_of, runs_code, sm

_has_code: set[int] = set()  # devices that have been found to run the kernels


def _why_no_code(device: int) -> str | None:
    capability = capability_of(device)
    if runs_code(capability, _cuda.architectures):
        return None
    return f"{sm(capability)} runs none of the code that was compiled: {_cuda.architectures}"


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return the device's number and the address of its current stream.

    Raises:
        RuntimeError: the device does not run the kernels, which a program that was exported elsewhere has named.
    """
    device = tensor.get_device()
    if device not in _has_code:
        if reason := _why_no_code(device):
            raise RuntimeError(f"backend: 'cuda' is not available for cuda:{device}: {reason}")
        _has_code.add(device)
    return device, torch._C._cuda_getCurrentRawStream(device)


_kernels = CompiledKernels(_cuda, _place)
gmm_step = _kernels.gmm_step
gmm_step_unchecked = _kernels.gmm_step_unchecked
density_room = _kernels.density_room
is_plain_step = _kernels.is_plain_step
gmm_step_backward = _kernels.gmm_step_backward
log_prob = _kernels.log_prob
log_prob_backward = _kernels.log_prob_backward
log_ratio = _kernels.log_ratio
log_ratio_backward = _kernels.log_ratio_backward
add_noise = _kernels.add_noise
skip_step_loss = _kernels.skip_step_loss
scale_residual = _kernels.scale_residual
skip_step_loss_backward = _kernels.skip_step_loss_backward
standard_normal = _kernels.standard_normal
draw_components = _kernels.draw_components
project = _kernels.project


def why_unusable(device: int | None = None) -> str | None:
    """Return why no tensor, or none on this CUDA device, can be given to this backend here, or None.

    The first call starts the CUDA driver.
    """
    try:
        count = _cuda.device_count()
    except RuntimeError as error:
        return str(error)
    if count == 0:
        return "no CUDA device"
    if not torch.cuda.is_available():
        return "this PyTorch cannot use CUDA"
    return None if device is None else _why_no_code(device)


def describe() -> str:
    """Return one line on what was compiled."""
    return f"version {_cuda.version}, code for {_cuda.architectures}"
