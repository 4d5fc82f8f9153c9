"""Gradients of log-densities, as `autograd` has them of steps. Saved as well: the responsibilities, [B, K]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel.ops import library
from gmmkernel.ops.autograd import Optional, among_wanted, apart, by_batch, merge_batch, with_signature
from gmmkernel.ops.eager import eager_log_prob, second_derivatives
from gmmkernel.ops.vmap import Merged, Role, merge, rows_of


class LogProbOptions(NamedTuple):
    """What a log-density takes besides tensors."""

    row: int
    backend: str


class LogProbTensors(NamedTuple):
    """The tensors of a log-density, those with a gradient first; the history comes after them."""

    sample: Tensor
    model_output: Tensor
    model_output_uncond: Optional
    coefficients: Tensor
    offsets: Optional
    std: Optional
    prev_sample: Tensor
    weights: Optional
    rows: Optional


DIFFERENTIABLE = 8  # the first fields of LogProbTensors
FIELDS = len(LogProbTensors._fields)
ROLES = (*[Role.BATCH] * 3, *[Role.TABLE] * 3, Role.BATCH, Role.TABLE, Role.ROWS)


def log_prob_with_gradient(
    options: LogProbOptions, tensors: LogProbTensors, history: Sequence[Tensor]
) -> Tensor:
    """Return log-densities [B] with gradients; see `gmm_step_log_prob`."""
    made: Tensor = _LogProb.apply(options, *apart((*tensors, *history)))[0]  # type: ignore[no-untyped-call]
    return made


class _LogProb(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(options: LogProbOptions, *given: Any) -> tuple[Tensor, Optional]:
        made = library.log_prob(options.row, options.backend, *given[:FIELDS], list(given[FIELDS:]) or None)
        return made[0], made[1] if len(made) > 1 else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Optional]) -> None:
        ctx.options = inputs[0]
        ctx.save_for_backward(output[1], *inputs[1:])
        ctx.set_materialize_grads(False)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Optional, _responsibilities: Optional) -> Any:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        needs = ctx.needs_input_grad[1:]
        wanted = (*needs[:DIFFERENTIABLE], *needs[FIELDS:])
        # torch.compile does not trace one Function in another's backward, nor second derivatives.
        backward = _LogProbBackward.forward if torch.compiler.is_compiling() else _LogProbBackward.apply
        return None, *_among_all(backward(wanted, ctx.options, grad, *ctx.saved_tensors))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: LogProbOptions, *given: Any) -> Any:
        merged = _merge(info.batch_size, in_dims[1:], given, (False,) * len(given), options)
        made = _LogProb.apply(options._replace(row=merged.row), *merged.tensors)  # type: ignore[no-untyped-call]
        return tuple(map(merged.split, made)), tuple(None if tensor is None else 0 for tensor in made)


class _LogProbBackward(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(
        wanted: tuple[bool, ...],
        options: LogProbOptions,
        grad: Tensor,
        responsibilities: Optional,
        *given: Any,
    ) -> Any:
        made = library.log_prob_backward(
            list(wanted),
            grad.contiguous(),
            responsibilities,
            options.row,
            options.backend,
            *given[:FIELDS],
            list(given[FIELDS:]) or None,
        )
        return among_wanted(made, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, grad, _, *given = inputs
        ctx.save_for_backward(grad, *given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        grad, *given = ctx.saved_tensors
        primals = [*given[:DIFFERENTIABLE], *given[FIELDS:]]
        forward = _eager(ctx.options, LogProbTensors(*given[:FIELDS]), given[FIELDS:])
        of_grad, of_primals = second_derivatives(forward, [grad], primals, ctx.wanted, grads)
        return None, None, *of_grad, None, *_among_all(of_primals)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        wanted: tuple[bool, ...],
        options: LogProbOptions,
        grad: Tensor,
        responsibilities: Optional,
        *given: Any,
    ) -> Any:
        merged = _merge(info.batch_size, in_dims[4:], given, _among_all(wanted, False), options)
        of_batch = merge_batch(info.batch_size, in_dims[2:4], (grad, responsibilities))
        of = options._replace(row=merged.row)
        made = _LogProbBackward.apply(wanted, of, *of_batch, *merged.tensors)  # type: ignore[no-untyped-call]
        primals, dims = ([*of[:DIFFERENTIABLE], *of[FIELDS:]] for of in (given, in_dims[4:]))
        gradients = merged.split_gradients(made, primals, dims)
        return gradients, tuple(None if tensor is None else 0 for tensor in gradients)


def _among_all(of_primals: Sequence[Any], nothing: Any = None) -> tuple[Any, ...]:
    return *of_primals[:DIFFERENTIABLE], *[nothing] * (FIELDS - DIFFERENTIABLE), *of_primals[DIFFERENTIABLE:]


def _merge(
    size: int,
    dims: Sequence[int | None],
    given: Sequence[Optional],
    wanted: Sequence[bool],
    options: LogProbOptions,
) -> Merged:
    sample, coefficients = (
        LogProbTensors._fields.index("sample"),
        LogProbTensors._fields.index("coefficients"),
    )
    batch, table_rows = (rows_of(given[i], dims[i]) for i in (sample, coefficients))  # type: ignore[arg-type]
    roles = (*ROLES, *[Role.BATCH] * (len(given) - FIELDS))
    return merge(size, dims, given, roles, wanted, table_rows, batch, options.row)


def _eager(options: LogProbOptions, t: LogProbTensors, history: Sequence[Tensor]) -> Any:
    """Return the log-density as a function of the tensors that have a gradient, in plain PyTorch."""
    like = torch.zeros(t.sample.shape[0], dtype=torch.int64, device=t.sample.device)
    rows = (like + options.row if t.rows is None else t.rows).expand(t.sample.shape[0])

    def entries(table: Optional) -> Optional:
        return table if table is None else table[rows if table.shape[0] > 1 else torch.zeros_like(rows)]

    def forward(*present: Tensor) -> tuple[Tensor, ...]:
        found = iter(present)
        primals = [None if tensor is None else next(found) for tensor in (*t[:DIFFERENTIABLE], *history)]
        sample, output, uncond, coefficients, offsets, std, prev, weights, *stored = primals
        made = eager_log_prob(
            by_batch(prev),
            by_batch(sample),
            by_batch(output),
            by_batch(uncond),
            [by_batch(tensor) for tensor in stored],
            coefficients[rows],  # type: ignore[index]
            entries(weights),
            entries(offsets),
            entries(std),
        )
        return (made,)

    return forward
