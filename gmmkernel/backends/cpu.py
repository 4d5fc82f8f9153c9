"""The compiled C++ core on CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gmmkernel import _core
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

_BEST = 0

_instruction_set = _BEST


def instruction_sets() -> list[str]:
    """Return the instruction sets that this processor and build have, slowest first."""
    return [name for name, code in _core.INSTRUCTION_SETS.items() if _core.has_instruction_set(code)]


def best_instruction_set() -> str:
    """Return the instruction set used unless another is asked for."""
    codes = {code: name for name, code in _core.INSTRUCTION_SETS.items()}
    return codes[_core.best_instruction_set()]


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the core with another instruction set, for tests and measurements: the bits are the same.

    Args:
        name: one of `instruction_sets()`.

    Raises:
        ValueError: the processor or build does not have it.
    """
    global _instruction_set
    if name not in instruction_sets():
        raise ValueError(f"name: expected one of {instruction_sets()}, got {name!r}")
    before, _instruction_set = _instruction_set, _core.INSTRUCTION_SETS[name]
    try:
        yield
    finally:
        _instruction_set = before


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
    _core.step(described, *outputs, torch.get_num_threads(), _instruction_set)
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
    _core.step_backward(
        described,
        prediction_kind,
        (describe_tensor(grad), describe_tensor(grad_prediction)),
        step_gradients(gradients, workspace),
        torch.get_num_threads(),
        _instruction_set,
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
    _core.log_prob(
        described,
        *density_inputs(prev_sample, weights),
        address(result),
        address(responsibilities),
        address(workspace),
        torch.get_num_threads(),
        _instruction_set,
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
    _core.log_prob_backward(
        described,
        *density_inputs(prev_sample, weights),
        address(responsibilities),
        address(grad),
        describe_tensor(gradients.prev_sample),
        address(gradients.weights),
        step_gradients(gradients.step, workspace),
        torch.get_num_threads(),
        _instruction_set,
    )


def standard_normal(result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    target = by_sample(result)
    arguments = normal_arguments(target, seeds, step, stream)
    _core.standard_normal(*arguments, torch.get_num_threads(), _instruction_set)
    if target is not result:
        result.copy_(target)


def draw_components(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    _core.draw_components(*component_arguments(result, seeds, thresholds, row, step))


def orthonormalize(rows: Tensor) -> None:
    """Make the rows of a contiguous float64 [K, D] tensor orthonormal in place."""
    _core.orthonormalize(
        rows.data_ptr(), rows.shape[0], rows.shape[1], torch.get_num_threads(), _instruction_set
    )


def why_unusable() -> None:
    """Return None: wherever the core was built, it runs."""


def describe() -> str:
    """Return one line on what the core runs on here."""
    return (
        f"version {_core.version}, instruction sets {', '.join(instruction_sets())} (using "
        f"{best_instruction_set()}), {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
