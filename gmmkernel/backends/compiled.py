"""What the compiled backends share: tensors as the addresses and numbers that their extensions take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmmkernel import _core
from gmmkernel.backends.constants import SUM_TILE, Prediction
from gmmkernel.backends.protocol import (
    LogProbGradients,
    PenaltyInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)

_DTYPES = {getattr(torch, name): code for name, code in _core.DTYPES.items()}
_ABSENT = (0, 0, 0)


def by_sample(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it, such that each sample is contiguous."""
    if tensor.is_contiguous():
        return tensor
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def address(tensor: Tensor | None) -> int:
    """Return where a tensor begins; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def describe_tensor(tensor: Tensor | None) -> tuple[int, int, int]:
    """Return a tensor's address, elements from one sample to the next, and dtype; zeros where there is none."""
    if tensor is None:
        return _ABSENT
    return tensor.data_ptr(), tensor.stride(0), _DTYPES[tensor.dtype]


def describe_index(index: int | Tensor) -> tuple[int, int, int]:
    """Return an index's address, stride and, without an address, its value for all samples."""
    if isinstance(index, Tensor):
        return index.data_ptr(), 0 if index.numel() == 1 else 1, 0
    return 0, 0, index


def step_inputs(inputs: StepInputs) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Return what the extensions take as a step's inputs, and the tensors that must live until they are called.

    Returns:
        One argument, and copies that were made of strided inputs.
    """
    sample, model_output = by_sample(inputs.sample), by_sample(inputs.model_output)
    uncond = None if inputs.model_output_uncond is None else by_sample(inputs.model_output_uncond)
    history = [by_sample(stored) for stored in inputs.history]
    batch = sample.shape[0]
    mixture: tuple[Any, ...] = ()
    if inputs.offsets is not None and inputs.std is not None:
        mixture = (
            inputs.offsets.shape[1],
            address(inputs.thresholds),
            0 if inputs.thresholds is None else inputs.thresholds.shape[0],
            inputs.offsets.data_ptr(),
            inputs.offsets.shape[0],
            inputs.std.data_ptr(),
            *inputs.std.shape,
            *_directions(inputs.basis, inputs.shrinkage),
        )
    described = (
        batch,
        sample.numel() // batch if batch else math.prod(sample.shape[1:]),
        describe_tensor(sample),
        describe_tensor(model_output),
        describe_tensor(uncond),
        [describe_tensor(stored) for stored in history],
        inputs.coefficients.data_ptr(),
        inputs.coefficients.shape[0],
        describe_index(inputs.row),
        describe_index(inputs.step),
        inputs.seeds.data_ptr(),
        mixture,
    )
    alive = [sample, model_output, *history]
    return described, alive if uncond is None else [*alive, uncond]


def _directions(basis: Tensor | None, shrinkage: Tensor | None) -> tuple[int, ...]:
    """Return what a mixture of exactly matched moments has besides."""
    if basis is None:
        return (0,) * 6
    shrunk = (0, 0, 0) if shrinkage is None else (shrinkage.data_ptr(), *shrinkage.shape[:2])
    return basis.shape[1], basis.data_ptr(), basis.shape[0], *shrunk


def step_outputs(
    target: Tensor,
    prediction: Tensor | None,
    prediction_kind: int,
    components: Tensor | None,
    workspace: Tensor | None,
) -> tuple[Any, ...]:
    """Return what an extension's `step` takes after the inputs.

    Args:
        target: the tensor to write, as `by_sample` returns it.
        prediction: where to write a prediction, contiguous, or None.
        prediction_kind: which one.
        components: int64 [B], where to write the components drawn, or None.
        workspace: room for the projections of the noise, where moments are matched exactly.
    """
    given = map(address, (components, workspace))
    return describe_tensor(target), describe_tensor(prediction), prediction_kind, *given


def step_gradients(gradients: StepGradients, workspace: Tensor | None) -> tuple[Any, ...]:
    """Return what an extension's `step_backward` takes as the gradients to write; samples of each are contiguous."""
    return (
        describe_tensor(gradients.sample),
        describe_tensor(gradients.model_output),
        describe_tensor(gradients.model_output_uncond),
        address(gradients.coefficients),
        address(gradients.offsets),
        address(gradients.std),
        [describe_tensor(gradient) for gradient in gradients.history],
        address(workspace),
    )


def sums_workspace(inputs: StepInputs, columns: int) -> Tensor:
    """Return room for a number of sums over elements of each sample: of every tile, and the samples' own."""
    batch, elements = inputs.sample.shape[0], math.prod(inputs.sample.shape[1:])
    return inputs.coefficients.new_empty(batch, -(-elements // SUM_TILE) + 1, columns)


def rows_workspace(inputs: StepInputs, gradients: StepGradients) -> Tensor | None:
    """Return room for the sums that gradients of coefficients are made of, where they are wanted."""
    return None if gradients.coefficients is None else sums_workspace(inputs, inputs.coefficients.shape[1])


def density_inputs(prev_sample: Tensor, weights: Tensor | None) -> tuple[Any, ...]:
    """Return what an extension's `log_prob` takes after the step's inputs; `prev_sample` as `by_sample` returns it."""
    return describe_tensor(prev_sample), (address(weights), 0 if weights is None else weights.shape[0])


def penalty_inputs(penalties: PenaltyInputs | None) -> tuple[int, ...]:
    """Return what an extension's `log_prob` takes of a mixture of exactly matched moments besides the basis."""
    if penalties is None:
        return ()
    _, slopes, shifts, log_volumes = penalties
    return (
        slopes.data_ptr(),
        *slopes.shape[:2],
        shifts.data_ptr(),
        shifts.shape[0],
        log_volumes.data_ptr(),
        *log_volumes.shape,
    )


def training_batch(
    sample: Tensor, coefficients: Tensor, seeds: Tensor | None, row: int | Tensor, step: int | Tensor
) -> tuple[Any, ...]:
    """Return what the extensions take first for training on a batch like `sample`."""
    batch, elements = sample.shape[0], math.prod(sample.shape[1:])
    indices = describe_index(row), describe_index(step)
    return batch, elements, coefficients.data_ptr(), coefficients.shape[0], *indices, address(seeds)


def loss_inputs(inputs: TrainingInputs) -> tuple[tuple[Any, ...], list[Tensor | None]]:
    """Return what the extensions take as a training loss's inputs, and the tensors that must live until then."""
    output, sample, coefficients, seeds, row, step = inputs
    read = [by_sample(output), None if sample is None else by_sample(sample)]
    return (training_batch(output, coefficients, seeds, row, step), *map(describe_tensor, read)), read


def normal_arguments(target: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> tuple[Any, ...]:
    """Return what an extension's `standard_normal` takes to fill `target`, as `by_sample` returns it."""
    batch = target.shape[0]
    elements = target.numel() // max(batch, 1)
    return batch, elements, describe_tensor(target), seeds.data_ptr(), describe_index(step), stream


def component_arguments(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> tuple[Any, ...]:
    """Return what an extension's `draw_components` takes."""
    return (
        result.shape[0],
        result.data_ptr(),
        seeds.data_ptr(),
        describe_index(row),
        describe_index(step),
        thresholds.shape[1] + 1,
        thresholds.data_ptr(),
        thresholds.shape[0],
    )


class CompiledKernels:
    """The functions of a backend (`Backend`) whose kernels are in an extension.

    Args:
        extension: the extension.
        options: returns what its functions take last, given a tensor they are called on.
    """

    def __init__(self, extension: Any, options: Callable[[Tensor], tuple[int, ...]]) -> None:
        self._extension = extension
        self._options = options

    def gmm_step(
        self,
        inputs: StepInputs,
        result: Tensor,
        prediction: Tensor | None = None,
        prediction_kind: int = Prediction.NONE,
        components: Tensor | None = None,
    ) -> None:
        """Write the next sample, and on request a prediction and the components drawn."""
        target = by_sample(result)
        described, _alive = step_inputs(inputs)
        workspace = None if inputs.basis is None else sums_workspace(inputs, inputs.basis.shape[2])
        outputs = step_outputs(target, prediction, prediction_kind, components, workspace)
        self._extension.step(described, *outputs, *self._options(result))
        if target is not result:
            result.copy_(target)

    def gmm_step_backward(
        self,
        inputs: StepInputs,
        grad: Tensor,
        grad_prediction: Tensor | None,
        prediction_kind: int,
        gradients: StepGradients,
    ) -> None:
        """Write gradients of a loss, given its gradients of the next sample and of the prediction."""
        described, _alive = step_inputs(inputs)
        grad = by_sample(grad)
        grad_prediction = None if grad_prediction is None else by_sample(grad_prediction)
        workspace = rows_workspace(inputs, gradients)
        self._extension.step_backward(
            described,
            prediction_kind,
            (describe_tensor(grad), describe_tensor(grad_prediction)),
            step_gradients(gradients, workspace),
            *self._options(grad),
        )

    def log_prob(
        self,
        inputs: StepInputs,
        prev_sample: Tensor,
        weights: Tensor | None,
        result: Tensor,
        responsibilities: Tensor | None = None,
        penalties: PenaltyInputs | None = None,
        energies: Tensor | None = None,
    ) -> None:
        """Write the log-density of each sample, [B], and each component's share of it, [B, K]."""
        described, _alive = step_inputs(inputs)
        prev_sample = by_sample(prev_sample)
        workspace = sums_workspace(inputs, 1 if weights is None else weights.shape[1] + 1)
        self._extension.log_prob(
            described,
            *density_inputs(prev_sample, weights),
            penalty_inputs(penalties),
            address(result),
            address(responsibilities),
            address(energies),
            address(workspace),
            *self._options(result),
        )

    def log_prob_backward(
        self,
        inputs: StepInputs,
        prev_sample: Tensor,
        weights: Tensor | None,
        responsibilities: Tensor | None,
        grad: Tensor,
        gradients: LogProbGradients,
    ) -> None:
        """Write gradients of a loss, given its gradients [B] of the log-densities."""
        described, _alive = step_inputs(inputs)
        prev_sample = by_sample(prev_sample)
        workspace = rows_workspace(inputs, gradients.step)
        self._extension.log_prob_backward(
            described,
            *density_inputs(prev_sample, weights),
            address(responsibilities),
            address(grad),
            describe_tensor(gradients.prev_sample),
            address(gradients.weights),
            step_gradients(gradients.step, workspace),
            *self._options(grad),
        )

    def add_noise(
        self,
        sample: Tensor,
        coefficients: Tensor,
        seeds: Tensor,
        row: int | Tensor,
        step: int | Tensor,
        result: Tensor,
        noise: Tensor | None = None,
    ) -> None:
        """Write the training sample x_t of `sample` x0, and on request the noise in it."""
        target, sample = by_sample(result), by_sample(sample)
        self._extension.add_noise(
            training_batch(sample, coefficients, seeds, row, step),
            *map(describe_tensor, (sample, target, noise)),
            *self._options(result),
        )
        if target is not result:
            result.copy_(target)

    def skip_step_loss(self, inputs: TrainingInputs, result: Tensor, pull: Tensor | None = None) -> None:
        """Write the loss of each sample, [B], and on request the pull of its elements."""
        described, _alive = loss_inputs(inputs)
        batch, elements = described[0][:2]
        workspace = result.new_empty(batch, -(-elements // SUM_TILE) + 1)
        self._extension.skip_step_loss(
            *described, describe_tensor(pull), result.data_ptr(), workspace.data_ptr(), *self._options(result)
        )

    def scale_pull(
        self, pull: Tensor, coefficients: Tensor, row: int | Tensor, step: int | Tensor, grad: Tensor
    ) -> None:
        """Make the gradient of the model's output of a loss's pull, in place."""
        batch = training_batch(pull, coefficients, None, row, step)
        self._extension.scale_pull(batch, describe_tensor(pull), grad.data_ptr(), *self._options(pull))

    def skip_step_loss_backward(
        self, inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients
    ) -> None:
        """Write gradients of a loss, given its gradients [B] of the samples' losses."""
        described, _alive = loss_inputs(inputs)
        of_inputs = map(describe_tensor, gradients)
        self._extension.skip_step_loss_backward(*described, grad.data_ptr(), *of_inputs, *self._options(grad))

    def standard_normal(self, result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
        """Fill `result` [B, ...] with each sample's noise."""
        target = by_sample(result)
        self._extension.standard_normal(
            *normal_arguments(target, seeds, step, stream), *self._options(result)
        )
        if target is not result:
            result.copy_(target)
