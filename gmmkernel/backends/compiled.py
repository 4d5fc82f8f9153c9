"""What the compiled backends share: room for sums, and copies of what their extensions cannot take as it is.

An extension's functions take tensors, and return False, with nothing done, where one of them has samples that are not
contiguous in themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE, Prediction
from gmmkernel.backends.protocol import (
    LogProbGradients,
    LogProbInputs,
    LogRatioGradients,
    LogRatioInputs,
    NoiseInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)


def by_sample(value: Any) -> Any:
    """Return a tensor, or a copy of it, such that each sample is contiguous; of tuples and lists all entries so."""
    if isinstance(value, tuple | list):
        entries = map(by_sample, value)
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if not isinstance(value, Tensor) or value.is_contiguous():
        return value
    expected = 1
    for size, stride in zip(reversed(value.shape[1:]), reversed(value.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return value.contiguous()
        expected *= size
    return value


def sums_workspace(inputs: StepInputs | LogProbInputs | LogRatioInputs, columns: int) -> Tensor:
    """Return room for a number of sums over elements of each sample: of every tile, and the samples' own."""
    batch, elements = inputs.sample.shape[0], math.prod(inputs.sample.shape[1:])
    return inputs.coefficients.new_empty(batch, -(-elements // SUM_TILE) + 1, columns)


def rows_workspace(inputs: StepInputs | LogProbInputs, gradients: StepGradients) -> Tensor | None:
    """Return room for the sums that gradients of coefficients are made of, where they are wanted."""
    return None if gradients.coefficients is None else sums_workspace(inputs, inputs.coefficients.shape[1])


class CompiledKernels:
    """The functions of a backend (`Backend`) whose kernels are in an extension.

    Args:
        extension: the extension.
        options: returns what its functions take last, given a tensor they are called on.
    """

    def __init__(self, extension: Any, options: Callable[[Tensor], tuple[int, ...]]) -> None:
        self._extension = extension
        self._options = options

    def _call(self, function: Callable[..., bool], place: Tensor, *given: Any) -> None:
        """Call a function of the extension, with copies of what it does not take."""
        options = self._options(place)
        if not function(*given, *options) and not function(*map(by_sample, given), *options):
            raise TypeError(f"{function.__name__}: expected tensors as ops hand them over, got others")

    def is_plain_step(self, inputs: tuple[Any, ...]) -> bool:
        """Return whether the inputs of a step, those of `StepInputs`, are beyond doubt, but for gradients."""
        plain: bool = self._extension.is_plain_step(inputs, *self._options(inputs[0]))
        return plain

    def density_room(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return room for the log-densities of a step's samples, and for the sums that they are made of."""
        dtype = torch.float64 if sample.dtype is torch.float64 else torch.float32
        batch, tiles = sample.shape[0], -(-math.prod(sample.shape[1:]) // SUM_TILE)
        return sample.new_empty(batch, dtype=dtype), sample.new_empty(batch, tiles + 1, dtype=dtype)

    def gmm_step_unchecked(self, inputs: tuple[Any, ...], *outputs: Any, tracks: bool) -> bool:
        """Do a step whose arguments nobody has checked, if they are beyond doubt; return whether it was done.

        Args:
            inputs: those of `StepInputs`.
            outputs: what `gmm_step` takes besides.
            tracks: whether autograd must be asked where a tensor requires a gradient.
        """
        done: bool = self._extension.gmm_step(inputs, *outputs, False, tracks, *self._options(inputs[0]))
        return done

    def gmm_step(
        self,
        inputs: StepInputs,
        result: Tensor,
        prediction: Tensor | None = None,
        prediction_kind: int = Prediction.NONE,
        components: Tensor | None = None,
        log_prob: Tensor | None = None,
    ) -> None:
        """Write the next sample, and on request a prediction, the components drawn and the log-density."""
        target = by_sample(result)
        workspace = None if log_prob is None else sums_workspace(inputs, 1)
        outputs = target, prediction, prediction_kind, components, log_prob, workspace
        self._call(self._extension.gmm_step, result, inputs, *outputs, True, False)
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
        given = inputs, grad, grad_prediction, prediction_kind, gradients, rows_workspace(inputs, gradients)
        self._call(self._extension.gmm_step_backward, grad, *given)

    def log_prob(
        self,
        inputs: LogProbInputs,
        result: Tensor,
        responsibilities: Tensor | None = None,
        energies: Tensor | None = None,
        penalties: Tensor | None = None,
    ) -> None:
        """Write the log-density of each sample, [B], and each component's share of it, [B, K]."""
        workspace = sums_workspace(inputs, 1 if inputs.weights is None else inputs.weights.shape[1] + 1)
        of_tiles = result.dim() == 2
        outputs = None if of_tiles else result, responsibilities, energies, penalties, workspace
        self._call(self._extension.log_prob, result, inputs, *outputs)
        if of_tiles:
            torch.neg(workspace[:, :-1, 0], out=result)

    def log_prob_backward(
        self,
        inputs: LogProbInputs,
        responsibilities: Tensor | None,
        grad: Tensor,
        gradients: LogProbGradients,
    ) -> None:
        """Write gradients of a loss, given its gradients [B] of the log-densities."""
        workspace = rows_workspace(inputs, gradients.step)
        given = inputs, responsibilities, grad, grad.dim() == 2, gradients, workspace
        self._call(self._extension.log_prob_backward, grad, *given)

    def log_ratio(self, inputs: LogRatioInputs, result: Tensor) -> None:
        """Write the log-ratio and the divergence of each sample, [B, 2], or those of its tiles."""
        of_tiles = result.dim() == 3
        workspace = sums_workspace(inputs, 2)
        self._call(self._extension.log_ratio, result, inputs, None if of_tiles else result, workspace)
        if of_tiles:
            result.copy_(workspace[:, :-1])

    def log_ratio_backward(self, inputs: LogRatioInputs, grad: Tensor, gradients: LogRatioGradients) -> None:
        """Write gradients of a loss, given its gradients [B, 2] of log-ratios and divergences."""
        self._call(self._extension.log_ratio_backward, grad, inputs, grad, grad.dim() == 3, gradients)

    def add_noise(self, inputs: NoiseInputs, result: Tensor, noise: Tensor | None = None) -> None:
        """Write the training sample x_t of the data x0, and on request the noise in it."""
        target = by_sample(result)
        self._call(self._extension.add_noise, result, inputs, target, noise)
        if target is not result:
            result.copy_(target)

    def skip_step_loss(self, inputs: TrainingInputs, result: Tensor, residual: Tensor | None = None) -> None:
        """Write the loss of each sample, [B], and on request the weighted residual of its elements."""
        elements = math.prod(inputs.model_output.shape[1:])
        workspace = result.new_empty(result.shape[0], -(-elements // SUM_TILE) + 1)
        self._call(self._extension.skip_step_loss, result, inputs, result, residual, workspace)

    def scale_residual(
        self, residual: Tensor, coefficients: Tensor, row: int | Tensor, step: int | Tensor, grad: Tensor
    ) -> None:
        """Make the gradient of the model's output of a loss's weighted residual, in place."""
        self._call(self._extension.scale_residual, residual, residual, coefficients, row, step, grad)

    def skip_step_loss_backward(
        self, inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients
    ) -> None:
        """Write gradients of a loss, given its gradients [B] of the samples' losses."""
        self._call(self._extension.skip_step_loss_backward, grad, inputs, grad, gradients)

    def standard_normal(
        self, result: Tensor, seeds: Tensor, step: int | Tensor, stream: int, first_element: int | Tensor = 0
    ) -> None:
        """Fill `result` [B, ...] with each sample's noise, from its element `first_element` on."""
        target = by_sample(result)
        self._call(self._extension.standard_normal, result, target, seeds, step, stream, first_element)
        if target is not result:
            result.copy_(target)

    def draw_components(
        self, result: Tensor, seeds: Tensor, cdf: Tensor, row: int | Tensor, step: int | Tensor
    ) -> None:
        """Fill `result` int64 [B] with component numbers."""
        self._call(self._extension.draw_components, result, result, seeds, cdf, row, step)

    def project(self, sample: Tensor, table: Tensor, row: int | Tensor, result: Tensor) -> None:
        """Fill `result` [B, K] with the sums over elements of each sample times the rows of its entry of a table."""
        tiles = -(-math.prod(sample.shape[1:]) // SUM_TILE)
        workspace = result.new_empty(result.shape[0], tiles + 1, result.shape[1])
        self._call(self._extension.project, result, sample, table, row, result, workspace)
