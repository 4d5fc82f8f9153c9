"""How gradients flow back through one step of one sample: the specification that every backend repeats bit for bit.

The derivatives of `transition`, with its terms in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmmkernel.backends.constants import Column, Prediction
from gmmkernel.backends.reference.arithmetic import Array, fma
from gmmkernel.backends.reference.sums import tree_sum


@dataclass(frozen=True)
class SampleGradients:
    """Derivatives of a loss with respect to what a step read of a sample, float32 or float64 as it computes."""

    sample: Array
    model_output: Array
    model_output_uncond: Array
    history: list[Array]
    row: Array


def transition_backward(
    grad: Array,
    grad_prediction: Array | None,
    prediction_kind: Prediction,
    x: Array,
    output: Array,
    output_uncond: Array | None,
    history: Sequence[Array],
    row: Array,
    offset_terms: Array,
    sigma_terms: Array,
) -> SampleGradients:
    """Return the gradients of one flattened sample.

    Clipping is a choice: of CLIP_MIN where x0 < CLIP_MIN, then of CLIP_MAX where what that gives > CLIP_MAX, else of
    x0; what is chosen gets all of the derivative. So a value that meets a bound passes it on, as a NaN does, equal
    bounds share out what lies below and above them, and where CLIP_MIN > CLIP_MAX the latter takes everything.

    Args:
        grad: [D] derivative of the loss with respect to the next sample; float32 or float64, like every array here.
        grad_prediction: [D] the same of the prediction that was asked for, or None.
        prediction_kind: which one.
        x: [D] the sample.
        output: [D] the model's output (the conditional one of a guidance pair).
        output_uncond: [D] the unconditional output, or None when there is no pair.
        history: up to 4 arrays [D].
        row: [16] coefficients in the order of `Column`.
        offset_terms: [D] each element's part of the derivative with respect to the row's `Column.OFFSET`.
        sigma_terms: [D] the same of `Column.SIGMA`.

    Returns:
        Gradients of the tensors, elementwise, and of the row's 16 coefficients, each a `tree_sum` over elements.
    """
    o = output
    if output_uncond is not None:
        o = fma(row[Column.GUIDANCE], output - output_uncond, output_uncond)
    x0 = fma(row[Column.X0_OUTPUT], o, row[Column.X0_SAMPLE] * x)
    below = x0 < row[Column.CLIP_MIN]
    x0 = np.where(below, row[Column.CLIP_MIN], x0)
    above = x0 > row[Column.CLIP_MAX]
    x0 = np.where(above, row[Column.CLIP_MAX], x0)

    def of(kind: Prediction) -> Array | None:
        return grad_prediction if prediction_kind == kind else None

    if (more := of(Prediction.MEAN)) is not None:
        grad = grad + more
    grad_clipped = row[Column.X0] * grad
    grad_output = row[Column.OUTPUT] * grad
    grad_x = row[Column.SAMPLE] * grad
    if (more := of(Prediction.X0)) is not None:
        grad_clipped = grad_clipped + more
    grad_x0 = np.where(below | above, x.dtype.type(0), grad_clipped)
    grad_output = fma(row[Column.X0_OUTPUT], grad_x0, grad_output)
    grad_x = fma(row[Column.X0_SAMPLE], grad_x0, grad_x)
    if (more := of(Prediction.MODEL_OUTPUT)) is not None:
        grad_output = grad_output + more
    if (more := of(Prediction.EPSILON)) is not None:
        grad_output = fma(row[Column.EPS_OUTPUT], more, grad_output)
        grad_x = fma(row[Column.EPS_SAMPLE], more, grad_x)

    nothing = np.zeros_like(x)
    terms = np.zeros((len(Column), x.size), dtype=x.dtype)
    terms[Column.X0_SAMPLE] = grad_x0 * x
    terms[Column.X0_OUTPUT] = grad_x0 * o
    terms[Column.CLIP_MIN] = np.where(below & ~above, grad_clipped, nothing)
    terms[Column.CLIP_MAX] = np.where(above, grad_clipped, nothing)
    terms[Column.SAMPLE] = grad * x
    terms[Column.OUTPUT] = grad * o
    terms[Column.X0] = grad * x0
    for j, prediction in enumerate(history):
        terms[Column.HISTORY_0 + j] = grad * prediction
    grad_conditional, grad_uncond = grad_output, nothing
    if output_uncond is not None:
        terms[Column.GUIDANCE] = grad_output * (output - output_uncond)
        grad_conditional = row[Column.GUIDANCE] * grad_output
        grad_uncond = grad_output - grad_conditional
    terms[Column.SIGMA] = sigma_terms
    terms[Column.OFFSET] = offset_terms
    if (more := of(Prediction.EPSILON)) is not None:
        terms[Column.EPS_SAMPLE] = more * x
        terms[Column.EPS_OUTPUT] = more * o

    return SampleGradients(
        sample=grad_x,
        model_output=grad_conditional,
        model_output_uncond=grad_uncond,
        history=[row[Column.HISTORY_0 + j] * grad for j in range(len(history))],
        row=tree_sum(terms),
    )
