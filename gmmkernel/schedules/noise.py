"""Noise schedules: how much of the data is left in a training sample at each timestep.

Everything is float64 and uses only + - * / and sqrt, in a fixed order, so that a schedule has the same bits
on every machine; the cosine of one schedule is summed here for that reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_flag, check_integer, check_number, check_numbers

NOISE_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Names of the schedules of betas, as diffusers has them."""

_BETA_START, _BETA_END = 1e-4, 0.02
_COSINE_OFFSET = 0.008
_LARGEST_COSINE_BETA = 0.999
_SERIES_TERMS = 10


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise schedule a model was trained with: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps.

    Attributes:
        alphas_cumprod: float64 [T] on the CPU: a_t in [0, 1] for t = 0 .. T - 1, never increasing. A given
            tensor is used as it is, not copied.

    Raises:
        TypeError: `alphas_cumprod` is not a float64 tensor.
        ValueError: it is not on the CPU, not 1-D or empty, leaves [0, 1], or increases.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if not isinstance(alphas, Tensor) or alphas.dtype != torch.float64:
            got = alphas.dtype if isinstance(alphas, Tensor) else type(alphas).__name__
            raise TypeError(f"alphas_cumprod: expected a torch.float64 tensor, got {got}")
        if alphas.device.type != "cpu":
            raise ValueError(f"alphas_cumprod: expected a tensor on the CPU, got {alphas.device}")
        if alphas.ndim != 1 or alphas.numel() == 0:
            raise ValueError(f"alphas_cumprod: expected shape [T] with T >= 1, got {list(alphas.shape)}")
        outside = ~((alphas >= 0) & (alphas <= 1))
        if bool(outside.any()):
            t = int(outside.nonzero()[0])
            raise ValueError(
                f"alphas_cumprod: expected values in [0, 1], got {float(alphas[t])} at timestep {t}"
            )
        rising = alphas[1:] > alphas[:-1]
        if bool(rising.any()):
            t = int(rising.nonzero()[0]) + 1
            raise ValueError(
                f"alphas_cumprod: expected values that never increase, got {float(alphas[t])} "
                f"at timestep {t} after {float(alphas[t - 1])}"
            )

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps of training."""
        return self.alphas_cumprod.shape[0]


def noise_schedule(
    name: str = "linear",
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = _BETA_START,
    beta_end: float = _BETA_END,
    trained_betas: Sequence[float] | Tensor | None = None,
    rescale_betas_zero_snr: bool = False,
) -> NoiseSchedule:
    """Make a noise schedule by its name in diffusers: a_t = prod_{i <= t} (1 - beta_i).

    linear            beta from `beta_start` to `beta_end` in equal steps (Ho et al. 2020)
    scaled_linear     sqrt(beta) in equal steps (latent diffusion)
    squaredcos_cap_v2 beta_i = min(1 - f((i + 1)/T) / f(i/T), 0.999), f(u) = cos^2(pi/2 (u + 0.008)/1.008)
                      (Nichol and Dhariwal 2021); it has no use for `beta_start` and `beta_end`

    Args:
        name: one of the three above.
        num_train_timesteps: T.
        beta_start: first beta, in (0, 1].
        beta_end: last beta, in [`beta_start`, 1].
        trained_betas: T numbers in (0, 1] that take the place of those of `name`, and of `beta_start` and `beta_end`.
        rescale_betas_zero_snr: shift and scale sqrt(a_t) so that the last one is 0 and the first one stays
            (Lin et al. 2023, arXiv 2305.08891): no data is left at the last timestep, and a model that
            predicts epsilon cannot start there.

    Returns:
        The schedule. diffusers computes the same in float32, so the two agree to about 1e-6.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, the name is unknown, a beta is given to a schedule that has no use for
            it, or there is nothing to rescale (T = 1).
    """
    check_choice("name", name, NOISE_SCHEDULES)
    num_train_timesteps = check_integer("num_train_timesteps", num_train_timesteps, 1)
    unused_with = None if uses_betas(name) else f"name={name!r}"
    if trained_betas is not None:
        unused_with = "trained_betas"
    beta_start, beta_end = check_betas(beta_start, beta_end, unused_with)
    rescale_betas_zero_snr = check_flag("rescale_betas_zero_snr", rescale_betas_zero_snr)
    if trained_betas is not None:
        betas = _given_betas(trained_betas, num_train_timesteps)
    elif name == "linear":
        betas = _equal_steps(beta_start, beta_end, num_train_timesteps)
    elif name == "scaled_linear":
        roots = _equal_steps(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps)
        betas = [root * root for root in roots]
    else:
        betas = _cosine_betas(num_train_timesteps)
    alphas = list(accumulate((1 - beta for beta in betas), operator.mul))
    if rescale_betas_zero_snr:
        alphas = _zero_terminal_snr(alphas)
    return NoiseSchedule(torch.tensor(alphas, dtype=torch.float64, device="cpu"))


def uses_betas(name: str) -> bool:
    """Return whether the schedule of a name is made of a first and a last beta."""
    return name != "squaredcos_cap_v2"


def check_betas(beta_start: object, beta_end: object, unused_with: str | None = None) -> tuple[float, float]:
    """Return the first and the last beta of a schedule as floats.

    Args:
        beta_start: the first.
        beta_end: the last.
        unused_with: what the schedule is made of instead of them, for the message.

    Raises:
        TypeError: one is not a number.
        ValueError: one is out of range, they fall, or one that nothing is made of is not its default.
    """
    start, end = check_beta("beta_start", beta_start), check_beta("beta_end", beta_end)
    if unused_with is None and start > end:
        raise ValueError(f"beta_start: expected at most beta_end = {end:g}, got {start:g}")
    for name, beta, default in (("beta_start", start, _BETA_START), ("beta_end", end, _BETA_END)):
        if unused_with is not None and beta != default:
            raise ValueError(
                f"{name}: expected {default:g}, its default, with {unused_with}, which has no use for it, got {beta:g}"
            )
    return start, end


def check_beta(name: str, value: object) -> float:
    """Return a beta as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not in (0, 1].
    """
    beta = check_number(name, value, above=0)
    if beta > 1:
        raise ValueError(f"{name}: expected a number in (0, 1], got {beta!r}")
    return beta


def _given_betas(trained_betas: Sequence[float] | Tensor, count: int) -> list[float]:
    values: list[float] = check_numbers("trained_betas", trained_betas, count, "num_train_timesteps").tolist()
    for i, beta in enumerate(values):
        if not 0 < beta <= 1:
            raise ValueError(f"trained_betas: expected values in (0, 1], got {beta} at index {i}")
    return values


def _equal_steps(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * (i / max(count - 1, 1)) for i in range(count)]


def _cosine_betas(count: int) -> list[float]:
    kept = [_squared_cosine(i / count) for i in range(count + 1)]
    return [min(1 - after / before, _LARGEST_COSINE_BETA) for before, after in pairwise(kept)]


def _squared_cosine(u: float) -> float:
    """Return cos^2(pi/2 (u + 0.008)/1.008) for u in [0, 1]."""
    angle = math.pi / 2 * ((u + _COSINE_OFFSET) / (1 + _COSINE_OFFSET))
    cosine = quarter_cosine(angle, math.pi / 2 * ((1 - u) / (1 + _COSINE_OFFSET)))
    return cosine * cosine


def quarter_cosine(angle: float, to_quarter: float) -> float:
    """Return cos(angle) = sin(to_quarter) of two angles >= 0 that add up to pi/2, by series within an eighth of a turn.

    Libraries' cosines differ in their last bit; this one needs only products and sums.
    """
    if to_quarter < angle:
        return to_quarter * _series(to_quarter * to_quarter, 1)
    return _series(angle * angle, 0)


def _series(square: float, odd: int) -> float:
    """Return sum_n (-square)^n / (2n + odd)!: cos x, or sin x / x for odd = 1, with square = x^2 < 0.62."""
    total = 0.0
    for n in reversed(range(_SERIES_TERMS)):
        total = (-1) ** n / math.factorial(2 * n + odd) + square * total
    return total


def _zero_terminal_snr(alphas: list[float]) -> list[float]:
    roots = [math.sqrt(alpha) for alpha in alphas]
    first, last = roots[0], roots[-1]
    if not first > last:
        raise ValueError(
            f"rescale_betas_zero_snr: expected a schedule that decreases, got T = {len(alphas)} timesteps "
            f"with alphas_cumprod from {alphas[0]} to {alphas[-1]}"
        )
    rescaled = [(root - last) / (first - last) * first for root in roots]
    return [root * root for root in rescaled]
