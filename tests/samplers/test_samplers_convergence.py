"""How fast each solver's error falls on Gaussian data, whose denoiser and ODE solution are known exactly.

For x0 ~ N(0, v) the noise expected in x is sqrt(1 - a) x/(a v + 1 - a), and the ODE's solutions are proportional to
sqrt(a v + 1 - a).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from denoisers import per_sample
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    NoiseSchedule,
    PNDMSampler,
    Sampler,
    standard_normal,
)

TRAIN_STEPS = 3840
VARIANCE = 0.3
SEEDS = torch.tensor([9])
OPTIONS: dict[str, Any] = {"spacing": "trailing", "set_alpha_to_one": False, "dtype": torch.float64}


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    """A = cos^2 of an angle that grows in equal steps from 0.3 to 1.4: neither end is singular."""
    angles = [0.3 + 1.1 * t / (TRAIN_STEPS - 1) for t in range(TRAIN_STEPS)]
    return NoiseSchedule(torch.tensor([math.cos(angle) ** 2 for angle in angles], dtype=torch.float64))


def spread(schedule: NoiseSchedule, timestep: int) -> float:
    """The standard deviation of x at a timestep."""
    a = float(schedule.alphas_cumprod[timestep])
    return math.sqrt(a * VARIANCE + 1 - a)


def denoiser(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        a = per_sample(schedule.alphas_cumprod[timestep], x)
        return x * ((1 - a).sqrt() / (a * VARIANCE + 1 - a))

    return predict


def rates(errors: list[float]) -> list[float]:
    """The order of convergence between runs of n and of 2 n steps."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


SOLVERS: dict[str, tuple[Callable[[NoiseSchedule, int], Sampler], float]] = {
    "ddim": (lambda s, n: DDIMSampler(s, n, **OPTIONS), 1),
    "deis-2-log-rho": (lambda s, n: DEISSampler(s, n, solver_order=2, lower_order_final=False, **OPTIONS), 2),
    "deis-2-rho": (
        lambda s, n: DEISSampler(
            s, n, solver_order=2, interpolation="rho", lower_order_final=False, **OPTIONS
        ),
        2,
    ),
    # The first step is DDIM's, with an error of the square of its length: no start of order 1 leads above 2.
    "deis-3-log-rho": (lambda s, n: DEISSampler(s, n, solver_order=3, lower_order_final=False, **OPTIONS), 2),
    "dpm-solver++": (lambda s, n: DPMSolverSampler(s, n, lower_order_final=False, **OPTIONS), 2),
    # Adams-Bashforth's coefficients belong to equal steps of rho; these are of t: order 2 of the paper.
    "plms": (lambda s, n: PNDMSampler(s, n, skip_prk_steps=True, **OPTIONS), 2),
    "f-pndm": (lambda s, n: PNDMSampler(s, n, **OPTIONS), 2),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name: str, schedule: NoiseSchedule) -> None:
    make, order = SOLVERS[name]
    exact = spread(schedule, 0) / spread(schedule, TRAIN_STEPS - 1)
    start = standard_normal(SEEDS, (1,), dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        result = make(schedule, steps).sample(denoiser(schedule), SEEDS, (1,), progress=False).sample
        errors.append(abs(float(result / start) / exact - 1))
    assert all(order - 0.2 < rate < order + 0.2 for rate in rates(errors)), (errors, rates(errors))
    assert errors[-1] < 5e-3**order * 20


@pytest.mark.parametrize("interpolation", ["log-rho", "rho"])
@pytest.mark.parametrize("order", [2, 3])
def test_deis_has_its_order_once_its_history_is_there(
    order: int, interpolation: str, schedule: NoiseSchedule
) -> None:
    """With the exact solution as the start and the history of the first steps, so that no low-order step is taken."""
    predict = denoiser(schedule)
    errors = []
    for steps in (60, 120, 240, 480):
        sampler = DEISSampler(
            schedule,
            steps,
            solver_order=order,
            interpolation=interpolation,
            lower_order_final=False,
            **OPTIONS,
        )
        history: tuple[Tensor, ...] = ()
        for index, timestep in enumerate(sampler.timesteps):
            if index < order:
                x = torch.full((1, 1), spread(schedule, int(timestep)), dtype=torch.float64)
            made = sampler.step(predict(x, timestep), index, x, SEEDS, history=history)
            x, history = made.prev_sample, made.history
        errors.append(abs(float(x) / spread(schedule, 0) - 1))
    assert order - 0.35 < rates(errors)[-1] < order + 0.35, (errors, rates(errors))


def test_euler_of_a_flow_has_order_one() -> None:
    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        t = per_sample(timestep, x) / 1000
        return x * ((t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t * t))

    start = standard_normal(SEEDS, (1,), dtype=torch.float64)
    errors = []
    for steps in (64, 128, 256):
        result = FlowSampler(steps, dtype=torch.float64).sample(velocity, SEEDS, (1,), progress=False).sample
        errors.append(abs(float(result / start) / math.sqrt(VARIANCE) - 1))
    assert all(0.95 < rate < 1.05 for rate in rates(errors)), errors


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_stochastic_flow_keeps_the_marginal(eta: float) -> None:
    """With x0 known exactly (data at one point), x_s ~ N((1 - s) x0, s^2) at every step, whatever eta."""
    data, count = 0.7, 20_000

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        return (x - data) / (per_sample(timestep, x) / 1000)

    sampler = FlowSampler(5, eta=eta, dtype=torch.float64)
    result = sampler.sample(velocity, torch.arange(count), (1,), progress=False, return_trajectory=True)
    assert result.trajectory is not None
    assert result.x0 is not None
    for index, s in enumerate([0.8, 0.6, 0.4, 0.2, 0.0]):
        state = result.trajectory[index + 1]
        assert abs(float(state.mean()) - (1 - s) * data) <= 4 * s / math.sqrt(count) + 1e-12
        assert abs(float(state.std()) - s) <= 4 * s / math.sqrt(2 * count) + 1e-12
        torch.testing.assert_close(result.x0[index], torch.full_like(state, data), rtol=1e-12, atol=0)
    moved = (result.trajectory[2] - 0.4 * data) / 0.6 - (result.trajectory[1] - 0.2 * data) / 0.8
    assert (float(moved.abs().max()) > 1e-3) == (eta > 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_that_does_not_change_is_followed_exactly(name: str, schedule: NoiseSchedule) -> None:
    """Eps constant makes x/sqrt(a) linear in rho, and every solver of eps exact; one of x0 once x0 is constant."""
    eps = torch.tensor([[0.37]], dtype=torch.float64)
    a_first, a_last = float(schedule.alphas_cumprod[-1]), float(schedule.alphas_cumprod[0])
    rho_first, rho_last = (math.sqrt((1 - a) / a) for a in (a_first, a_last))
    start = standard_normal(SEEDS, (1,), dtype=torch.float64)
    exact = math.sqrt(a_last) * (start / math.sqrt(a_first) + (rho_last - rho_first) * eps)
    result = SOLVERS[name][0](schedule, 6).sample(lambda x, t: eps, SEEDS, (1,), progress=False).sample
    torch.testing.assert_close(result, exact, rtol=1e-12, atol=0)
