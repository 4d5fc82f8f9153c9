"""Gradients of the step: a `torch.autograd.Function` over the raw operators, and one over its gradients.

Nothing is saved but the inputs: noise and component are drawn again from the seeds. First derivatives are one fused
pass; derivatives of these are plain PyTorch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gmmkernel.backends.constants import Stream
from gmmkernel.ops import library
from gmmkernel.ops.eager import eager_step, second_derivatives
from gmmkernel.ops.vmap import Merged, Role, merge, rows_of

Optional: TypeAlias = Tensor | None


class StepOptions(NamedTuple):
    """What a step takes besides tensors."""

    row: int
    step: int
    backend: str
    prediction_kind: int
    components: bool


class StepTensors(NamedTuple):
    """The tensors of a step, those with a gradient first; the history comes after them."""

    sample: Tensor
    model_output: Tensor
    model_output_uncond: Optional
    coefficients: Tensor
    offsets: Optional
    std: Optional
    seeds: Tensor
    rows: Optional
    steps: Optional
    thresholds: Optional


DIFFERENTIABLE = 6  # the first fields of StepTensors
FIELDS = len(StepTensors._fields)
ROLES = (*[Role.BATCH] * 3, *[Role.TABLE] * 3, Role.BATCH, Role.ROWS, Role.STEPS, Role.TABLE)

Made: TypeAlias = tuple[Tensor, Optional, Optional]


def step(options: StepOptions, tensors: StepTensors, history: Sequence[Tensor]) -> Made:
    """Return the next sample, the prediction and the components, with gradients; see `gmm_step`."""
    made: Made = _Step.apply(options, *apart((*tensors, *history)))  # type: ignore[no-untyped-call]
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


def with_signature(function: Any) -> Any:
    """Have a function's signature worked out once: PyTorch asks for a forward's at every call."""
    function.__signature__ = inspect.signature(function)
    return function


class _Step(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(options: StepOptions, *given: Any) -> Made:
        t, history = StepTensors(*given[:FIELDS]), given[FIELDS:]
        out = torch.empty_like(t.sample, memory_format=torch.contiguous_format)
        prediction = torch.empty_like(out) if options.prediction_kind else None
        components = t.seeds.new_empty(t.seeds.shape) if options.components else None
        library.gmm_step(
            out,
            t.sample,
            t.model_output,
            t.coefficients,
            t.seeds,
            options.row,
            options.step,
            options.backend,
            t.rows,
            t.steps,
            t.model_output_uncond,
            list(history) or None,
            t.thresholds,
            t.offsets,
            t.std,
            prediction,
            components,
            options.prediction_kind,
        )
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
        needs = ctx.needs_input_grad[1:]
        wanted = (*needs[:DIFFERENTIABLE], *needs[FIELDS:])
        # torch.compile does not trace one Function in another's backward, nor second derivatives.
        backward = _StepBackward.forward if torch.compiler.is_compiling() else _StepBackward.apply
        made = backward(wanted, ctx.options, grad, grad_prediction, *ctx.saved_tensors)
        return None, *among_all(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: StepOptions, *given: Any) -> Any:
        merged = _merge(info.batch_size, in_dims[1:], given, (False,) * len(given), options)
        made = _Step.apply(options._replace(row=merged.row), *merged.tensors)  # type: ignore[no-untyped-call]
        return tuple(map(merged.split, made)), tuple(None if tensor is None else 0 for tensor in made)


class _StepBackward(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(
        wanted: tuple[bool, ...], options: StepOptions, grad: Tensor, grad_prediction: Optional, *given: Any
    ) -> Any:
        made = library.gmm_step_backward(
            list(wanted),
            grad,
            grad_prediction,
            options.prediction_kind,
            options.row,
            options.step,
            options.backend,
            *given[:FIELDS],
            list(given[FIELDS:]) or None,
        )
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
        primals = [*given[:DIFFERENTIABLE], *given[FIELDS:]]
        forward = _eager(ctx.options, StepTensors(*given[:FIELDS]), given[FIELDS:], len(cotangents))
        of_cotangents, of_primals = second_derivatives(forward, cotangents, primals, ctx.wanted, grads)
        return None, None, *of_cotangents, *[None] * (2 - len(of_cotangents)), *among_all(of_primals)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        wanted: tuple[bool, ...],
        options: StepOptions,
        grad: Tensor,
        grad_prediction: Optional,
        *given: Any,
    ) -> Any:
        merged = _merge(info.batch_size, in_dims[4:], given, among_all(wanted, False), options)
        grads = merge_batch(info.batch_size, in_dims[2:4], (grad, grad_prediction))
        of = options._replace(row=merged.row)
        made = _StepBackward.apply(wanted, of, *grads, *merged.tensors)  # type: ignore[no-untyped-call]
        primals, dims = ([*of[:DIFFERENTIABLE], *of[FIELDS:]] for of in (given, in_dims[4:]))
        gradients = merged.split_gradients(made, primals, dims)
        return gradients, tuple(None if tensor is None else 0 for tensor in gradients)


def among_wanted(made: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Optional, ...]:
    """Return one result for each flag: the next of those made where it is set."""
    found = iter(made)
    return tuple(next(found) if asked else None for asked in wanted)


def among_all(of_primals: Sequence[Any], nothing: Any = None) -> tuple[Any, ...]:
    """Return what there is for tensors with a gradient as one entry for each tensor and the history."""
    return *of_primals[:DIFFERENTIABLE], *[nothing] * (FIELDS - DIFFERENTIABLE), *of_primals[DIFFERENTIABLE:]


def merge_batch(size: int, dims: Sequence[int | None], given: Sequence[Optional]) -> tuple[Optional, ...]:
    """Return tensors [B, ...] with a mapped dimension as part of the batch."""
    roles = [Role.BATCH] * len(given)
    return merge(size, dims, given, roles, [False] * len(given), table_rows=0, batch=0, row=0).tensors


def _merge(
    size: int,
    dims: Sequence[int | None],
    given: Sequence[Optional],
    wanted: Sequence[bool],
    options: StepOptions,
) -> Merged:
    coefficients, seeds = StepTensors._fields.index("coefficients"), StepTensors._fields.index("seeds")
    table_rows, batch = (rows_of(given[i], dims[i]) for i in (coefficients, seeds))  # type: ignore[arg-type]
    roles = (*ROLES, *[Role.BATCH] * (len(given) - FIELDS))
    return merge(size, dims, given, roles, wanted, table_rows, batch, options.row)


def _eager(options: StepOptions, t: StepTensors, history: Sequence[Tensor], outputs: int) -> Any:
    """Return the step as a function of the tensors that have a gradient, in plain PyTorch."""
    batch = t.sample.shape[0]
    noise = t.coefficients.new_empty(t.sample.shape)
    library.standard_normal(noise, t.seeds, options.step, Stream.TRANSITION, options.backend, t.steps)
    rows = (torch.full_like(t.seeds, options.row) if t.rows is None else t.rows).expand(batch)
    components = torch.zeros_like(t.seeds)
    if t.thresholds is not None:
        library.draw_components(
            components, t.seeds, t.thresholds, options.row, options.step, options.backend, t.rows, t.steps
        )

    def forward(*present: Tensor) -> tuple[Tensor, ...]:
        found = iter(present)
        primals = [None if tensor is None else next(found) for tensor in (*t[:DIFFERENTIABLE], *history)]
        sample, output, uncond, coefficients, offsets, std, *stored = primals
        made = eager_step(
            by_batch(sample),
            by_batch(output),
            by_batch(uncond),
            [by_batch(tensor) for tensor in stored],
            coefficients[rows],  # type: ignore[index]
            None if offsets is None else table_entries(offsets, rows, components),
            None if std is None else table_entries(std, rows, components),
            by_batch(noise),
            options.prediction_kind,
        )
        return tuple(tensor.reshape(t.sample.shape) for tensor in made[:outputs] if tensor is not None)

    return forward


def by_batch(tensor: Any) -> Any:
    """Return a tensor [B, ...] as [B, D], and None as it is."""
    return None if tensor is None else tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def table_entries(table: Tensor, rows: Tensor, components: Tensor) -> Tensor:
    """Return each sample's entry of a table [S or 1, K or 1, ...]."""
    row = rows if table.shape[0] > 1 else torch.zeros_like(rows)
    return table[row, components if table.shape[1] > 1 else torch.zeros_like(components)]
