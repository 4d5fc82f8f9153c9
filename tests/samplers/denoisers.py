"""Stand-ins for a network, and the sampler's loop written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmmkernel import Column, DDIMSampler, Mixture, Stream, standard_normal
from gmmkernel.backends.reference.transition import choose_component, transition

SHAPE = (3, 5)
ELEMENTS = 15


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """One number for each sample, in a shape that goes with the samples."""
    return values.view(-1, *[1] * (x.dim() - 1))


def elementwise(x: Tensor, timestep: Tensor) -> Tensor:
    """One product and one sum for each element: no bit of a sample depends on the rest of its batch."""
    return x * 0.75 + per_sample(timestep, x).to(x.dtype) / 4096


def elementwise_pair(x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    return x * 0.5, elementwise(x, timestep)


def mixing(x: Tensor, timestep: Tensor) -> Tensor:
    """A bounded function of all elements of a sample and of the timestep."""
    wave = torch.linspace(-1, 1, x[0].numel(), dtype=torch.float64).view(x.shape[1:]).to(x)
    turned = x.flatten(1).roll(1, dims=1).view(x.shape)
    return torch.tanh(x - 0.5 * turned + wave * (per_sample(timestep, x).to(x.dtype) / 1000))


def cdf_of(weights: Sequence[float]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """floor(2^32 cdf), the sums in order."""
    total, found = 0.0, []
    for weight in weights[:-1]:
        total += weight
        found.append(math.floor(total * 2.0**32))
    return np.array(found, dtype=np.int64)


def by_hand(
    sampler: DDIMSampler,
    model: Any,
    seeds: Tensor,
    mixture: Mixture | None,
    *,
    shape: Sequence[int] = SHAPE,
) -> list[Tensor]:
    """The whole run from the NumPy specification and the mixture's definition: every state, the first included."""
    dtype = sampler.dtype
    arithmetic = np.float64 if dtype == torch.float64 else np.float32
    rows = sampler.coefficients.numpy()
    noisy = bool((rows[:, Column.SIGMA] != 0).any())
    x = standard_normal(seeds, shape, stream=Stream.INITIAL, dtype=dtype, backend="reference")
    states = [x]
    for index, timestep in enumerate(sampler.timesteps):
        output = model(x, timestep.expand(len(x)))
        uncond, output = output if isinstance(output, tuple) else (None, output)

        def wide(tensor: Tensor, b: int) -> np.ndarray[Any, Any]:
            return tensor[b].flatten().double().numpy().astype(arithmetic)

        made = []
        for b, seed in enumerate(seeds.tolist()):
            offset, std = None, np.empty(0, arithmetic)
            if mixture is not None:
                k = choose_component(seed, index, cdf_of(mixture.weights.tolist()))
                own_step = 0 if mixture.n_steps is None else index
                offset = mixture.offsets[own_step, k].numpy().astype(arithmetic)
                if noisy:
                    removed = mixture.reductions[0 if len(mixture.reductions) == 1 else index]
                    removed = removed[0 if len(removed) == 1 else k].numpy()
                    sigma, weight = rows[index, [Column.SIGMA, Column.OFFSET]].astype(np.float64)
                    std = np.sqrt(np.maximum(sigma**2 - weight**2 * removed, 0)).astype(arithmetic)
            step = transition(
                wide(x, b),
                wide(output, b),
                None if uncond is None else wide(uncond, b),
                [],
                rows[index],
                offset,
                std,
                seed,
                index,
            )
            made.append(torch.from_numpy(step.sample).view(shape).to(dtype))
        x = torch.stack(made)
        states.append(x)
    return states
