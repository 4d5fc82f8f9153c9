"""Gradients of the step: a `torch.autograd.Function` over the raw operators, and one over its gradients.

Nothing is saved but the inputs: noise and component are drawn again from the seeds. First derivatives are one fused
pass; derivatives of these are plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor, unwrap_if_dead

from gmmkernel.backends.constants import Column, Stream
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.ops import library
from gmmkernel.ops.eager import eager_step, second_derivatives
from gmmkernel.ops.exact import offset_weights, row_of_each
from gmmkernel.ops.noise import new_components, new_noise
from gmmkernel.ops.op import STEP, NormalInputs, Numbers, Op
from gmmkernel.ops.vmap import merge_batch

Optional: TypeAlias = Tensor | None
Made: TypeAlias = tuple[Tensor, Optional, Optional]


class StepOptions(NamedTuple):
    """What a step takes besides tensors."""

    numbers: Numbers
    backend: str
    prediction_kind: int
    components: bool
    is_plain: bool = False


def step(
    inputs: StepInputs, backend: str, prediction_kind: int, components: bool, *, is_plain: bool = False
) -> Made:
    """Return the next sample, the prediction and the components, with gradients; see `gmm_step`.

    `is_plain`: nothing traces, transforms or overrides the call, as somebody has looked.
    """
    numbers, flat = STEP.split(inputs)
    options = StepOptions(numbers, backend, prediction_kind, components, is_plain)
    made: Made = apply(_Step, options, *apart(flat))
    return made


def apart(given: tuple[Optional, ...]) -> tuple[Optional, ...]:
    """Return the tensors such that none comes twice, which torch.compile does not take."""
    if not torch.compiler.is_compiling():
        return given
    once: list[Optional] = []
    for tensor in given:
        twice = tensor is not None and any(tensor is other for other in once)
        once.append(tensor.view_as(tensor) if tensor is not None and twice else tensor)
    return tuple(once)


def apply(function: Any, *given: Any) -> Any:
    """Apply a Function, without binding its arguments to a signature first, which takes longer than all the rest."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*given)
    alive = [unwrap_if_dead(value) if type(value) is Tensor else value for value in given]
    return super(torch.autograd.Function, function).apply(*alive)


def apply_backward(function: Any, *given: Any) -> Any:
    """Do the same with the Function that another's backward is, as one only where that has a derivative in turn.

    Raises:
        NotImplementedError: the gradients are a batch of them, by the way that autograd has besides `torch.vmap`.
    """
    # torch.compile does not trace one Function in another's backward, nor second derivatives.
    if torch.compiler.is_compiling():
        return function.forward(*given)
    if any(type(value) is Tensor and is_legacy_batchedtensor(value) for value in given):
        raise NotImplementedError(
            "gradients of gmmkernel's ops: expected them one by one, or by torch.func.vmap or torch.func.jacrev, got "
            "a batch of them (is_grads_batched=True or vectorize=True)"
        )
    if not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
        return function.forward(*given)
    return apply(function, *given)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(options: StepOptions, *flat: Any) -> Made:
        out = torch.empty_like(flat[0], memory_format=torch.contiguous_format)
        prediction = torch.empty_like(out) if options.prediction_kind else None
        inputs = STEP.join(options.numbers, flat)
        components = inputs.seeds.new_empty(inputs.seeds.shape) if options.components else None
        do = library.gmm_step.of_plain if options.is_plain else library.gmm_step
        do(out, prediction, components, None, options.prediction_kind, options.backend, inputs)
        return out, prediction, components

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Made) -> None:
        ctx.options = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)
        if output[2] is not None:
            ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, grad: Optional, grad_prediction: Optional, _components: Optional) -> Any:
        if grad is None:
            if grad_prediction is None:
                return (None,) * len(ctx.needs_input_grad)
            grad = torch.zeros_like(grad_prediction)
        wanted = tuple(STEP.primals(ctx.needs_input_grad[1:]))
        made = apply_backward(_StepBackward, wanted, ctx.options, grad, grad_prediction, *ctx.saved_tensors)
        return None, *STEP.among_all(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: StepOptions, *given: Any) -> Any:
        return vmap_results(_Step, STEP, info.batch_size, in_dims, options, given)


class _StepBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        wanted: tuple[bool, ...], options: StepOptions, grad: Tensor, grad_prediction: Optional, *flat: Any
    ) -> Any:
        given = grad, grad_prediction, options.prediction_kind, options.backend
        made = library.gmm_step_backward(list(wanted), *given, STEP.join(options.numbers, flat))
        return among_wanted(made, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, *given = inputs
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        grad, grad_prediction, *given = ctx.saved_tensors
        cotangents = [grad] if grad_prediction is None else [grad, grad_prediction]
        forward = _eager(ctx.options, STEP.join(ctx.options.numbers, given), len(cotangents))
        of_cotangents, of_primals = second_derivatives(
            forward, cotangents, STEP.primals(given), ctx.wanted, grads
        )
        return None, None, *of_cotangents, *[None] * (2 - len(of_cotangents)), *STEP.among_all(of_primals)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return vmap_gradients(_StepBackward, STEP, info.batch_size, in_dims, *arguments)


def among_wanted(made: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Optional, ...]:
    """Return one result for each flag: the next of those made where it is set."""
    found = iter(made)
    return tuple(next(found) if asked else None for asked in wanted)


def vmap_results(
    function: Any, op: Op, size: int, in_dims: Sequence[Any], options: Any, flat: Sequence[Any]
) -> Any:
    """Return what a Function's `vmap` does, given its options and then its tensors."""
    merged = op.merge(size, in_dims[1:], flat, (False,) * len(flat), options.numbers)
    made = function.apply(options, *merged.tensors)
    return tuple(map(merged.split, made)), _dims(made)


def vmap_gradients(
    function: Any,
    op: Op,
    size: int,
    in_dims: Sequence[Any],
    wanted: tuple[bool, ...],
    options: Any,
    *tensors: Any,
    before: int = 2,
) -> Any:
    """Return the same of a Function that computes gradients, which takes tensors [B, ...] `before` the others."""
    flat, dims = tensors[before:], in_dims[2 + before :]
    merged = op.merge(size, dims, flat, op.among_all(wanted, False), options.numbers)
    of_batch = merge_batch(size, in_dims[2 : 2 + before], tensors[:before])
    made = function.apply(wanted, options, *of_batch, *merged.tensors)
    gradients = merged.split_gradients(made, op.primals(flat), op.primals(dims))
    return gradients, _dims(gradients)


def _dims(made: Sequence[Optional]) -> tuple[int | None, ...]:
    return tuple(None if tensor is None else 0 for tensor in made)


def _eager(options: StepOptions, inputs: StepInputs, outputs: int) -> Any:
    """Return the step as a function of the tensors that have a gradient, in plain PyTorch."""
    shape, seeds = inputs.sample.shape, inputs.seeds
    of_noise = shape[1:], inputs.coefficients.dtype, Stream.TRANSITION, options.backend
    noise = new_noise(*of_noise, NormalInputs(seeds, inputs.step, inputs.first_element))
    rows, components = row_of_each(inputs.row, seeds), torch.zeros_like(seeds)
    if inputs.cdf is not None:
        components = new_components(options.backend, seeds, inputs.cdf, inputs.row, inputs.step)
    _, flat = STEP.split(inputs)

    def forward(*present: Tensor) -> tuple[Tensor, ...]:
        found = iter(present)
        primals = [None if tensor is None else next(found) for tensor in STEP.primals(flat)]
        sample, output, uncond, coefficients, offsets, std, basis, std_delta, *stored = primals
        row, drawn = coefficients[rows], by_batch(noise)  # type: ignore[index]
        shift = None
        if basis is not None and offsets is not None and std_delta is not None:
            of_sample = sample_entries(offsets, rows)
            factors = table_entries(std_delta, rows, components)
            basis = sample_entries(basis, rows)
            weights = offset_weights(drawn, components, row, of_sample, basis, factors)
            shift = torch.einsum("bk,bkd->bd", weights, of_sample)
        elif offsets is not None:
            shift = row[:, Column.OFFSET, None] * table_entries(offsets, rows, components)
        made = eager_step(
            by_batch(sample),
            by_batch(output),
            by_batch(uncond),
            [by_batch(tensor) for tensor in stored],
            row,
            shift,
            None if std is None else table_entries(std, rows, components),
            drawn,
            options.prediction_kind,
        )
        return tuple(tensor.reshape(shape) for tensor in made[:outputs] if tensor is not None)

    return forward


def by_batch(tensor: Any) -> Any:
    """Return a tensor [B, ...] as [B, D], and None as it is."""
    return None if tensor is None else tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def sample_entries(table: Tensor, rows: Tensor) -> Tensor:
    """Return each sample's entries of a table [S or 1, ...]."""
    return table[rows if table.shape[0] > 1 else torch.zeros_like(rows)]


def table_entries(table: Tensor, rows: Tensor, components: Tensor) -> Tensor:
    """Return each sample's entry of a table [S or 1, K or 1, ...]."""
    row = rows if table.shape[0] > 1 else torch.zeros_like(rows)
    return table[row, components if table.shape[1] > 1 else torch.zeros_like(components)]
