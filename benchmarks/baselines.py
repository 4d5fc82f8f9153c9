"""What the package is compared with: the same step as one would write it in PyTorch, and diffusers' scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.workload import SAMPLING_STEPS, Workload

StepFunction = Callable[..., Tensor]


class Unavailable(Exception):
    """A case cannot be measured here; the message says why."""


def eager_step(
    sample: Tensor,
    model_output: Tensor,
    offsets: Tensor,
    std: Tensor,
    *,
    alpha: float,
    prev_alpha: float,
    sigma: float,
    noise: Tensor | None = None,
    components: Tensor | None = None,
) -> Tensor:
    """Return one DDIM-GMM step for an epsilon model, written plainly (arXiv 2311.04938).

    Args:
        sample: [B, ...].
        model_output: like `sample`.
        offsets: [K, D] of the sample's dtype, uniform weights.
        std: [D] of the sample's dtype.
        alpha: a_t.
        prev_alpha: a_s.
        sigma: standard deviation that the mean's coefficients go with.
        noise: like `sample`; None: drawn with torch.randn.
        components: int64 [B]; None: drawn with torch.randint.

    Returns:
        The next sample, like `sample`.
    """
    x0 = ((sample - math.sqrt(1 - alpha) * model_output) / math.sqrt(alpha)).clamp(-1, 1)
    direction = math.sqrt(max(1 - prev_alpha - sigma**2, 0))
    mean = math.sqrt(prev_alpha) * x0 + direction * model_output
    if components is None:
        components = torch.randint(offsets.shape[0], (sample.shape[0],), device=sample.device)
    if noise is None:
        noise = torch.randn(sample.shape, dtype=sample.dtype, device=sample.device)
    return mean + offsets[components].view_as(sample) + std.view(sample.shape[1:]) * noise


def eager_log_prob(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    offsets: Tensor,
    std: Tensor,
    *,
    alpha: float,
    prev_alpha: float,
    sigma: float,
) -> Tensor:
    """Return the log-density [B] of one DDIM-GMM step, written plainly; arguments as `eager_step` has them."""
    x0 = ((sample - math.sqrt(1 - alpha) * model_output) / math.sqrt(alpha)).clamp(-1, 1)
    direction = math.sqrt(max(1 - prev_alpha - sigma**2, 0))
    mean = math.sqrt(prev_alpha) * x0 + direction * model_output
    distance = (prev_sample - mean).flatten(1)[:, None] - offsets
    levels = -((distance / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(2)
    return torch.logsumexp(levels, dim=1) - math.log(offsets.shape[0])


def compiled_eager_step() -> StepFunction:
    """Return `eager_step` under torch.compile; it is compiled at the first call, for torch's threads of then.

    What was compiled before is forgotten and the graph cache is off: it may be code for another number of threads.
    """
    torch.compiler.reset()
    compiled = torch.compile(eager_step, fullgraph=True, dynamic=False, options={"fx_graph_cache": False})
    return cast(StepFunction, compiled)


def diffusers_step(workload: Workload, dtype: torch.dtype) -> StepFunction:
    """Return diffusers' DDIM step (eta = 1, its own noise, no mixture) at the workload's step, of its inputs or others.

    Raises:
        Unavailable: diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise Unavailable(f'needs diffusers: pip install "gmmkernel[bench]" ({error})') from None
    untyped: Any = DDIMScheduler
    scheduler = untyped()  # linear betas, x0 clipped to 1, leading timesteps: the workload's schedule
    scheduler.set_timesteps(SAMPLING_STEPS)
    sample, model_output = workload.inputs(dtype)
    timestep = workload.timestep

    def step(sample: Tensor = sample, model_output: Tensor = model_output) -> Tensor:
        return cast(Tensor, scheduler.step(model_output, timestep, sample, eta=1.0).prev_sample)

    return step
