"""The compiled CUDA kernels: one launch a call, on the tensors' device and the current stream of PyTorch.

Contiguous tensors cost no allocation, and nothing is waited for or read back: a call may be captured in a CUDA graph,
after one like it has been made outside, which loads the kernel.
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
from gmmkernel.backends.compiled import (
    by_sample,
    component_arguments,
    normal_arguments,
    step_inputs,
    step_outputs,
)
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return the device's number and the address of its current stream."""
    device = tensor.get_device()
    return device, torch._C._cuda_getCurrentRawStream(device)


def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction and the components drawn; see `Backend`."""
    target = by_sample(result)
    described, _alive = step_inputs(inputs)
    outputs = step_outputs(target, prediction, prediction_kind, components)
    _cuda.step(described, *outputs, *_place(result))
    if target is not result:
        result.copy_(target)


def standard_normal(result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    target = by_sample(result)
    _cuda.standard_normal(*normal_arguments(target, seeds, step, stream), *_place(result))
    if target is not result:
        result.copy_(target)


def draw_components(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    _cuda.draw_components(*component_arguments(result, seeds, thresholds, row, step), *_place(result))


def why_unusable() -> str | None:
    """Return why no tensor can be given to this backend here, or None; the first call starts the CUDA driver."""
    try:
        count = _cuda.device_count()
    except RuntimeError as error:
        return str(error)
    if count == 0:
        return "no CUDA device"
    return None if torch.cuda.is_available() else "this PyTorch cannot use CUDA"


def describe() -> str:
    """Return one line on what the kernels run on here."""
    names = ", ".join(torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count()))
    return f"version {_cuda.version}, compiled for {_cuda.architectures} and PTX; devices: {names}"
