"""Gradients of adding noise and of the training loss, as `autograd` has them of steps: noise is drawn again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel.backends.constants import MAX_STEP, Stream, TrainingColumn
from gmmkernel.backends.protocol import NoiseInputs, TrainingInputs
from gmmkernel.ops import library
from gmmkernel.ops.autograd import (
    Optional,
    among_wanted,
    apart,
    apply,
    apply_backward,
    by_batch,
    vmap_gradients,
    vmap_results,
)
from gmmkernel.ops.eager import eager_skip_step_loss, second_derivatives
from gmmkernel.ops.exact import row_of_each
from gmmkernel.ops.noise import new_noise
from gmmkernel.ops.op import LOSS, NOISE, NormalInputs, Numbers, ResidualInputs


class NoiseOptions(NamedTuple):
    """What adding noise takes besides tensors."""

    numbers: Numbers
    backend: str
    noise: bool


class LossOptions(NamedTuple):
    """What a training loss takes besides tensors."""

    numbers: Numbers
    backend: str
    residual: bool


def add_noise_with_gradient(inputs: NoiseInputs, backend: str, noise: bool) -> tuple[Tensor, Optional]:
    """Return the training sample, with a gradient, and its noise; see `add_noise`."""
    numbers, flat = NOISE.split(inputs)
    made: tuple[Tensor, Optional] = apply(_AddNoise, NoiseOptions(numbers, backend, noise), *apart(flat))
    return made


def skip_step_loss_with_gradient(inputs: TrainingInputs, backend: str, residual: bool) -> Tensor:
    """Return losses [B] with gradients; see `skip_step_loss`."""
    numbers, flat = LOSS.split(inputs)
    made: Tensor = apply(_Loss, LossOptions(numbers, backend, residual), *apart(flat))[0]
    return made


class _AddNoise(torch.autograd.Function):
    """Its gradient is a product with one number for each sample, in plain PyTorch, and so is every further one."""

    @staticmethod
    def forward(options: NoiseOptions, *flat: Any) -> tuple[Tensor, Optional]:
        inputs = NOISE.join(options.numbers, flat)
        out = torch.empty_like(inputs.sample, memory_format=torch.contiguous_format)
        noise = torch.empty_like(out) if options.noise else None
        library.add_noise(out, noise, options.backend, NOISE.join(options.numbers, flat))
        return out, noise

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Optional]) -> None:
        options, _, coefficients, _, rows, steps, firsts = inputs
        ctx.numbers = options.numbers
        ctx.save_for_backward(coefficients, rows, steps, firsts)
        ctx.set_materialize_grads(False)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Optional, _noise: Optional) -> Any:
        made = None if grad is None else _times_signal(grad, ctx.numbers, *ctx.saved_tensors)
        return None, *NOISE.among_all([made])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: NoiseOptions, *given: Any) -> Any:
        return vmap_results(_AddNoise, NOISE, info.batch_size, in_dims, options, given)


def _times_signal(
    grad: Tensor, numbers: Numbers, coefficients: Tensor, rows: Optional, steps: Optional, firsts: Optional
) -> Tensor:
    """Return SIGNAL times the gradient, rounded once; NaN where an index is out of range, as x_t is."""
    signal = coefficients[:, TrainingColumn.SIGNAL]
    if rows is None:
        signal = signal[numbers[0] : numbers[0] + 1]
    else:
        inside = (rows >= 0) & (rows < coefficients.shape[0])
        signal = torch.where(inside, signal[rows.clamp(0, coefficients.shape[0] - 1)], math.nan)
    if steps is not None:
        signal = torch.where((steps >= 0) & (steps <= MAX_STEP), signal, math.nan)
    if firsts is not None:
        signal = torch.where(firsts >= 0, signal, math.nan)
    return (grad * signal.reshape(-1, *[1] * (grad.dim() - 1))).to(grad.dtype)


class _Loss(torch.autograd.Function):
    """With `options.residual` the forward pass leaves behind what the gradient is but for a factor of each sample.

    The first backward pass turns that memory into the gradient of the model's output; those after it, and those of
    graphs to be differentiated again, draw the noise once more.
    """

    @staticmethod
    def forward(options: LossOptions, *flat: Any) -> tuple[Tensor, Optional]:
        made = library.skip_step_loss(options.residual, options.backend, LOSS.join(options.numbers, flat))
        return made[0], made[1] if options.residual else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Optional]) -> None:
        ctx.options, ctx.residual = inputs[0], output[1]
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Optional, _residual: Optional) -> Any:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        wanted = tuple(LOSS.primals(ctx.needs_input_grad[1:]))
        residual, ctx.residual = ctx.residual, None
        if residual is not None and not torch.is_grad_enabled():
            inputs = LOSS.join(ctx.options.numbers, ctx.saved_tensors)
            factors = ResidualInputs(inputs.coefficients, inputs.row, inputs.step)
            library.scale_residual(residual, grad.contiguous(), ctx.options.backend, factors)
            made = residual, None
        else:
            made = apply_backward(_LossBackward, wanted, ctx.options, grad, None, *ctx.saved_tensors)
        return None, *LOSS.among_all(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: LossOptions, *given: Any) -> Any:
        return vmap_results(_Loss, LOSS, info.batch_size, in_dims, options, given)


class _LossBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        wanted: tuple[bool, ...], options: LossOptions, grad: Tensor, _nothing: None, *flat: Any
    ) -> Any:
        given = list(wanted), grad.contiguous(), options.backend
        made = library.skip_step_loss_backward(*given, LOSS.join(options.numbers, flat))
        return among_wanted(made, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, grad, _, *given = inputs
        ctx.save_for_backward(grad, *given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        grad, *given = ctx.saved_tensors
        forward = _eager(ctx.options.backend, LOSS.join(ctx.options.numbers, given))
        of_grad, of_primals = second_derivatives(forward, [grad], LOSS.primals(given), ctx.wanted, grads)
        return None, None, *of_grad, None, *LOSS.among_all(of_primals)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return vmap_gradients(_LossBackward, LOSS, info.batch_size, in_dims, *arguments)


def _eager(backend: str, inputs: TrainingInputs) -> Any:
    """Return the loss as a function of the tensors that have a gradient, in plain PyTorch."""
    noises = []
    for stream in (Stream.TRAINING, Stream.TRAINING_SKIP):
        of_noise = inputs.model_output.shape[1:], inputs.coefficients.dtype, stream, backend
        noises.append(by_batch(new_noise(*of_noise, NormalInputs(inputs.seeds, inputs.step))))
    rows = row_of_each(inputs.row, inputs.seeds)

    def forward(model_output: Tensor, sample: Optional = None) -> tuple[Tensor, ...]:
        row = inputs.coefficients[rows]
        return (eager_skip_step_loss(by_batch(model_output), by_batch(sample), row, *noises),)

    return forward
