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
from gmmkernel.backends.compiled import (
    address,
    by_sample,
    component_arguments,
    density_inputs,
    describe_tensor,
    normal_arguments,
    rows_workspace,
    step_gradients,
    step_inputs,
    step_outputs,
    sums_workspace,
)
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import LogProbGradients, StepGradients, StepInputs


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


def gmm_step_backward(
    inputs: StepInputs,
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    gradients: StepGradients,
) -> None:
    """Write gradients of a loss, given its gradients of the next sample and of the prediction; see `Backend`."""
    described, _alive = step_inputs(inputs)
    grad = by_sample(grad)
    grad_prediction = None if grad_prediction is None else by_sample(grad_prediction)
    workspace = rows_workspace(inputs, gradients)
    _cuda.step_backward(
        described,
        prediction_kind,
        (describe_tensor(grad), describe_tensor(grad_prediction)),
        step_gradients(gradients, workspace),
        *_place(grad),
    )


def log_prob(
    inputs: StepInputs,
    prev_sample: Tensor,
    weights: Tensor | None,
    result: Tensor,
    responsibilities: Tensor | None = None,
) -> None:
    """Write the log-density of each sample, [B], and each component's share of it, [B, K]; see `Backend`."""
    described, _alive = step_inputs(inputs)
    prev_sample = by_sample(prev_sample)
    workspace = sums_workspace(inputs, 1 if weights is None else weights.shape[1] + 1)
    _cuda.log_prob(
        described,
        *density_inputs(prev_sample, weights),
        address(result),
        address(responsibilities),
        address(workspace),
        *_place(result),
    )


def log_prob_backward(
    inputs: StepInputs,
    prev_sample: Tensor,
    weights: Tensor | None,
    responsibilities: Tensor | None,
    grad: Tensor,
    gradients: LogProbGradients,
) -> None:
    """Write gradients of a loss, given its gradients [B] of the log-densities; see `Backend`."""
    described, _alive = step_inputs(inputs)
    prev_sample = by_sample(prev_sample)
    workspace = rows_workspace(inputs, gradients.step)
    _cuda.log_prob_backward(
        described,
        *density_inputs(prev_sample, weights),
        address(responsibilities),
        address(grad),
        describe_tensor(gradients.prev_sample),
        address(gradients.weights),
        step_gradients(gradients.step, workspace),
        *_place(grad),
    )


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
