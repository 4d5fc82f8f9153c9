"""Gradients of log-densities, as `autograd` has them of steps.

Saved as well: the components' shares, [B, K], and where moments are matched exactly their energies.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gmmkernel.backends.protocol import LogProbInputs
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
from gmmkernel.ops.eager import eager_log_prob, second_derivatives
from gmmkernel.ops.exact import row_of_each
from gmmkernel.ops.op import LOG_PROB, Numbers

Made: TypeAlias = tuple[Tensor, Optional, Optional]


class LogProbOptions(NamedTuple):
    """What a log-density takes besides tensors."""

    numbers: Numbers
    backend: str
    tiles: bool


def log_prob_with_gradient(inputs: LogProbInputs, backend: str, *, tiles: bool) -> Tensor:
    """Return log-densities [B], or tiles' shares, with gradients; see `gmm_step_log_prob`."""
    numbers, flat = LOG_PROB.split(inputs)
    made: Tensor = apply(_LogProb, LogProbOptions(numbers, backend, tiles), *apart(flat))[0]
    return made


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(options: LogProbOptions, *flat: Any) -> Made:
        made = library.log_prob(options.tiles, options.backend, LOG_PROB.join(options.numbers, flat))
        result, responsibilities, energies = (*made, None, None)[:3]
        return result, responsibilities, energies

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Made) -> None:
        ctx.options = inputs[0]
        ctx.save_for_backward(*output[1:], *inputs[1:])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))

    @staticmethod
    def backward(ctx: Any, grad: Optional, _responsibilities: Optional, _energies: Optional) -> Any:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        wanted = tuple(LOG_PROB.primals(ctx.needs_input_grad[1:]))
        made = apply_backward(_LogProbBackward, wanted, ctx.options, grad, *ctx.saved_tensors)
        return None, *LOG_PROB.among_all(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: LogProbOptions, *given: Any) -> Any:
        return vmap_results(_LogProb, LOG_PROB, info.batch_size, in_dims, options, given)


class _LogProbBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        wanted: tuple[bool, ...],
        options: LogProbOptions,
        grad: Tensor,
        responsibilities: Optional,
        energies: Optional,
        *flat: Any,
    ) -> Any:
        given = grad.contiguous(), responsibilities, energies, options.backend
        made = library.log_prob_backward(list(wanted), *given, LOG_PROB.join(options.numbers, flat))
        return among_wanted(made, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, grad, _, _, *given = inputs
        ctx.save_for_backward(grad, *given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        grad, *given = ctx.saved_tensors
        refuse_of_tiles(ctx.options.tiles)
        forward = _eager(LOG_PROB.join(ctx.options.numbers, given), grad)
        of_grad, of_primals = second_derivatives(forward, [grad], LOG_PROB.primals(given), ctx.wanted, grads)
        return None, None, *of_grad, None, None, *LOG_PROB.among_all(of_primals)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return vmap_gradients(_LogProbBackward, LOG_PROB, info.batch_size, in_dims, *arguments, before=3)


def refuse_of_tiles(tiles: bool) -> None:
    """Refuse derivatives of gradients of tiles' shares."""
    if tiles:
        raise RuntimeError(
            'reduction: expected "sum" or "mean" where a gradient is differentiated, got "tiles"'
        )


def _eager(inputs: LogProbInputs, grad: Tensor) -> Any:
    """Return the log-density as a function of the tensors that have a gradient, in plain PyTorch.

    Where a sample has no density and `grad` [B], the loss's of the log-densities, is 0, it is a constant.
    """
    rows = row_of_each(inputs.row, inputs.sample)
    _, flat = LOG_PROB.split(inputs)

    def entries(table: Optional) -> Optional:
        return table if table is None else table[rows if table.shape[0] > 1 else torch.zeros_like(rows)]

    def forward(*present: Tensor) -> tuple[Tensor, ...]:
        found = iter(present)
        primals = [None if tensor is None else next(found) for tensor in LOG_PROB.primals(flat)]
        sample, output, uncond, coefficients, offsets, std, prev, weights, *more = primals
        penalized, stored = [entries(table) for table in more[:4]], more[4:]
        whole: tuple[Any, ...] = (
            by_batch(prev),
            by_batch(sample),
            by_batch(output),
            by_batch(uncond),
            [by_batch(tensor) for tensor in stored],
            coefficients[rows],  # type: ignore[index]
            entries(weights),
            entries(offsets),
            entries(std),
            None if penalized[0] is None else penalized,
        )
        is_missing = (grad == 0) & ~eager_log_prob(*whole).isfinite()
        # With ones for all that it reads a sample has one, and what is chosen from has no part in the derivatives.
        made = eager_log_prob(*(_ones_where(is_missing, value) for value in whole))
        return (made,)

    return forward


def _ones_where(chosen: Tensor, value: Any) -> Any:
    """Return what is [B, ...], or a list of such, with ones where `chosen` [B] says so."""
    if isinstance(value, list):
        return [_ones_where(chosen, each) for each in value]
    return None if value is None else torch.where(chosen.view(-1, *[1] * (value.dim() - 1)), 1.0, value)
