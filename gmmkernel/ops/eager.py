"""Transitions and losses in plain PyTorch, for derivatives of gradients: of any order, not fused, nor in fixed bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column, Prediction, TrainingColumn
from gmmkernel.ops.exact import eager_penalties


def predict(
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    row: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sample, the guided output, x0 and the mean before any offset.

    Args:
        sample: [B, D].
        model_output: like `sample`.
        model_output_uncond: like `sample`, or None without a guidance pair.
        history: up to 4 tensors like `sample`.
        row: [B, 16], each sample's coefficients, in the dtype to compute in.
    """
    x, o = sample.to(row.dtype), model_output.to(row.dtype)
    c = {column: row[:, column, None] for column in Column}
    if model_output_uncond is not None:
        u = model_output_uncond.to(row.dtype)
        o = u + c[Column.GUIDANCE] * (o - u)
    x0 = c[Column.X0_SAMPLE] * x + c[Column.X0_OUTPUT] * o
    # Not torch.clamp, whose derivative at a bound is another in every few versions; see docs/gradients.md.
    low, high = c[Column.CLIP_MIN], c[Column.CLIP_MAX]
    x0 = torch.where(x0 < low, low, x0)
    x0 = torch.where(x0 > high, high, x0)
    mean = c[Column.SAMPLE] * x + c[Column.OUTPUT] * o + c[Column.X0] * x0
    for j, stored in enumerate(history):
        mean = mean + c[Column(Column.HISTORY_0 + j)] * stored.to(row.dtype)
    return x, o, x0, mean


def eager_step(
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    row: Tensor,
    shift: Tensor | None,
    std: Tensor | None,
    noise: Tensor,
    prediction_kind: int,
) -> tuple[Tensor, Tensor | None]:
    """Return the next sample and the prediction asked for, as `gmm_step` does.

    Args:
        sample: as `predict` has it, like those up to the row.
        model_output: the same.
        model_output_uncond: the same.
        history: the same.
        row: the same.
        shift: [B, D] of the row's dtype, what the mixture adds to each sample's mean, or None without one.
        std: [B, R] of that dtype, or None without a mixture.
        noise: [B, D] of that dtype.
        prediction_kind: a `Prediction`.
    """
    x, o, x0, mean = predict(sample, model_output, model_output_uncond, history, row)
    y = mean
    sigma = row[:, Column.SIGMA, None].expand_as(y)
    if shift is not None and std is not None:
        y = y + shift
        sigma = torch.cat([std, sigma[:, std.shape[1] :]], dim=1)
    y = y + sigma * noise
    predictions = {
        Prediction.NONE: None,
        Prediction.X0: x0,
        Prediction.EPSILON: row[:, Column.EPS_SAMPLE, None] * x + row[:, Column.EPS_OUTPUT, None] * o,
        Prediction.MODEL_OUTPUT: o,
        Prediction.MEAN: mean,
    }
    made = predictions[Prediction(prediction_kind)]
    return y.to(sample.dtype), None if made is None else made.to(sample.dtype)


def eager_log_prob(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    row: Tensor,
    weights: Tensor | None,
    offsets: Tensor | None,
    std: Tensor | None,
    penalized: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return log-densities [B], as `gmm_step_log_prob` does.

    Args:
        prev_sample: [B, D].
        sample: as `predict` has it, like those up to the row.
        model_output: the same.
        model_output_uncond: the same.
        history: the same.
        row: the same.
        weights: [B, K] of the row's dtype, each sample's mixture's, or None without one.
        offsets: [B, K, D] of that dtype, or None.
        std: [B, 1 or K, R] of that dtype, or None.
        penalized: what `exact.penalties` takes, where moments are matched exactly.
    """
    *_, mean = predict(sample, model_output, model_output_uncond, history, row)
    distance = without = (prev_sample.to(row.dtype) - mean)[:, None]
    sigma = row[:, Column.SIGMA, None, None].expand_as(distance)
    if offsets is not None and std is not None:
        distance = distance - row[:, Column.OFFSET, None, None] * offsets
        sigma = torch.cat([std, sigma[..., std.shape[2] :].expand(-1, std.shape[1], -1)], dim=2)
    energy = (distance / sigma).square() / 2 + sigma.log() + math.log(2 * math.pi) / 2
    level = -energy.sum(2)
    if penalized is not None:
        energies = ((distance / sigma).square() - (without / sigma).square()).sum(2) / 2
        level = level - eager_penalties(energies, row, penalized)
    return torch.logsumexp(level if weights is None else weights.log() + level, dim=1)


def eager_log_ratio(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    old_model_output: Tensor,
    model_output_uncond: Tensor | None,
    old_model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    row: Tensor,
) -> Tensor:
    """Return log-ratios and divergences [B, 2], as `gmm_step_log_ratio` does.

    Args:
        prev_sample: [B, D].
        sample: as `predict` has it.
        model_output: the same.
        old_model_output: the same before.
        model_output_uncond: as `predict` has it.
        old_model_output_uncond: the same before.
        history: as `predict` has it.
        row: the same.
    """
    *_, mean = predict(sample, model_output, model_output_uncond, history, row)
    *_, old_mean = predict(sample, old_model_output, old_model_output_uncond, history, row)
    sigma = row[:, Column.SIGMA, None]
    change, distance = (mean - old_mean) / sigma, (prev_sample.to(row.dtype) - old_mean) / sigma
    return torch.stack([(change * (distance - change / 2)).sum(1), change.square().sum(1) / 2], dim=1)


def eager_skip_step_loss(
    model_output: Tensor, sample: Tensor | None, row: Tensor, noise: Tensor, fresh_noise: Tensor
) -> Tensor:
    """Return losses [B], as `skip_step_loss` does.

    Args:
        model_output: [B, D].
        sample: like `model_output`, or None where no row reads it.
        row: [B, 9], each sample's coefficients, in the dtype to compute in.
        noise: [B, D] of that dtype, that in the training sample.
        fresh_noise: the same, what else the second target has.
    """
    c = {column: row[:, column, None] for column in TrainingColumn}
    epsilon = c[TrainingColumn.EPS_OUTPUT] * model_output.to(row.dtype)
    if sample is not None:
        epsilon = epsilon + c[TrainingColumn.EPS_SAMPLE] * sample.to(row.dtype)
    target = c[TrainingColumn.SKIP_NOISE] * noise + c[TrainingColumn.SKIP_FRESH] * fresh_noise
    own = c[TrainingColumn.WEIGHT] * (noise - epsilon).square()
    skip = c[TrainingColumn.SKIP_WEIGHT] * (target - c[TrainingColumn.SKIP_SCALE] * epsilon).square()
    return (own + skip).mean(1)


Functions = Callable[..., tuple[Tensor, ...]]


def second_derivatives(
    forward: Functions,
    cotangents: Sequence[Tensor],
    primals: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the derivatives of a function's gradients with respect to what they are computed from.

    Args:
        forward: takes the primals that are not None; returns a tuple.
        cotangents: the gradients of its results.
        primals: its inputs.
        wanted: of which primals the gradient was computed.
        grads: gradients of a loss with respect to those gradients; None for zeros.

    Returns:
        Gradients of the cotangents; of the primals, None where they are.
    """
    present = [tensor for tensor in primals if tensor is not None]
    asked = [flag for flag, tensor in zip(wanted, primals, strict=True) if tensor is not None]
    count = len(cotangents)

    def backward(*inputs: Tensor) -> tuple[Tensor, ...]:
        _, pullback = torch.func.vjp(forward, *inputs[count:])  # type: ignore[misc]
        made = pullback(tuple(inputs[:count]))
        return tuple(gradient for gradient, flag in zip(made, asked, strict=True) if flag)

    # Typed as if it might return auxiliary data as well.
    made, pullback = torch.func.vjp(backward, *cotangents, *present)  # type: ignore[misc]
    of_gradients = [given for given, flag in zip(grads, wanted, strict=True) if flag]
    filled = tuple(
        torch.zeros_like(value) if given is None else given
        for given, value in zip(of_gradients, made, strict=True)
    )
    found = iter(pullback(filled))
    of_cotangents = [next(found) for _ in cotangents]
    return of_cotangents, [None if tensor is None else next(found) for tensor in primals]
