"""Forward and backward pass together: ours and the same step written in PyTorch, for benchmarks and their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import eager_log_prob, eager_step
from benchmarks.workload import Workload
from gmmkernel import MixtureTables, gmm_step, gmm_step_log_prob

COMPONENTS = 8
Forward = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]


def forward_backward(
    workload: Workload, dtype: torch.dtype, forward: Forward, *, tables: bool, per_sample: bool
) -> Callable[[int], Tensor]:
    """Return call(n): the result of a function and its gradients of sample and model output, or of tables as well.

    Args:
        workload: the inputs.
        dtype: their type.
        forward: takes the number of the call, the sample, the model's output, offsets [1, K, D] and std [1, 1, D].
        tables: also take the gradients of offsets and std.
        per_sample: the function returns one number for each sample.
    """
    sample, model_output = workload.inputs(dtype)
    _, offsets, std, *_ = workload.mixture(COMPONENTS)
    generator = torch.Generator(workload.device).manual_seed(7)
    shape = workload.shape[:1] if per_sample else workload.shape
    grad = torch.randn(shape, generator=generator, device=workload.device).to(
        torch.float32 if per_sample else dtype
    )

    def call(index: int) -> Tensor:
        asked = (True, True, tables, tables)
        given = (sample, model_output, offsets, std)
        leaves = [tensor.detach().requires_grad_(flag) for tensor, flag in zip(given, asked, strict=True)]
        made = forward(index, *leaves)
        return torch.autograd.grad(made, [leaf for leaf in leaves if leaf.requires_grad], grad)[0]

    return call


def step(workload: Workload) -> Forward:
    """Return `gmm_step` of the leaves."""
    cdf = workload.mixture(COMPONENTS).cdf

    def forward(index: int, sample: Tensor, model_output: Tensor, offsets: Tensor, std: Tensor) -> Tensor:
        tables = MixtureTables(cdf, offsets, std)
        return gmm_step(
            sample,
            model_output,
            workload.coefficients,
            row=0,
            step=index,
            seeds=workload.seeds,
            mixture=tables,
        ).prev_sample

    return forward


def step_in_pytorch(workload: Workload) -> Forward:
    """Return the same written plainly, with PyTorch's noise."""
    levels: dict[str, Any] = {
        "alpha": workload.alpha,
        "prev_alpha": workload.prev_alpha,
        "sigma": workload.sigma,
    }

    def forward(_: int, sample: Tensor, model_output: Tensor, offsets: Tensor, std: Tensor) -> Tensor:
        own = [table.to(sample.dtype) for table in (offsets[0], std[0, 0])]
        return eager_step(sample, model_output, own[0], own[1], **levels)

    return forward


def log_prob(workload: Workload) -> Forward:
    """Return `gmm_step_log_prob` of half the sample."""
    weights = torch.full((1, COMPONENTS), 1 / COMPONENTS, device=workload.device)
    cdf = workload.mixture(COMPONENTS).cdf

    def forward(_: int, sample: Tensor, model_output: Tensor, offsets: Tensor, std: Tensor) -> Tensor:
        tables = MixtureTables(cdf, offsets, std, weights)
        half = sample.detach()
        return gmm_step_log_prob(half, sample, model_output, workload.coefficients, row=0, mixture=tables)

    return forward


def log_prob_in_pytorch(workload: Workload) -> Forward:
    """Return the same written plainly."""
    levels = {"alpha": workload.alpha, "prev_alpha": workload.prev_alpha, "sigma": workload.sigma}

    def forward(_: int, sample: Tensor, model_output: Tensor, offsets: Tensor, std: Tensor) -> Tensor:
        return eager_log_prob(sample.detach(), sample, model_output, offsets[0], std[0, 0], **levels)

    return forward


OF_STEP = {"tables": False, "per_sample": False}
OF_TABLES = {"tables": True, "per_sample": False}
OF_DENSITY = {"tables": False, "per_sample": True}
FUNCTIONS: dict[str, tuple[str, Callable[[Workload], Forward], dict[str, bool]]] = {
    "gmm_step/K8-backward/new": (
        "mixture step, forward and backward: gradients of sample and model output",
        step,
        OF_STEP,
    ),
    "eager/K8-backward/new": ("the same written in PyTorch", step_in_pytorch, OF_STEP),
    "gmm_step/K8-backward-tables/new": (
        "the same step, gradients of offsets and std as well",
        step,
        OF_TABLES,
    ),
    "eager/K8-backward-tables/new": ("the same written in PyTorch", step_in_pytorch, OF_TABLES),
    "log_prob/K8-backward/new": (
        "log-density under 8 components, forward and backward: gradients of sample and model output",
        log_prob,
        OF_DENSITY,
    ),
    "eager/K8-log_prob-backward/new": ("the same written in PyTorch", log_prob_in_pytorch, OF_DENSITY),
}
"""Each case's name: what it measures, the function, and options of `forward_backward`."""
