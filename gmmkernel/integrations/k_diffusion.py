"""A sampler in k-diffusion's form, for programs that take such functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel._checks import check_integer
from gmmkernel.backends.constants import MAX_STEP
from gmmkernel.mixtures import Mixture
from gmmkernel.ops import gmm_step
from gmmkernel.ops.checks import check_batch_of_seeds, check_sample
from gmmkernel.samplers.base import bound, row_dtype
from gmmkernel.schedules import sigma_coefficients


@torch.no_grad()
def sample_gmm(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    seeds: Tensor,
    first_step: int | None = None,
    eta: float = 1.0,
    mixture: Mixture | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sample with DDIM-GMM over noise levels, in the form of the functions of k_diffusion.sampling.

    Without a mixture, eta = 0 is their `sample_euler` and eta = 1 their `sample_euler_ancestral`, with the noise of the
    seeds. `sigma_coefficients` has the equations. One launch a step; the noise levels are read on the host once.

    A step's noise goes with the noise level that it starts from, so that a schedule may be run in several calls, a part
    each, with the noise that one call would have drawn. A run that comes to a level a second time (restarts) has to
    tell the visits apart by `first_step`, or its noise repeats.

    Args:
        model: called as `model(x, sigma, **extra_args)` with sigma [B]; returns the data it predicts, like x.
        x: [B, ...] float32, bfloat16, float16 or float64: where to start, noise times sigmas[0].
        sigmas: [S + 1], strictly descending, floating point on any device: step i goes from sigmas[i] to sigmas[i + 1].
        extra_args: more arguments for the model.
        callback: called before each step with a dict of "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: True shows no progress bar; None shows it on a terminal.
        seeds: int64 [B] on the device of x, each sample's only source of randomness.
        first_step: count the steps of the noise counter from here, as `DDIMSampler` counts them from 0; two calls with
            the same seeds must not count the same steps. None: a step's number is its noise level's bits in float32.
        eta: share of the ancestral noise, 0 to 1.
        mixture: a mixture for the transition, shared by all steps or made for the S steps of this call.
        backend: a backend's name; None chooses by device.

    Returns:
        [B, ...], like x.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or does not fit x, or float32 does not tell the noise levels apart.
    """
    check_sample(x)
    if not isinstance(sigmas, Tensor) or not sigmas.is_floating_point():
        got = sigmas.dtype if isinstance(sigmas, Tensor) else type(sigmas).__name__
        raise TypeError(f"sigmas: expected a floating-point tensor, got {got}")
    seeds = check_batch_of_seeds(seeds, x.shape[0], x.device)
    on_host = sigmas.double().cpu()
    coefficients = sigma_coefficients(on_host, eta=eta, dtype=row_dtype(x.dtype)).to(x.device)
    coefficients, tables = bound(mixture, coefficients)
    noise_steps = _noise_steps(on_host, first_step)
    levels = sigmas.to(x)
    for i in tqdm(range(len(coefficients)), disable=disable):
        denoised = model(x, levels[i].expand(x.shape[0]), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": levels[i], "sigma_hat": levels[i], "denoised": denoised})
        made = gmm_step(
            x,
            denoised,
            coefficients,
            row=i,
            step=noise_steps[i],
            seeds=seeds,
            mixture=tables,
            backend=backend,
        )
        x = made.prev_sample
    return x


def _noise_steps(sigmas: Tensor, first_step: int | None) -> Sequence[int]:
    """Return the step of the noise counter of each step."""
    steps = len(sigmas) - 1
    if first_step is not None:
        first_step = check_integer("first_step", first_step, 0, MAX_STEP + 1 - steps)
        return range(first_step, first_step + steps)
    of_levels: list[int] = sigmas[:-1].float().view(torch.int32).tolist()
    if len(set(of_levels)) < steps:
        raise ValueError(
            f"sigmas: expected levels that float32 tells apart, or first_step, got {sigmas.tolist()}"
        )
    return of_levels
