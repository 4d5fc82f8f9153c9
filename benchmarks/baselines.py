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


def eager_transition(
    model_output: Tensor,
    sample: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    sigma_max: float,
    noise_level: float,
    prev_sample: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a step of Flow-GRPO's SDE (arXiv 2505.05470) and its log-density, written plainly in float32.

    Args:
        model_output: [B, ...] the velocity, of any type.
        sample: like it, of any type.
        t: float32 [B, 1, ...], time of the sample.
        s: the same of the sample that the step leads to.
        sigma_max: what stands for a time of 1 in the diffusion.
        noise_level: a.
        prev_sample: the sample that the step led to; None: drawn.
        noise: like `sample`; None: drawn with torch.randn.

    Returns:
        The sample it leads to, its log-density [B] averaged over elements, the mean, and the diffusion, like `t`.
    """
    velocity, sample = model_output.float(), sample.float()
    dt = s - t
    diffusion = noise_level * torch.sqrt(t / (1 - torch.where(t == 1, sigma_max, t)))
    drift = diffusion.square() / (2 * t)
    mean = sample * (1 + drift * dt) + velocity * (1 + drift * (1 - t)) * dt
    std = diffusion * torch.sqrt(-dt)
    if prev_sample is None:
        noise = torch.randn(mean.shape, device=mean.device) if noise is None else noise
        prev_sample = mean + std * noise
    prev_sample = prev_sample.float()
    squares = (prev_sample.detach() - mean).square()
    density = -squares / (2 * std.square()) - torch.log(std) - math.log(math.sqrt(2 * math.pi))
    return prev_sample, density.flatten(1).mean(1), mean, diffusion


def eager_flow_step(
    model_output: Tensor,
    timestep: Tensor,
    sample: Tensor,
    *,
    timesteps: Tensor,
    sigmas: Tensor,
    noise_level: float,
    prev_sample: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `eager_transition` with each sample's times looked up as Flow-GRPO does, one host read a sample.

    Args:
        model_output: [B, ...].
        timestep: [B], entries of `timesteps`.
        sample: like `model_output`.
        timesteps: [S].
        sigmas: float32 [S + 1], the times.
        noise_level: a.
        prev_sample: as in `eager_transition`.
        noise: the same.
    """
    found = [int((timesteps == one).nonzero().item()) for one in timestep]
    shape = (-1, *[1] * (sample.dim() - 1))
    t, s = sigmas[found].view(shape), sigmas[[index + 1 for index in found]].view(shape)
    sigma_max = sigmas[1].item()
    return eager_transition(
        *(model_output, sample, t, s),
        sigma_max=sigma_max,
        noise_level=noise_level,
        prev_sample=prev_sample,
        noise=noise,
    )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function under torch.compile; it is compiled at the first call, for torch's threads of then.

    What was compiled before is forgotten and the graph cache is off: it may be code for another number of threads.
    """
    torch.compiler.reset()
    made: Callable[..., Any] = torch.compile(
        function, fullgraph=True, dynamic=False, options={"fx_graph_cache": False}
    )
    return made


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
