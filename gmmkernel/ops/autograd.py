"""Gradients of the step: a `torch.autograd.Function` over the raw operators, and one over its gradients.

Nothing is saved but the inputs: noise and component are drawn again from the seeds. First derivatives are one fused
pass; derivatives of these are plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gmmkernel.backends.constants import Stream
from gmmkernel.ops import library
from gmmkernel.ops.eager import eager_step
from gmmkernel.ops.vmap import merge_step

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

Made: TypeAlias = tuple[Tensor, Optional, Optional]


def step(options: StepOptions, tensors: StepTensors, history: Sequence[Tensor]) -> Made:
    """Return the next sample, the prediction and the components, with gradients; see `gmm_step`."""
    given = (*tensors, *history)
    if torch.compiler.is_compiling():
        given = _apart(given)
    made: Made = _Step.apply(options, *given)  # type: ignore[no-untyped-call]
    return made


def _apart(given: Sequence[Optional]) -> tuple[Optional, ...]:
    """Return the tensors such that none comes twice, which torch.compile does not take."""
    apart: list[Optional] = []
    for tensor in given:
        twice = tensor is not None and any(tensor is other for other in apart)
        apart.append(tensor.view_as(tensor) if tensor is not None and twice else tensor)
    return tuple(apart)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(options: StepOptions, *given: Any) -> Made:
        t, history = StepTensors(*given[: len(StepTensors._fields)]), given[len(StepTensors._fields) :]
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
        given = ctx.saved_tensors
        fields = len(StepTensors._fields)
        needs = ctx.needs_input_grad[1:]
        wanted = (*needs[:DIFFERENTIABLE], *needs[fields:])
        if grad is None:
            if grad_prediction is None:
                return (None,) * len(ctx.needs_input_grad)
            grad = torch.zeros_like(grad_prediction)
        # torch.compile does not trace one Function in another's backward, nor second derivatives.
        backward = _StepBackward.forward if torch.compiler.is_compiling() else _StepBackward.apply
        made = backward(wanted, ctx.options, grad, grad_prediction, *given)
        return None, *made[:DIFFERENTIABLE], *(None,) * (fields - DIFFERENTIABLE), *made[DIFFERENTIABLE:]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: StepOptions, *given: Any) -> Any:
        merged = merge_step(
            info.batch_size, in_dims[1:], given, (False,) * DIFFERENTIABLE, options.row, options.step
        )
        made = step(
            options._replace(row=merged.row, step=merged.step), StepTensors(*merged.tensors), merged.history
        )
        return tuple(merged.split(tensor) for tensor in made), tuple(None if t is None else 0 for t in made)


class _StepBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        wanted: tuple[bool, ...], options: StepOptions, grad: Tensor, grad_prediction: Optional, *given: Any
    ) -> Any:
        fields = len(StepTensors._fields)
        made = iter(
            library.gmm_step_backward(
                list(wanted),
                grad,
                grad_prediction,
                options.prediction_kind,
                options.row,
                options.step,
                options.backend,
                *given[:fields],
                list(given[fields:]) or None,
            )
        )
        return tuple(next(made) if asked else None for asked in wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, *given = inputs
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        grad, grad_prediction, *given = ctx.saved_tensors
        return None, None, *second_derivatives(ctx.wanted, ctx.options, grad, grad_prediction, given, grads)

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
        merged = merge_step(
            info.batch_size, in_dims[4:], given, wanted[:DIFFERENTIABLE], options.row, options.step
        )
        options = options._replace(row=merged.row, step=merged.step)
        of_samples = (
            merged.flat(tensor, dim)
            for tensor, dim in zip((grad, grad_prediction), in_dims[2:4], strict=True)
        )
        made = _StepBackward.apply(wanted, options, *of_samples, *merged.tensors, *merged.history)
        gradients = merged.split_gradients(made, given, in_dims[4:])
        return gradients, tuple(None if tensor is None else 0 for tensor in gradients)


def second_derivatives(
    wanted: Sequence[bool],
    options: StepOptions,
    grad: Tensor,
    grad_prediction: Optional,
    given: Sequence[Any],
    grads: Sequence[Optional],
) -> list[Optional]:
    """Return the derivatives of a step's gradients with respect to what they were computed from, by PyTorch.

    Args:
        wanted: which gradients were computed.
        options: of the step.
        grad: gradient of the next sample.
        grad_prediction: gradient of the prediction, or None.
        given: the step's tensors and history.
        grads: gradients with respect to the gradients that were wanted; None for the others.

    Returns:
        One for `grad`, one for `grad_prediction` and one for each of `given`, None where there is none.
    """
    fields = len(StepTensors._fields)
    t, history = StepTensors(*given[:fields]), given[fields:]
    batch = t.sample.shape[0]
    noise = t.coefficients.new_empty(t.sample.shape)
    library.standard_normal(noise, t.seeds, options.step, Stream.TRANSITION, options.backend, t.steps)
    noise = noise.reshape(batch, -1)
    rows = t.rows if t.rows is not None else torch.full_like(t.seeds, options.row)
    rows = rows.expand(batch)
    components = torch.zeros_like(t.seeds)
    if t.thresholds is not None:
        library.draw_components(
            components, t.seeds, t.thresholds, options.row, options.step, options.backend, t.rows, t.steps
        )

    primals = (*t[:DIFFERENTIABLE], *history)

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        of = iter(inputs)
        sample, output, uncond, coefficients, offsets, std, *stored = (
            None if tensor is None else next(of) for tensor in primals
        )
        offset = None if offsets is None else offsets[_entry(offsets, rows), components]
        deviation = None
        if std is not None:
            deviation = std[
                _entry(std, rows), components if std.shape[1] > 1 else torch.zeros_like(components)
            ]
        made = eager_step(
            sample.reshape(batch, -1),
            output.reshape(batch, -1),
            None if uncond is None else uncond.reshape(batch, -1),
            [tensor.reshape(batch, -1) for tensor in stored],
            coefficients[rows],
            offset,
            deviation,
            noise,
            options.prediction_kind,
        )
        return tuple(tensor.reshape(t.sample.shape) for tensor in made if tensor is not None)

    present = [tensor for tensor in primals if tensor is not None]
    asked = [flag for flag, tensor in zip(wanted, primals, strict=True) if tensor is not None]

    def backward(*inputs: Tensor) -> tuple[Tensor, ...]:
        cotangents, values = inputs[:cotangent_count], inputs[cotangent_count:]
        _, pull = torch.func.vjp(forward, *values)
        if len(cotangents) == 1 and options.prediction_kind:
            cotangents = (*cotangents, torch.zeros_like(cotangents[0]))
        made = pull(cotangents)
        return tuple(gradient for gradient, flag in zip(made, asked, strict=True) if flag)

    cotangents = [grad] if grad_prediction is None else [grad, grad_prediction]
    cotangent_count = len(cotangents)
    made, pull = torch.func.vjp(backward, *cotangents, *present)
    of_gradients = [given for given, flag in zip(grads, wanted, strict=True) if flag]
    filled = tuple(
        torch.zeros_like(value) if given is None else given
        for given, value in zip(of_gradients, made, strict=True)
    )
    found = iter(pull(filled))
    result: list[Optional] = [next(found), None if grad_prediction is None else next(found)]
    of_primals = [None if tensor is None else next(found) for tensor in primals]
    return [
        *result,
        *of_primals[:DIFFERENTIABLE],
        *[None] * (fields - DIFFERENTIABLE),
        *of_primals[DIFFERENTIABLE:],
    ]


def _entry(table: Tensor, rows: Tensor) -> Tensor:
    return rows if table.shape[0] > 1 else torch.zeros_like(rows)
