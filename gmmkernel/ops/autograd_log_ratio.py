"""Gradients of log-ratios, as `autograd_log_prob` has them of log-densities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.backends.protocol import LogRatioInputs
from gmmkernel.ops import library
from gmmkernel.ops.autograd import (
    among_wanted,
    apart,
    apply,
    apply_backward,
    by_batch,
    vmap_gradients,
    vmap_results,
)
from gmmkernel.ops.autograd_log_prob import LogProbOptions, refuse_of_tiles
from gmmkernel.ops.eager import eager_log_ratio, second_derivatives
from gmmkernel.ops.exact import row_of_each
from gmmkernel.ops.op import LOG_RATIO


def log_ratio_with_gradient(inputs: LogRatioInputs, backend: str, *, tiles: bool) -> Tensor:
    """Return log-ratios and divergences [B, 2], or tiles' shares, with gradients; see `gmm_step_log_ratio`."""
    numbers, flat = LOG_RATIO.split(inputs)
    made: Tensor = apply(_LogRatio, LogProbOptions(numbers, backend, tiles), *apart(flat))[0]
    return made


class _LogRatio(torch.autograd.Function):
    @staticmethod
    def forward(options: LogProbOptions, *flat: Any) -> tuple[Tensor]:
        return (library.log_ratio(options.tiles, options.backend, LOG_RATIO.join(options.numbers, flat)),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        ctx.options = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = tuple(LOG_RATIO.primals(ctx.needs_input_grad[1:]))
        made = apply_backward(_LogRatioBackward, wanted, ctx.options, grad, *ctx.saved_tensors)
        return None, *LOG_RATIO.among_all(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: LogProbOptions, *given: Any) -> Any:
        return vmap_results(_LogRatio, LOG_RATIO, info.batch_size, in_dims, options, given)


class _LogRatioBackward(torch.autograd.Function):
    @staticmethod
    def forward(wanted: tuple[bool, ...], options: LogProbOptions, grad: Tensor, *flat: Any) -> Any:
        inputs = LOG_RATIO.join(options.numbers, flat)
        made = library.log_ratio_backward(list(wanted), grad.contiguous(), options.backend, inputs)
        return among_wanted(made, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.options, *given = inputs
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad, *given = ctx.saved_tensors
        refuse_of_tiles(ctx.options.tiles)
        forward = _eager(LOG_RATIO.join(ctx.options.numbers, given), grad)
        of_grad, of_primals = second_derivatives(forward, [grad], LOG_RATIO.primals(given), ctx.wanted, grads)
        return None, None, *of_grad, *LOG_RATIO.among_all(of_primals)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return vmap_gradients(_LogRatioBackward, LOG_RATIO, info.batch_size, in_dims, *arguments, before=1)


def _eager(inputs: LogRatioInputs, grad: Tensor) -> Any:
    """Return the log-ratio and divergence as a function of the tensors that have a gradient, in plain PyTorch.

    Where a sample has no density and `grad` [B, 2] is 0, they are constants.
    """
    row = inputs.coefficients[row_of_each(inputs.row, inputs.sample)]
    is_missing = ~(row[:, Column.SIGMA] > 0) & (grad == 0).all(1)
    row = torch.where(is_missing[:, None], torch.ones_like(row), row)
    _, flat = LOG_RATIO.split(inputs)

    def forward(*present: Tensor) -> tuple[Tensor, ...]:
        found = iter(present)
        primals = [by_batch(None if tensor is None else next(found)) for tensor in LOG_RATIO.primals(flat)]
        sample, output, old_output, prev, uncond, old_uncond, *stored = primals
        made = eager_log_ratio(prev, sample, output, old_output, uncond, old_uncond, stored, row)
        return (torch.where(is_missing[:, None], made.detach(), made),)

    return forward
