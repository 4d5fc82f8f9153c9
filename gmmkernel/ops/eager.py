"""The step in plain PyTorch, for derivatives of its gradients: of any order, but not fused, and not in fixed bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column, Prediction


def eager_step(
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    row: Tensor,
    offset: Tensor | None,
    std: Tensor | None,
    noise: Tensor,
    prediction_kind: int,
) -> tuple[Tensor, Tensor | None]:
    """Return the next sample and the prediction asked for, as `gmm_step` does.

    Args:
        sample: [B, D].
        model_output: like `sample`.
        model_output_uncond: like `sample`, or None without a guidance pair.
        history: up to 4 tensors like `sample`.
        row: [B, 16], each sample's coefficients, in the dtype to compute in.
        offset: [B, D] of that dtype, each sample's component's, or None without a mixture.
        std: [B, R] of that dtype, or None without a mixture.
        noise: [B, D] of that dtype.
        prediction_kind: a `Prediction`.
    """
    x, o = sample.to(row.dtype), model_output.to(row.dtype)
    c = {column: row[:, column, None] for column in Column}
    if model_output_uncond is not None:
        u = model_output_uncond.to(row.dtype)
        o = u + c[Column.GUIDANCE] * (o - u)
    x0 = c[Column.X0_SAMPLE] * x + c[Column.X0_OUTPUT] * o
    x0 = torch.clamp(x0, c[Column.CLIP_MIN], c[Column.CLIP_MAX])
    y = c[Column.SAMPLE] * x + c[Column.OUTPUT] * o + c[Column.X0] * x0
    for j, stored in enumerate(history):
        y = y + c[Column(Column.HISTORY_0 + j)] * stored.to(row.dtype)
    sigma = c[Column.SIGMA].expand_as(y)
    if offset is not None and std is not None:
        y = y + c[Column.OFFSET] * offset
        sigma = torch.cat([std, sigma[:, std.shape[1] :]], dim=1)
    y = y + sigma * noise
    predictions = {
        Prediction.NONE: None,
        Prediction.X0: x0,
        Prediction.EPSILON: c[Column.EPS_SAMPLE] * x + c[Column.EPS_OUTPUT] * o,
        Prediction.MODEL_OUTPUT: o,
    }
    made = predictions[Prediction(prediction_kind)]
    return y.to(sample.dtype), None if made is None else made.to(sample.dtype)
