"""Data whose best denoiser is known: mixtures of Gaussians on few directions, and of points.

    x0 = m_k + U_k diag(sqrt(l)) z_1 + sqrt(f) z_2    with probability w_k, U_k [D, r] orthonormal

    C_k = U_k diag(l) U_k^T + f I
    E[x0 | x_t] = sum_k p_k (m_k + sqrt(a) C_k (a C_k + (1 - a) I)^-1 (x_t - sqrt(a) m_k))

with p_k the probability of component k given x_t. Points have l = f = 0. Everything is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmmkernel import noise_schedule
from studies.quality.distances import Reference
from studies.quality.task import Task

GAUSSIANS = 10
POINTS = 50
DIRECTIONS = 8
VARIANCE = 0.25
"""Of an element, on average over the elements: about that of images in [-1, 1]."""

WITHIN = 0.3
"""Share of the variance that is within the Gaussians; a tenth of it in all directions."""

REFERENCE = 20_000
"""Points that samples are compared with."""

_DATA_SEED, _REFERENCE_SEED = 1, 2


class ClosedForm(Task):
    """A mixture of Gaussians, or of points, in some number of dimensions, with its exact denoiser.

    Component k of n has a weight proportional to n + k, so that modes which are lost or favoured show.

    Args:
        kind: "gaussians" or "points".
        elements: D.
    """

    chunk = 2000
    thorough = True

    def __init__(self, kind: str, elements: int) -> None:
        is_smooth = kind == "gaussians"
        self.name = f"{kind}-{elements}"
        self.shape = (elements,)
        generator = torch.Generator().manual_seed(_DATA_SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        count = GAUSSIANS if is_smooth else POINTS
        rank = min(DIRECTIONS, elements) if is_smooth else 0
        weights = torch.arange(count, 2 * count, dtype=torch.float64)
        self.weights = weights / weights.sum()
        within = VARIANCE * WITHIN if is_smooth else 0.0
        means = normal(count, elements)
        means -= self.weights @ means
        between = float(self.weights @ means.square().mean(1))
        self.means = means * math.sqrt((VARIANCE - within) / between)
        self.floor = within / 10
        spectrum = 1 / torch.arange(1, rank + 1, dtype=torch.float64)
        self.variances = spectrum * (elements * within * 0.9 / spectrum.sum()) if rank else spectrum
        self.directions = torch.linalg.qr(normal(count, elements, max(rank, 1))).Q[:, :, :rank]
        # [D, n r], the directions of all components side by side, and the means in them
        self._all_directions = self.directions.permute(1, 0, 2).reshape(elements, -1)
        self._inner = torch.einsum("kd,kdr->kr", self.means, self.directions)
        self._alphas = noise_schedule("linear").alphas_cumprod
        points, origin = self.draw(REFERENCE, _REFERENCE_SEED), torch.zeros(elements, dtype=torch.float64)
        self._reference = Reference(points, origin, self.covariance())
        self._shares = self._nearest(points)

    def covariance(self) -> Tensor:
        """Return the covariance [D, D]; the mean is 0."""
        spread = (self.means.T * self.weights) @ self.means
        shares = (self.weights[:, None] * self.variances).flatten()
        of_directions = (self._all_directions * shares) @ self._all_directions.T
        covariance: Tensor = (
            spread + of_directions + self.floor * torch.eye(self.elements, dtype=torch.float64)
        )
        return covariance

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw data, float64 [count, D]."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.elements, generator=generator, dtype=torch.float64)
        along = torch.randn(count, len(self.variances), generator=generator, dtype=torch.float64)
        along *= self.variances.sqrt()
        points = self.means[drawn] + math.sqrt(self.floor) * noise
        for k in range(len(self.weights)):
            points[drawn == k] += along[drawn == k] @ self.directions[k].T
        return points

    def posterior(self, sample: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Return log p_k [B, n] up to what all k share, and (x - sqrt(a) m_k) along the directions [B, n, r]."""
        scale, level = math.sqrt(alpha), alpha * self.floor + 1 - alpha
        along = (sample @ self._all_directions).unflatten(1, self._inner.shape) - scale * self._inner
        squares = (
            sample.square().sum(1, keepdim=True)
            - 2 * scale * (sample @ self.means.T)
            + alpha * self.means.square().sum(1)
        )
        total = alpha * self.variances + level
        squares = squares - (along.square() * (alpha * self.variances / total)).sum(2)
        # All components have the same determinant.
        return self.weights.log() - squares / (2 * level), along

    def denoise(self, sample: Tensor, alpha: float) -> Tensor:
        """Return E[x0 | x_t], float64 [B, D], for x_t = `sample` with a_t = `alpha` < 1."""
        scale, level = math.sqrt(alpha), alpha * self.floor + 1 - alpha
        logits, along = self.posterior(sample, alpha)
        shares = logits.softmax(1)
        everywhere = scale * self.floor / level
        gains = scale * (self.variances + self.floor) / (alpha * self.variances + level) - everywhere
        found: Tensor = (shares * (1 - everywhere * scale)) @ self.means + everywhere * sample
        found += (shares[:, :, None] * along * gains).flatten(1) @ self._all_directions.T
        return found

    def predict(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise that the best denoiser predicts, at a timestep that is the same for all samples."""
        (alpha,) = self._alphas[timestep].unique().tolist()
        exact = sample.double()
        noise = (exact - math.sqrt(alpha) * self.denoise(exact, alpha)) / math.sqrt(1 - alpha)
        return noise.to(sample.dtype)

    def held_out(self, count: int, seed: int) -> Tensor:
        """Draw data."""
        return self.draw(count, seed).float()

    def data(self, count: int, seed: int) -> Tensor:
        """Draw data."""
        return self.held_out(count, seed)

    def distances(self, samples: Tensor) -> dict[str, float]:
        """Return the distances from the data; "modes" is the total variation between the components' shares."""
        exact = samples.double()
        return {**self._reference.distances(exact), "modes": self.modes(exact)}

    def distance(self, samples: Tensor) -> float:
        """Return the sliced Wasserstein distance alone."""
        return self._reference.sliced_wasserstein(samples.double())

    def modes(self, samples: Tensor) -> float:
        """Return half the sum of the differences between the components' shares in samples [N, D] and in the data.

        A sample counts to the component from which it is most likely to come; points lie nearest to theirs.
        """
        return float((self._nearest(samples) - self._shares).abs().sum() / 2)

    def _nearest(self, samples: Tensor) -> Tensor:
        alpha = 1.0 if self.floor else 1 - 1e-6
        nearest = self.posterior(samples, alpha)[0].argmax(1)
        return torch.bincount(nearest, minlength=len(self.weights)).double() / len(samples)
