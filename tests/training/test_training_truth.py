"""The loss against its equations in float64, by autograd; what its targets have as their best prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from covering import check_all, pairs
from helpers import DTYPES, assert_same_bits
from losses import TrainingCase, random_case
from torch import Tensor

from gmmkernel import (
    Stream,
    TrainingColumn,
    add_noise,
    noise_schedule,
    skip_step_loss,
    standard_normal,
    training_coefficients,
)

SCHEDULE = noise_schedule()
ALPHAS = SCHEDULE.alphas_cumprod
TIMESTEPS = torch.tensor([0, 4, 8, 9, 10, 300, 999])
SKIP, TAU = 9, 0.9


def noises(case: TrainingCase) -> tuple[Tensor, Tensor]:
    shape = case.data.shape[1:]
    return tuple(
        standard_normal(case.seeds, shape, step=case.step, stream=stream).double()
        for stream in (Stream.TRAINING, Stream.TRAINING_SKIP)
    )


def batch(dtype: torch.dtype, target: str, prediction_type: str) -> TrainingCase:
    case = random_case(11, batch=len(TIMESTEPS), shape=(3, 5, 7), dtype=dtype, sample_dtype=dtype)
    coefficients = training_coefficients(
        SCHEDULE,
        skip=SKIP,
        tau=TAU,
        target=target,
        prediction_type=prediction_type,
        dtype=case.coefficients.dtype,
    )
    case = replace(case, coefficients=coefficients, row=TIMESTEPS)
    return replace(case, sample=case.noised())


def equations(case: TrainingCase, target: str, prediction_type: str, output: Tensor, x_t: Tensor) -> Tensor:
    """Return the losses as methods state them, in float64."""
    e1, e2 = (noise.flatten(1) for noise in noises(case))
    output, x_t = output.flatten(1), x_t.flatten(1)
    losses = []
    for b, t in enumerate(TIMESTEPS.tolist()):
        a = ALPHAS[t]
        eps = output[b]
        if prediction_type == "v_prediction":
            eps = a.sqrt() * output[b] + (1 - a).sqrt() * x_t[b]
        if prediction_type == "sample":
            eps = (x_t[b] - a.sqrt() * output[b]) / (1 - a).sqrt()
        own = ((e1[b] - eps) ** 2).mean()
        if t < SKIP:
            losses.append(own)
            continue
        ratio = a / ALPHAS[t - SKIP]
        scale = ((1 - ratio) / ratio).sqrt()
        skip_target = e1[b] if target == "same" else e2[b]
        if target == "consistent":
            scale = ((1 - ratio) / (1 - a)).sqrt()
            skip_target = scale * e1[b] + (1 - scale**2).sqrt() * e2[b]
        losses.append(TAU * own + (1 - TAU) * ((skip_target - scale * eps) ** 2).mean())
    return torch.stack(losses)


def check_equations(target: str, prediction_type: str, dtype: torch.dtype, backend: str) -> None:
    case = batch(dtype, target, prediction_type)
    own, wide = (
        [tensor.detach().to(kind).requires_grad_() for tensor in (case.model_output, case.sample)]
        for kind in (dtype, torch.float64)
    )
    made = case.loss(model_output=own[0], sample=own[1], backend=backend)
    expected = equations(case, target, prediction_type, *wide)
    relative = 2e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(made.double(), expected, rtol=relative, atol=0)
    gradients = torch.autograd.grad(made, own, case.grad)
    truth = torch.autograd.grad(expected, wide, case.grad.double(), allow_unused=True)
    for actual, wanted in zip(gradients, truth, strict=True):
        wanted = torch.zeros_like(wide[0]) if wanted is None else wanted
        for b in range(len(TIMESTEPS)):
            largest = float(wanted[b].abs().max())
            torch.testing.assert_close(actual[b].double(), wanted[b], rtol=0, atol=2 * relative * largest)


def test_loss_and_gradients_are_those_of_the_equations() -> None:
    check_all(
        check_equations,
        pairs(
            target=["independent", "same", "consistent"],
            prediction_type=["epsilon", "sample", "v_prediction"],
            dtype=[torch.float32, torch.float64],
            backend=["cpu", "reference"],
        ),
    )


def test_the_training_sample_is_that_of_the_equation(backend: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 0.02)):
        case = batch(dtype, "same", "epsilon")
        noised, noise = add_noise(
            case.data,
            case.coefficients,
            row=case.row,
            step=case.step,
            seeds=case.seeds,
            return_noise=True,
            backend=backend,
        )
        a = ALPHAS[TIMESTEPS][:, None, None, None]
        expected = a.sqrt() * case.data.double() + (1 - a).sqrt() * noises(case)[0]
        torch.testing.assert_close(noised.double(), expected, rtol=0, atol=tolerance)
        drawn = standard_normal(
            case.seeds, case.data.shape[1:], step=case.step, stream=Stream.TRAINING, dtype=dtype
        )
        assert_same_bits(noise, drawn)


def test_noise_is_fresh_with_every_step_and_the_loss_knows_it() -> None:
    coefficients = training_coefficients(SCHEDULE, tau=1.0)
    data, seeds = torch.zeros(2, 1000), torch.tensor([3, 4])
    given = {"row": 999, "seeds": seeds}
    first, second = (add_noise(data, coefficients, step=step, **given) for step in (1, 2))
    assert float((first * second).mean().abs()) < 0.1
    noise = standard_normal(seeds, (1000,), step=2, stream=Stream.TRAINING)
    assert float(skip_step_loss(noise, coefficients, step=2, **given).max()) == 0
    assert float(skip_step_loss(noise, coefficients, step=1, **given).min()) > 1.5


def test_no_second_term_where_it_has_no_weight(backend: str) -> None:
    """Nor anything of what it is made of, were it infinite."""
    case = random_case(2, dtype=torch.float32, with_sample=False, per_sample=False, rows=1)
    row = {"row": 0, "backend": backend}
    plain, wild = case.coefficients.clone(), case.coefficients.clone()
    plain[:, TrainingColumn.SKIP_WEIGHT :] = 0
    wild[:, TrainingColumn.SKIP_WEIGHT] = 0
    wild[:, TrainingColumn.SKIP_SCALE :] = torch.inf
    expected = replace(case, coefficients=plain, row=0).results(backend=backend)
    made = replace(case, coefficients=wild, row=0).results(backend=backend)
    for name, tensor in expected.items():
        assert_same_bits(made[name], tensor)
    own = (noises(case)[0] - plain[0, TrainingColumn.EPS_OUTPUT].double() * case.model_output.double()) ** 2
    loss = plain[0, TrainingColumn.WEIGHT].double() * own.mean(1)
    torch.testing.assert_close(
        replace(case, coefficients=plain).loss(**row).double(), loss, rtol=1e-5, atol=0
    )


def test_a_sample_that_no_row_reads_is_not_looked_at(backend: str) -> None:
    case = random_case(4, with_sample=False)
    nothing = torch.full_like(case.model_output, torch.nan)
    for name, tensor in case.results(backend=backend).items():
        assert_same_bits(replace(case, sample=nothing).results(backend=backend)[name], tensor)
    leaf = nothing.requires_grad_()
    (gradient,) = torch.autograd.grad(case.loss(sample=leaf, backend=backend), leaf, case.grad)
    assert not gradient.any()


@pytest.mark.parametrize("target", ["independent", "same", "consistent"])
def test_the_best_prediction(target: str) -> None:
    """Data of mean 0 and variance 1: E[e1 | x_t] = sqrt(1 - a) x_t, which the best prediction is a multiple of."""
    timestep, tau, skip = 500, 0.5, 100
    coefficients = training_coefficients(SCHEDULE, tau=tau, skip=skip, target=target, dtype=torch.float64)
    seeds = torch.arange(64)
    data = standard_normal(seeds, (4096,), dtype=torch.float64)
    given = {"row": timestep, "seeds": seeds}
    x_t = add_noise(data, coefficients, **given)
    a = ALPHAS[timestep]
    size = torch.ones((), dtype=torch.float64, requires_grad=True)
    exact = (1 - a).sqrt() * x_t
    losses = skip_step_loss(size * exact, coefficients, **given)
    (slope,) = torch.autograd.grad(losses.mean(), size, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, size)
    best = 1 - float(slope.detach() / curvature)
    ratio = a / ALPHAS[timestep - skip]
    scale = ((1 - ratio) / ratio).sqrt()
    weight = tau + (1 - tau) * scale**2
    expected = {"independent": tau / weight, "same": (tau + (1 - tau) * scale) / weight, "consistent": 1.0}
    assert expected["independent"] < 0.75
    assert abs(best - float(expected[target])) < 0.01


def test_the_consistent_target_is_the_noise_of_the_skipped_step() -> None:
    """x_t from x_{t - s} with it is x_t from the data with e1: their covariance is that of the two equations."""
    coefficients = training_coefficients(SCHEDULE, target="consistent", skip=SKIP, dtype=torch.float64)
    for t in (SKIP, 100, 999):
        row = coefficients[t]
        a_t, a_s = ALPHAS[t], ALPHAS[t - SKIP]
        kappa, rest = row[TrainingColumn.SKIP_NOISE], row[TrainingColumn.SKIP_FRESH]
        # e1 = (sqrt(r (1 - a_s)) e_s' + sqrt(1 - r) e_skip) / sqrt(1 - a_t)
        ratio = a_t / a_s
        share = (1 - ratio).sqrt() / (1 - a_t).sqrt()
        torch.testing.assert_close(kappa, share, rtol=1e-12, atol=0)
        torch.testing.assert_close(kappa**2 + rest**2, torch.ones_like(kappa), rtol=1e-12, atol=0)
        torch.testing.assert_close(rest, (ratio * (1 - a_s) / (1 - a_t)).sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_data_s_gradient_is_the_signal_s_share(dtype: torch.dtype, backend: str) -> None:
    case = random_case(6, batch=3, dtype=dtype, per_sample=True)
    case = replace(case, row=torch.tensor([0, 4, 1]), step=torch.tensor([0, 2**32 - 1, 7]))
    grad = torch.randn(case.data.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    leaf = case.data.clone().requires_grad_()
    (made,) = torch.autograd.grad(replace(case, data=leaf).noised(backend=backend), leaf, grad)
    signal = case.coefficients[case.row, TrainingColumn.SIGNAL]
    assert_same_bits(made, (grad.to(signal.dtype) * signal[:, None]).to(dtype))
    (one,) = torch.autograd.grad(replace(case, data=leaf, row=4, step=0).noised(backend=backend), leaf, grad)
    assert_same_bits(one[1], made[1])
