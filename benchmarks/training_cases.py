"""One training step but for the network: noise added, the loss, its gradient; ours and the same written in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.workload import Workload
from gmmkernel import TrainingColumn, add_noise, noise_schedule, skip_step_loss, training_coefficients
from gmmkernel.backends.protocol import TrainingInputs
from gmmkernel.ops.autograd_training import skip_step_loss_with_gradient

DDPM, SKIP = 1.0, 0.99  # values of tau: without and with the second term

Call = Callable[[int], Tensor]


def rows_and_timesteps(workload: Workload, tau: float) -> tuple[Tensor, Tensor]:
    """Return training rows [T, 9] and a timestep for each sample."""
    rows = training_coefficients(noise_schedule(), tau=tau).to(workload.device)
    generator = torch.Generator(workload.device).manual_seed(3)
    timesteps = torch.randint(len(rows), (workload.batch,), generator=generator, device=workload.device)
    return rows, timesteps


def eager_training(
    data: Tensor,
    model_output: Tensor,
    rows: Tensor,
    timesteps: Tensor,
    noise: Tensor | None = None,
    fresh_noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the training sample and the mean loss with the "independent" target, written plainly.

    Args:
        data: [B, ...].
        model_output: like `data`.
        rows: [T, 9], of which those of the timesteps are used.
        timesteps: int64 [B].
        noise: like `data`; None: drawn with torch.randn.
        fresh_noise: the same.
    """
    of_sample = rows[timesteps]
    c = {
        column: of_sample[:, column].to(data.dtype).view(-1, *[1] * (data.dim() - 1))
        for column in TrainingColumn
    }
    noise = torch.randn_like(data) if noise is None else noise
    noised = c[TrainingColumn.SIGNAL] * data + c[TrainingColumn.NOISE] * noise
    loss = mse_loss(model_output, noise, reduction="none").flatten(1).mean(1)
    if bool(rows[:, TrainingColumn.SKIP_WEIGHT].any()):
        fresh_noise = torch.randn_like(data) if fresh_noise is None else fresh_noise
        scaled = c[TrainingColumn.SKIP_SCALE] * model_output
        skip = mse_loss(scaled, fresh_noise, reduction="none").flatten(1).mean(1)
        loss = of_sample[:, TrainingColumn.WEIGHT] * loss + of_sample[:, TrainingColumn.SKIP_WEIGHT] * skip
    return noised, loss.mean()


def ours(workload: Workload, dtype: torch.dtype, tau: float) -> Call:
    """Return call(n): the gradient of the model's output in the n-th iteration."""
    data, model_output = workload.inputs(dtype)
    rows, timesteps = rows_and_timesteps(workload, tau)
    leaf = model_output.detach().requires_grad_()

    def call(index: int) -> Tensor:
        seeds = workload.seeds
        noised = add_noise(data, rows, row=timesteps, seeds=seeds, step=index)
        losses = skip_step_loss(leaf, rows, row=timesteps, seeds=seeds, step=index)
        (gradient,) = torch.autograd.grad(losses.mean(), leaf)
        del noised  # in use until here, as a network would have it
        return gradient

    return call


def drawn_again(workload: Workload, dtype: torch.dtype, tau: float) -> Call:
    """Return the same with the noise drawn once more for the gradient, as half-precision outputs have it."""
    data, model_output = workload.inputs(dtype)
    rows, timesteps = rows_and_timesteps(workload, tau)
    leaf = model_output.detach().requires_grad_()

    def call(index: int) -> Tensor:
        noised = add_noise(data, rows, row=timesteps, seeds=workload.seeds, step=index)
        inputs = TrainingInputs(leaf, None, rows, workload.seeds, timesteps, index)
        losses = skip_step_loss_with_gradient(inputs, workload.device.type, residual=False)
        (gradient,) = torch.autograd.grad(losses.mean(), leaf)
        del noised
        return gradient

    return call


def in_pytorch(workload: Workload, dtype: torch.dtype, tau: float) -> Call:
    """Return the same written plainly, with PyTorch's noise."""
    data, model_output = workload.inputs(dtype)
    rows, timesteps = rows_and_timesteps(workload, tau)
    leaf = model_output.detach().requires_grad_()

    def call(_: int) -> Tensor:
        noised, loss = eager_training(data, leaf, rows, timesteps)
        (gradient,) = torch.autograd.grad(loss, leaf)
        del noised
        return gradient

    return call


FUNCTIONS: dict[str, tuple[str, Callable[[Workload, torch.dtype, float], Call], float]] = {
    "training/skip/new": ("noise added, skip-step loss and its gradient", ours, SKIP),
    "training/skip-drawn-again/new": ("the same, noise drawn again for the gradient", drawn_again, SKIP),
    "eager/training-skip/new": ("the same written in PyTorch", in_pytorch, SKIP),
    "training/ddpm/new": ("noise added, DDPM's loss and its gradient", ours, DDPM),
    "eager/training-ddpm/new": ("the same written in PyTorch", in_pytorch, DDPM),
}
"""Each case's name: what it measures, what makes it ready, and tau."""
