"""Training on one flattened sample: the noise it gets, the loss of S2-DM and its gradients, for every backend.

(Wang, Li, "S2-DMs: Skip-Step Diffusion Models", arXiv 2401.01520.) With the row's coefficients in capitals, e1 the
noise in the training sample, from the stream of training, and e2 fresh noise, from that of skipped steps:

    x_t  = SIGNAL x0 + NOISE e1
    eps  = EPS_OUTPUT o + EPS_SAMPLE x_t
    loss = mean(WEIGHT (e1 - eps)^2 + SKIP_WEIGHT (SKIP_NOISE e1 + SKIP_FRESH e2 - SKIP_SCALE eps)^2)

Terms that a row switches off are absent, not multiplied by zero: x_t where EPS_SAMPLE is 0, e2 where SKIP_FRESH is 0,
and the second square, with all that it needs, where SKIP_WEIGHT is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gmmkernel.backends.constants import Stream, TrainingColumn
from gmmkernel.backends.reference.arithmetic import Array, fma
from gmmkernel.backends.reference.normal import standard_normal
from gmmkernel.backends.reference.sums import tree_sum


class Residuals(NamedTuple):
    """How far the prediction of the noise is off, [D] each.

    Attributes:
        own: e1 - eps.
        skip: the second target less SKIP_SCALE eps; None where the row switches it off.
    """

    own: Array
    skip: Array | None


def training_noise(seed: int, step: int, like: Array, first_element: int = 0) -> Array:
    """Return e1 in the dtype of an array [D]."""
    noise: Array = standard_normal(seed, step, Stream.TRAINING, like.size, first_element).astype(like.dtype)
    return noise


def add_noise(x0: Array, row: Array, seed: int, step: int, first_element: int) -> tuple[Array, Array]:
    """Return x_t and the noise in it.

    Args:
        x0: [D] the data; float32 or float64, like every array here.
        row: [9] coefficients in the order of `TrainingColumn`.
        seed: the sample's seed.
        step: third word of the noise counter.
        first_element: where the noise begins, if the data are a shard of a larger sample.
    """
    e1 = training_noise(seed, step, x0, first_element)
    return fma(row[TrainingColumn.NOISE], e1, row[TrainingColumn.SIGNAL] * x0), e1


def residuals(output: Array, sample: Array | None, row: Array, seed: int, step: int) -> Residuals:
    """Return how far a model's output is off.

    Args:
        output: [D] the model's output.
        sample: [D] x_t; None where the row does not read it.
        row: as `add_noise` has it, like those that follow.
        seed: the same.
        step: the same.
    """
    eps = row[TrainingColumn.EPS_OUTPUT] * output
    if row[TrainingColumn.EPS_SAMPLE] != 0 and sample is not None:
        eps = fma(row[TrainingColumn.EPS_SAMPLE], sample, eps)
    e1 = training_noise(seed, step, output)
    own = e1 - eps
    if row[TrainingColumn.SKIP_WEIGHT] == 0:
        return Residuals(own, None)
    target = row[TrainingColumn.SKIP_NOISE] * e1
    if row[TrainingColumn.SKIP_FRESH] != 0:
        e2 = standard_normal(seed, step, Stream.TRAINING_SKIP, output.size).astype(output.dtype)
        target = fma(row[TrainingColumn.SKIP_FRESH], e2, target)
    return Residuals(own, fma(-row[TrainingColumn.SKIP_SCALE], eps, target))


def skip_step_loss(
    output: Array, sample: Array | None, row: Array, seed: int, step: int
) -> tuple[Array, Array]:
    """Return the loss of one sample, NaN for D = 0, and its weighted residual, with the arguments of `residuals`.

    The latter is WEIGHT times the one residual and SKIP_WEIGHT SKIP_SCALE times the other: the loss's gradient with
    respect to eps is -2/D of it.
    """
    own, skip = residuals(output, sample, row, seed, step)
    residual = row[TrainingColumn.WEIGHT] * own
    terms = residual * own
    if skip is not None:
        terms = fma(row[TrainingColumn.SKIP_WEIGHT] * skip, skip, terms)
        residual = fma(row[TrainingColumn.SKIP_WEIGHT] * row[TrainingColumn.SKIP_SCALE], skip, residual)
    return tree_sum(terms) / output.dtype.type(output.size), residual


def residual_scale(grad: Array, coefficient: Array, elements: int) -> Array:
    """Return what makes a gradient of a residual.

    Args:
        grad: scalar, derivative of a loss with respect to the sample's.
        coefficient: the row's EPS_OUTPUT or EPS_SAMPLE.
        elements: D.
    """
    scale: Array = (grad * (grad.dtype.type(-2) / grad.dtype.type(elements))) * coefficient
    return scale


def skip_step_loss_backward(
    grad: Array, output: Array, sample: Array | None, row: Array, seed: int, step: int
) -> tuple[Array, Array]:
    """Return the gradients of the model's output and of x_t.

    Args:
        grad: scalar, derivative of a loss with respect to the sample's.
        output: as `residuals` has it, like those that follow.
        sample: the same.
        row: the same.
        seed: the same.
        step: the same.
    """
    _, residual = skip_step_loss(output, sample, row, seed, step)
    of_output = residual_scale(grad, row[TrainingColumn.EPS_OUTPUT], output.size) * residual
    if row[TrainingColumn.EPS_SAMPLE] == 0:
        return of_output, np.zeros_like(output)
    return of_output, residual_scale(grad, row[TrainingColumn.EPS_SAMPLE], output.size) * residual
