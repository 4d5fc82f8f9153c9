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
        log_prob: [B], the log-density of `prev_sample` (`gmm_step_log_prob`), NaN where the step draws no noise, or
            None.
    """

    prev_sample: Tensor
    x0: Tensor | None
    history: tuple[Tensor, ...]
    log_prob: Tensor | None = None


class KeptSteps(NamedTuple):
    """What a trainer needs of some steps of a run: their log-densities again, under the weights that it has by then.

    Of the j-th step, that is

        gmm_step_log_prob(next_latents[j], latents[j], output, sampler.coefficients, row=steps[j],
                          mixture=sampler.tables)

    and with `model_outputs[j]` for the output, the bits that the run had in `log_probs[:, j]`. It holds 3 n N samples,
    4 n N with a guidance pair: what steps next to each other share is there twice. Of a multistep method the history
    is not kept, and of dynamic thresholding not the bounds.

    Attributes:
        steps: int64 [n], the indices of the steps.
        latents: [n, N, ...], the samples that each of them started from.
        next_latents: [n, N, ...], the samples that it gave.
        model_outputs: [n, N, ...], the prediction that it read, in the model's dtype; the conditional one of a guidance
            pair, and without the half of a learned variance.
        model_outputs_uncond: [n, N, ...], the unconditional one of a guidance pair, or None.
    """

    steps: Tensor
    latents: Tensor
    next_latents: Tensor
    model_outputs: Tensor
    model_outputs_uncond: Tensor | None


class SampleResult(NamedTuple):
    """What a sampler returns.

    Attributes:
        sample: [N, ...], the samples, in the order of the seeds.
        trajectory: [S + 1, N, ...], the samples at the start and after each of the S steps done, or None.
        x0: [S, N, ...], the data predicted in each of these steps, or None.
        log_probs: [N, n] float32, or float64 of float64 samples: the log-density of each step done, or of each step
            kept, NaN where it draws no noise; or None.
        kept: what was kept of n steps, or None.
    """

    sample: Tensor
    trajectory: Tensor | None
    x0: Tensor | None
    log_probs: Tensor | None = None
    kept: KeptSteps | None = None
