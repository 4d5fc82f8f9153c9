"""What a sampler returns, and what it shows on the way."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepState(NamedTuple):
    """The state after one step, as a callback sees it.

    Attributes:
        step_index: the step's index in the schedule, 0 .. S - 1.
        timestep: the timestep the model was called with: an int, or a float for flows and noise levels.
        seeds: int64 [B], the seeds of the samples in this batch.
        sample: [B, ...], the samples after the step.
        x0: [B, ...], the data predicted in the step (clipped where the schedule clips).
    """

    step_index: int
    timestep: int | float
    seeds: Tensor
    sample: Tensor
    x0: Tensor


class SamplerStep(NamedTuple):
    """What one step of a sampler returns.

    Attributes:
        prev_sample: [B, ...], the samples after the step, where the model is called next.
        x0: [B, ...], the data predicted in the step, or None.
        history: what the next step has to be given as `history`.
    """

    prev_sample: Tensor
    x0: Tensor | None
    history: tuple[Tensor, ...]


class SampleResult(NamedTuple):
    """What a sampler returns.

    Attributes:
        sample: [N, ...], the samples, in the order of the seeds.
        trajectory: [S + 1, N, ...], the samples at the start and after each of the S steps done, or None.
        x0: [S, N, ...], the data predicted in each of these steps, or None.
    """

    sample: Tensor
    trajectory: Tensor | None
    x0: Tensor | None
