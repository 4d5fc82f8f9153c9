"""One sampling step of one sample: the specification that every backend repeats bit for bit.

Equation by equation this is the common form of DDIM, DDPM, multistep solvers and rectified flow, with the mixture
transition of DDIM-GMM (Gabbur, arXiv 2311.04938):

    x_s ~ sum_k pi_k N(mean + w delta_k, diag(std_k^2))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmmkernel.backends.constants import Column, Stream
from gmmkernel.backends.reference.arithmetic import Array, clip, fma
from gmmkernel.backends.reference.normal import standard_normal
from gmmkernel.backends.reference.philox import random_words


@dataclass(frozen=True)
class Step:
    """What one step computes, in the arithmetic's dtype (float32 or float64)."""

    sample: Array
    mean: Array
    x0: Array
    epsilon: Array
    model_output: Array


def choose_component(seed: int, step: int, cdf: Array) -> int:
    """Draw a component: the number of values of the cdf that one random word reaches.

    Args:
        seed: the sample's seed.
        step: row index in the full schedule.
        cdf: int64 [K - 1], floor(2^32 cdf), ascending.

    Returns:
        k in 0 .. K - 1, with probability pi_k to within 2^-32.
    """
    word = random_words(seed, step, Stream.COMPONENT, first_block=0, blocks=1)[0, 0]
    return int(np.count_nonzero(np.int64(word) >= cdf))


def predict(
    x: Array, output: Array, output_uncond: Array | None, history: Sequence[Array], row: Array
) -> tuple[Array, Array, Array]:
    """Return the guided output, x0 and the mean before any offset, with the arguments of `transition`."""
    o = output
    if output_uncond is not None:
        o = fma(row[Column.GUIDANCE], output - output_uncond, output_uncond)

    x0 = fma(row[Column.X0_OUTPUT], o, row[Column.X0_SAMPLE] * x)
    x0 = clip(x0, row[Column.CLIP_MIN], row[Column.CLIP_MAX])

    mean = row[Column.X0] * x0
    mean = fma(row[Column.OUTPUT], o, mean)
    mean = fma(row[Column.SAMPLE], x, mean)
    for j, prediction in enumerate(history):
        if row[Column.HISTORY_0 + j] != 0:
            mean = fma(row[Column.HISTORY_0 + j], prediction, mean)
    return o, x0, mean


def transition(
    x: Array,
    output: Array,
    output_uncond: Array | None,
    history: Sequence[Array],
    row: Array,
    offset: Array | None,
    std: Array,
    seed: int,
    step: int,
    first_element: int = 0,
) -> Step:
    """Compute one step of one flattened sample.

    Terms that a row switches off for the whole sample are absent, not multiplied by zero: a history tensor whose
    coefficient is 0, the offset where its coefficient is 0, the noise where sigma is 0 and the mixture gives no std.

    Args:
        x: [D] the sample; float32 or float64, like every array here.
        output: [D] the model's output (the conditional one of a guidance pair).
        output_uncond: [D] the unconditional output, or None when there is no pair.
        history: up to 4 arrays [D], stored predictions of a multistep sampler.
        row: [16] coefficients in the order of `Column`.
        offset: [D] offset of the drawn component, or None without a mixture.
        std: [R], R <= D, standard deviations of the first R elements; the others have the row's sigma.
        seed: the sample's seed.
        step: row index in the full schedule, the noise counter's third word.
        first_element: where the noise of this sample begins, if it is a shard of a larger one.

    Returns:
        The next sample and the predictions made on the way.
    """
    o, x0, mean = predict(x, output, output_uncond, history, row)
    result = mean
    if offset is not None and row[Column.OFFSET] != 0:
        result = fma(row[Column.OFFSET], offset, mean)

    if std.size > 0 or row[Column.SIGMA] != 0:
        noise = standard_normal(seed, step, Stream.TRANSITION, x.size, first_element).astype(x.dtype)
        deviation = np.full_like(x, row[Column.SIGMA])
        deviation[: std.size] = std
        result = fma(deviation, noise, result)

    epsilon = fma(row[Column.EPS_OUTPUT], o, row[Column.EPS_SAMPLE] * x)
    return Step(sample=result, mean=mean, x0=x0, epsilon=epsilon, model_output=o)
