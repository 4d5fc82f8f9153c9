"""The log-ratio of two transitions of one sample, and its gradients: the specification for every backend.

A transition whose model's output has changed from o_old to o leads to y with another density. With D the change of its
mean, in units of its standard deviation s, and e how far y is from the old mean,

    D = (mean - mean_old) / s,   e = (y - mean_old) / s
    log p(y) - log p_old(y) = sum D (e - D / 2)        KL(p || p_old) = sum D^2 / 2

D is made of o - o_old, which is exact where the two are close: it is 0 where they are equal, and has the relative
precision of one float32 where the difference of two log-densities, each of the order of the number of elements, has
none. Where a predicted x0 is clipped, the difference of the two is taken after clipping.

Where the standard deviation is not above 0 there is no density, and all of this is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gmmkernel.backends.constants import Column, Prediction
from gmmkernel.backends.reference.arithmetic import Array, fma
from gmmkernel.backends.reference.backward import SampleGradients, transition_backward
from gmmkernel.backends.reference.sums import tree_sum
from gmmkernel.backends.reference.transition import predict


class Transitions(NamedTuple):
    """What two transitions read of a sample; float32 or float64, like every array here.

    Attributes:
        x: [D] the sample.
        y: [D] the sample that the transition led to.
        output: [D] the model's output (the conditional one of a guidance pair).
        old_output: [D] the same before.
        output_uncond: [D] the unconditional output, or None when there is no pair.
        old_output_uncond: [D] the same before.
        history: up to 4 arrays [D].
        row: [16] coefficients in the order of `Column`.
    """

    x: Array
    y: Array
    output: Array
    old_output: Array
    output_uncond: Array | None
    old_output_uncond: Array | None
    history: list[Array]
    row: Array

    def part(self, piece: slice) -> Transitions:
        """Return this of some of the elements."""
        x, y, output, old, uncond, old_uncond = (None if a is None else a[piece] for a in self[:6])
        assert x is not None
        assert y is not None
        assert output is not None
        assert old is not None
        stored = [each[piece] for each in self.history]
        return Transitions(x, y, output, old, uncond, old_uncond, stored, self.row)


class RatioGradients(NamedTuple):
    """Derivatives of a loss with respect to each array of `Transitions`."""

    x: Array
    y: Array
    output: Array
    old_output: Array
    output_uncond: Array
    old_output_uncond: Array
    history: list[Array]


def _change_and_distance(t: Transitions) -> tuple[Array, Array, Array]:
    """Return D and e, and 1 / s, a scalar."""
    row, one = t.row, t.x.dtype.type(1)
    o, x0, _ = predict(t.x, t.output, t.output_uncond, (), row)
    old_o, old_x0, old_mean = predict(t.x, t.old_output, t.old_output_uncond, t.history, row)
    change = t.output - t.old_output
    if t.output_uncond is not None and t.old_output_uncond is not None:
        of_uncond = t.output_uncond - t.old_output_uncond
        change = fma(row[Column.GUIDANCE], change - of_uncond, of_uncond)
    is_clipped = _is_clipped(t.x, o, row) | _is_clipped(t.x, old_o, row)
    of_x0 = np.where(is_clipped, x0 - old_x0, row[Column.X0_OUTPUT] * change)
    of_mean = fma(row[Column.X0], of_x0, row[Column.OUTPUT] * change)
    inverse = one / row[Column.SIGMA] if row[Column.SIGMA] > 0 else t.x.dtype.type(np.nan)
    return of_mean * inverse, (t.y - old_mean) * inverse, inverse


def _is_clipped(x: Array, o: Array, row: Array) -> Array:
    free = fma(row[Column.X0_OUTPUT], o, row[Column.X0_SAMPLE] * x)
    below = free < row[Column.CLIP_MIN]
    clipped: Array = below | (np.where(below, row[Column.CLIP_MIN], free) > row[Column.CLIP_MAX])
    return clipped


def log_ratio_terms(t: Transitions) -> tuple[Array, Array]:
    """Return what a log-ratio and a divergence are the sums of, [D] each."""
    change, distance, _ = _change_and_distance(t)
    half = t.x.dtype.type(0.5)
    return change * fma(-half, change, distance), (half * change) * change


def log_ratio(t: Transitions) -> tuple[Array, Array]:
    """Return the log-ratio and the divergence, scalars."""
    of_ratio, of_divergence = log_ratio_terms(t)
    return tree_sum(of_ratio), tree_sum(of_divergence)


def log_ratio_backward(t: Transitions, of_ratio: Array, of_divergence: Array) -> RatioGradients:
    """Return the gradients, given a loss's of the log-ratio and of the divergence, scalars.

    What reaches both means alike, the sample's and the history's, is made of the difference D alone; clipping x0 once
    only adds what it lets through on one side.
    """
    change, distance, inverse = _change_and_distance(t)
    of_mean = fma(of_divergence - of_ratio, change, of_ratio * distance) * inverse
    of_y = (of_ratio * change) * inverse

    def back(grad: Array, output: Array, uncond: Array | None) -> SampleGradients:
        nothing = np.zeros_like(grad)
        given = t.x, output, uncond, t.history, t.row, nothing, nothing
        return transition_backward(grad, None, Prediction.NONE, *given)

    new = back(of_mean, t.output, t.output_uncond)
    old = back(-(of_mean + of_y), t.old_output, t.old_output_uncond)
    shared = back(-of_y, t.old_output, t.old_output_uncond)
    o, _, _ = predict(t.x, t.output, t.output_uncond, (), t.row)
    old_o, _, _ = predict(t.x, t.old_output, t.old_output_uncond, (), t.row)
    is_clipped, old_is_clipped = (_is_clipped(t.x, each, t.row) for each in (o, old_o))
    of_x0 = t.row[Column.X0] * of_mean
    changed = fma(t.row[Column.X0_SAMPLE], np.where(is_clipped, -of_x0, of_x0), shared.sample)
    return RatioGradients(
        x=np.where(is_clipped == old_is_clipped, shared.sample, changed),
        y=of_y,
        output=new.model_output,
        old_output=old.model_output,
        output_uncond=new.model_output_uncond,
        old_output_uncond=old.model_output_uncond,
        history=shared.history,
    )
