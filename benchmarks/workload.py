"""The inputs of one size, made once and shared by every case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gmmkernel import Mixture, MixtureTables, ddim_coefficients, noise_schedule, timesteps
from gmmkernel.backends.constants import Column

SAMPLING_STEPS = 10
STEP = 5
"""Which of the sampler's ten steps is measured: one from the middle, where sigma and the clipping matter."""


class Workload:
    """Tensors of one batch shape [B, ...] and one step of a ten-step sampler (linear schedule, x0 clipped to 1).

    Attributes:
        shape: shape of the batch.
        device: where the tensors are.
        batch: B.
        elements: D, elements of one sample.
        timestep, prev_timestep: t and s of the step.
        alpha, prev_alpha: a_t and a_s.
        sigma: standard deviation of the step's noise at eta = 1.
        coefficients: float32 [1, 16], the step at eta = 1.
        deterministic: float32 [1, 16], the step at eta = 0.
        seeds: int64 [B].
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.batch = shape[0]
        self.elements = math.prod(shape[1:])
        schedule = noise_schedule()
        visited = timesteps(SAMPLING_STEPS)
        self.timestep, self.prev_timestep = visited[STEP : STEP + 2].tolist()
        self.alpha = float(schedule.alphas_cumprod[self.timestep])
        self.prev_alpha = float(schedule.alphas_cumprod[self.prev_timestep])

        def row(eta: float) -> Tensor:
            rows = ddim_coefficients(schedule, visited, eta=eta, clip_sample_range=1.0)
            return rows[STEP : STEP + 1].to(device)

        self.coefficients, self.deterministic = row(1.0), row(0.0)
        self.sigma = float(self.coefficients[0, Column.SIGMA])
        self.seeds = torch.arange(self.batch, device=device)
        generator = torch.Generator(device).manual_seed(0)
        sample = torch.randn(shape, generator=generator, device=device)
        model_output = torch.randn(shape, generator=generator, device=device)
        self._inputs = {torch.float32: (sample, model_output)}
        self._mixtures: dict[int, MixtureTables] = {}

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the sample and the model output in a type."""
        if dtype not in self._inputs:
            sample, model_output = self._inputs[torch.float32]
            self._inputs[dtype] = (sample.to(dtype), model_output.to(dtype))
        return self._inputs[dtype]

    def sets(self, dtype: torch.dtype) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """Return sample, model output and a result to write, as many sets of them as calls take turns with: one."""
        sample, model_output = self.inputs(dtype)
        return [(sample, model_output, sample.clone())]  # written once, so that its memory is there

    def mixture(self, components: int) -> MixtureTables:
        """Return a mixture shaped like ORTHO with uniform weights: offsets [1, K, D], std [1, 1, D].

        The offsets are normals rather than orthonormal rows (which take minutes to make at K = 1024): a step does
        the same work on them. Their scale removes about a sixteenth of sigma^2, so that from K = 8 on
        nothing is clipped.
        """
        if components not in self._mixtures:
            generator = torch.Generator(self.device).manual_seed(components)
            offsets = torch.randn(1, components, self.elements, generator=generator, device=self.device)
            offsets *= self.sigma / 4
            removed = torch.linalg.vector_norm(offsets, dim=1, keepdim=True).square() / components
            std = (self.sigma**2 - removed).sqrt()
            self._mixtures[components] = MixtureTables(self._cdf(components), offsets, std)
        return self._mixtures[components]

    def unbound_mixture(self, components: int) -> Mixture:
        """Return what `mixture` is, before it is bound to a step."""
        _, offsets, std, *_ = self.mixture(components)
        weights = torch.full((components,), 1 / components, dtype=torch.float64)
        removed = self.sigma**2 - std.double().square()
        return Mixture("benchmark", self.sigma / 4, weights, offsets.double(), removed)

    def bounded_mixture(self, components: int) -> MixtureTables:
        """Return a mixture shaped like ORTHO-VUB: variance is removed from the first R = min(K, D) elements only."""
        cdf, offsets, std, *_ = self.mixture(components)
        first = torch.full_like(std[:, :, :components], math.sqrt(15 / 16) * self.sigma)
        return MixtureTables(cdf, offsets, first)

    def exact_mixture(self, components: int) -> MixtureTables:
        """Return a mixture shaped like one of exactly matched moments: K - 1 directions that all components share.

        Noise is added in these directions and not removed, which is as much work.
        """
        cdf, offsets, *_ = self.mixture(components)
        generator = torch.Generator(self.device).manual_seed(components)
        shape = (1, components - 1, components)
        basis = torch.randn(shape, generator=generator, device=self.device) / self.elements
        std_delta = torch.ones(1, 1, components - 1, device=self.device)
        none = offsets.new_empty(1, 1, 0)
        slopes, shifts, half_logdet = (
            offsets.new_zeros(1, *size) for size in ((1, components - 1), (components, components - 1), (1,))
        )
        return MixtureTables(cdf, offsets, none, None, basis, std_delta, slopes, shifts, half_logdet)

    def _cdf(self, components: int) -> Tensor:
        values = [(k * 2**32) // components for k in range(1, components)]
        return torch.tensor(values, dtype=torch.int64, device=self.device).reshape(1, components - 1)

    def step_bytes(self, dtype: torch.dtype, mixture: MixtureTables | None = None) -> int:
        """Return the bytes that one pass has to move: sample, model output, result, drawn offset row and std row.

        The two rows are counted for every sample, though samples share them in a cache. Of the K offsets that exact
        moment matching reads, one is counted.
        """
        moved = 3 * self.batch * self.elements * dtype.itemsize
        if mixture is not None:
            row = mixture.offsets.shape[2] + mixture.std.shape[2]
            moved += self.batch * row * mixture.offsets.dtype.itemsize
        return moved
