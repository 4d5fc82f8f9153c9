"""Log-densities against SciPy's, their integral, and what they promise about zero variance and large D."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs, without
from differentiable import Density, random_density
from helpers import DTYPE_PAIRS, assert_same_bits, coefficient_row, every_option, random_case
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from gmmkernel import (
    Column,
    MixtureTables,
    ddim_coefficients,
    gaussian_mixture,
    gmm_step,
    gmm_step_log_prob,
    noise_schedule,
    timesteps,
)


def truth(density: Density) -> list[float]:
    """Return the log-densities by SciPy, float64, from the means of a step without noise and offset."""
    case = density.case
    still = case.coefficients.double().clone()
    still[:, [Column.SIGMA, Column.OFFSET]] = 0
    inputs = {name: tensor.double() for name, tensor in density.leaves().items()}
    wide = density.with_leaves(inputs).case
    mean = replace(wide, coefficients=still, mixture=None, prediction=None).run().prev_sample.flatten(1)
    rows = torch.as_tensor(case.row).expand(len(mean)).tolist()
    result = []
    for b, row in enumerate(rows):
        c = case.coefficients.double()[row]
        elements = mean.shape[1]
        nothing = torch.zeros(elements, dtype=torch.float64)
        parts = [(1.0, nothing, nothing + c[Column.SIGMA])]
        if case.mixture is not None:
            weights, offsets, std = (
                table.double()[row if len(table) > 1 else 0]
                for table in (case.mixture.weights, case.mixture.offsets, case.mixture.std)
            )
            sigma = parts[0][2]
            parts = []
            for k in range(len(weights)):
                own = std[k if len(std) > 1 else 0]
                parts.append(
                    (float(weights[k]), c[Column.OFFSET] * offsets[k], torch.cat([own, sigma[len(own) :]]))
                )
        y = density.prev_sample[b].double().flatten()
        levels = [
            math.log(weight) + stats.norm.logpdf(y.numpy(), (mean[b] + offset).numpy(), std.numpy()).sum()
            for weight, offset, std in parts
        ]
        result.append(float(logsumexp(levels)))
    return result


def check_against_scipy(seed: int, **options: Any) -> None:
    density = random_density(seed, batch=3, **options)
    expected = torch.tensor(truth(density), dtype=torch.float64)
    relative = 1e-13 if options["dtype"] == torch.float64 else 2e-6
    torch.testing.assert_close(density.log_prob().double(), expected, rtol=relative, atol=0)


def test_scipy_gives_the_same_density() -> None:
    check_all(check_against_scipy, numbered(without(every_option(types=DTYPE_PAIRS), "prediction")))


def one_dimension(scale: float, std: float) -> tuple[Tensor, MixtureTables]:
    row = coefficient_row(sample=1.0, sigma=1.0, offset=scale)
    offsets = torch.tensor([[[-1.0], [0.2], [1.5]]])
    weights = torch.tensor([[0.2, 0.5, 0.3]])
    cdf = (weights.double().cumsum(1)[:, :-1] * 2**32).long()
    return row, MixtureTables(cdf, offsets, torch.full((1, 1, 1), std), weights)


def test_the_density_is_that_of_what_a_step_draws() -> None:
    """It integrates to one, and to as much of an interval as samples fall into it."""
    row, mixture = one_dimension(2.0, 0.4)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    x = torch.zeros_like(grid)
    density = gmm_step_log_prob(grid, x, x, row, row=0, mixture=mixture).double().exp()
    width = 16 / 4000
    torch.testing.assert_close(
        density.sum() * width, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-6
    )
    count = 200_000
    many = torch.zeros(count, 1)
    drawn = gmm_step(many, many, row, row=0, seeds=torch.arange(count), mixture=mixture).prev_sample[:, 0]
    for low, high in ((-9, -1), (-1, 1), (1, 9)):
        share = density[(grid[:, 0] >= low) & (grid[:, 0] < high)].sum() * width
        seen = ((drawn >= low) & (drawn < high)).double().mean()
        assert abs(seen - share) < 5 * math.sqrt(share * (1 - share) / count) + width


def test_the_score_has_mean_zero_and_estimates_gradients() -> None:
    """E[d log p] = 0, and E[f d log p] = d E[f]: what reward fine-tuning rests on; within five standard errors."""
    row, mixture = one_dimension(2.0, 0.4)
    count = 100_000
    x = torch.zeros(count, 1)
    weights = mixture.weights.clone().requires_grad_()
    offsets = mixture.offsets.clone().requires_grad_()
    made = gmm_step(
        x,
        x,
        row,
        row=0,
        seeds=torch.arange(count),
        mixture=mixture._replace(weights=weights, offsets=offsets),
        return_log_prob=True,
    )
    y = made.prev_sample.detach()[:, 0]
    assert_same_bits(made.log_prob, gmm_step_log_prob(made.prev_sample, x, x, row, row=0, mixture=mixture))
    for reward, of_offsets in ((torch.ones_like(y), torch.zeros(3)), (y, 2.0 * mixture.weights[0])):
        centred = reward - reward.mean() if reward.std() > 0 else reward
        (gradient,) = torch.autograd.grad((made.log_prob * centred).mean(), offsets, retain_graph=True)
        error = centred.abs().max() * 2.0 / 0.4 / math.sqrt(count)
        torch.testing.assert_close(gradient[0, :, 0], of_offsets, rtol=0, atol=float(5 * error))
    # The weights' derivative of the expected y, but for a constant: their sum is fixed.
    (gradient,) = torch.autograd.grad((made.log_prob * (y - y.mean())).mean(), weights)
    means = 2.0 * mixture.offsets[0, :, 0]
    slope = gradient[0] - gradient[0].mean()
    torch.testing.assert_close(slope, means - means.mean(), rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_variance_there_is_no_density(dtype: torch.dtype) -> None:
    case = random_case(
        2, shape=(5,), dtype=dtype, output_dtype=dtype, components=3, removed=2, per_sample=False
    )
    weights = torch.full((1, 3), 1 / 3, dtype=dtype)
    coefficients = case.coefficients.clone()
    for sigma, std, exists in ((0.5, 0.5, True), (0.0, 0.5, False), (0.5, 0.0, False)):
        coefficients[:, Column.SIGMA] = sigma
        mixture = case.mixture._replace(std=torch.full_like(case.mixture.std, std), weights=weights)
        density = Density(replace(case, coefficients=coefficients, mixture=mixture), case.sample)
        made = density.gradients()
        assert bool(made["log_prob"].isfinite().all()) == exists
        assert bool(made["log_prob"].isnan().all()) == (not exists)
        assert bool(made["sample"].isfinite().all()) == exists
    gaussian = replace(case, coefficients=coefficients * 0, mixture=None)
    assert Density(gaussian, case.sample).log_prob().isnan().all()


def without_density(density: Density, how: str) -> Density:
    """Return the log-densities of four samples with rows of their own, the first and third of which have none."""
    case = replace(density.case, row=torch.arange(4))
    sample, output, coefficients = (
        tensor.clone() for tensor in (case.sample, case.model_output, case.coefficients)
    )
    if how == "no noise":
        coefficients[::2, Column.SIGMA] = 0
    elif how == "bad rows":
        coefficients[0], coefficients[2] = math.inf, math.nan
    else:
        sample[::2, 1], output[::2, 2] = math.inf, math.nan
    mixture = case.mixture
    if mixture is not None and how == "no noise":
        std = mixture.std.expand(4, -1, -1).clone()
        std[::2] = 0
        mixture = mixture._replace(std=std)
    return replace(
        density,
        case=replace(case, sample=sample, model_output=output, coefficients=coefficients, mixture=mixture),
    )


def check_no_part(
    types: tuple[torch.dtype, torch.dtype],
    components: int,
    how: str,
    backend: str,
) -> None:
    options = {"shape": (70,), "batch": 4, "guidance": True, "history": 2, "components": components}
    whole = random_density(3, dtype=types[0], output_dtype=types[1], removed=20, **options)
    whole = without_density(whole, how)
    assert whole.log_prob(backend=backend).isfinite().tolist() == [False, True, False, True]
    grad = torch.tensor([0.0, 1.5, -0.0, -0.5], dtype=whole.case.coefficients.dtype)
    made = whole.gradients(grad, backend=backend)
    odd = torch.tensor([1, 3])
    alone = Density(whole.case.take(odd), whole.prev_sample[odd]).gradients(grad[odd], backend=backend)
    for name in set(made) - {"log_prob"}:
        if name in ("coefficients", "offsets", "std", "weights"):
            assert_same_bits(made[name], alone[name])
        else:
            assert_same_bits(made[name][odd], alone[name])
            assert_same_bits(made[name][::2], torch.zeros_like(made[name][::2]))


def test_a_sample_that_has_no_part_in_the_loss_has_none_in_the_gradients() -> None:
    """Though it has no density: what it shares with others gets what it does without it."""
    choices = pairs(
        types=[DTYPE_PAIRS[0], DTYPE_PAIRS[3], DTYPE_PAIRS[8]],
        components=[0, 1, 3],
        how=["no noise", "bad rows", "bad samples"],
        backend=["cpu", "reference"],
    )
    check_all(check_no_part, choices)


@pytest.mark.parametrize("how", ["no noise", "bad rows", "bad samples"])
@pytest.mark.parametrize("components", [0, 3])
def test_second_derivatives_of_what_has_no_part_are_zero(components: int, how: str) -> None:
    def derivatives(density: Density, grad: Tensor) -> tuple[list[Tensor], Tensor]:
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in density.leaves().items()}
        grad = grad.clone().requires_grad_()
        made = density.with_leaves(leaves).log_prob()
        first = torch.autograd.grad(made, list(leaves.values()), grad, create_graph=True)
        squares = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(squares, [*leaves.values(), grad], materialize_grads=True)
        return list(second[:-1]), second[-1]

    double = {"dtype": torch.float64, "output_dtype": torch.float64}
    options = {
        "shape": (7,),
        "batch": 4,
        "guidance": True,
        "history": 2,
        "components": components,
        "removed": 2,
    }
    whole = without_density(random_density(3, **options, **double), how)
    grad = torch.tensor([0.0, 1.5, -0.0, -0.5], dtype=torch.float64)
    odd = torch.tensor([1, 3])
    made, of_grad = derivatives(whole, grad)
    alone, of_grad_alone = derivatives(Density(whole.case.take(odd), whole.prev_sample[odd]), grad[odd])
    assert of_grad[::2].tolist() == [0, 0]
    torch.testing.assert_close(of_grad[odd], of_grad_alone)
    for tensor, expected, name in zip(made, alone, whole.leaves(), strict=True):
        if name in ("coefficients", "offsets", "std", "weights"):
            torch.testing.assert_close(tensor, expected)
        else:
            torch.testing.assert_close(tensor[odd], expected)
            assert not tensor[::2].any()
            assert tensor[odd].any()


def test_a_gradient_of_zero_has_a_derivative_where_there_is_a_density() -> None:
    """With respect to the gradient itself: the log-density's own."""
    density = random_density(4, batch=2, shape=(5,), components=2, dtype=torch.float64)
    leaf = density.case.sample.clone().requires_grad_()
    grad = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    made = density.with_leaves({"sample": leaf}).log_prob()
    (first,) = torch.autograd.grad(made, leaf, grad, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), grad)
    (slope,) = torch.autograd.grad(density.with_leaves({"sample": leaf}).log_prob().sum(), leaf)
    torch.testing.assert_close(second, slope.sum(1))
    assert not first.any()


def test_a_step_masked_out_of_the_loss_leaves_shared_weights_alone() -> None:
    """As one trains a policy: the last step, without noise, is left out by `where`, with `return_log_prob` as well."""
    torch.manual_seed(0)
    network, x, rows = torch.nn.Linear(12, 12), torch.randn(3, 12), torch.tensor([0, 1, 3])
    coefficients = ddim_coefficients(noise_schedule("linear"), timesteps(4), eta=1.0)
    mixture = gaussian_mixture("ortho", elements=12, n_components=3, n_steps=4).bind(coefficients)
    offsets = mixture.offsets.detach().clone().requires_grad_()
    weights = mixture.weights.detach().clone().requires_grad_()
    tables = mixture._replace(offsets=offsets, weights=weights)
    leaves = [*network.parameters(), offsets, weights]

    def gradients(count: int) -> list[Tensor]:
        made = gmm_step(
            x[:count],
            network(x[:count]),
            coefficients,
            row=rows[:count],
            seeds=torch.arange(count),
            mixture=tables,
            return_log_prob=True,
        )
        again = gmm_step_log_prob(
            torch.ones(count, 12),
            x[:count],
            network(x[:count]),
            coefficients,
            row=rows[:count],
            mixture=tables,
        )
        loss = torch.where(rows[:count] < 3, made.log_prob + again, 0.0).sum()
        return list(torch.autograd.grad(loss, leaves))

    for masked, left_out in zip(gradients(3), gradients(2), strict=True):
        assert masked.isfinite().all()
        assert masked.any()
        torch.testing.assert_close(masked, left_out)


def test_steps_without_noise_have_none() -> None:
    rows = ddim_coefficients(noise_schedule("linear"), timesteps(4), eta=1.0)
    mixture = gaussian_mixture("ortho", elements=6, scale=1e-3, n_components=3, n_steps=4).bind(rows)
    x = torch.linspace(-1, 1, 12).view(2, 6)
    for row in range(4):
        made = gmm_step(x, x, rows, row=row, seeds=torch.arange(2), mixture=mixture, return_log_prob=True)
        assert bool(made.log_prob.isnan().all()) == (float(rows[row, Column.SIGMA]) == 0)
    assert float(rows[-1, Column.SIGMA]) == 0


def test_components_are_told_apart_where_the_density_itself_has_no_bits_left() -> None:
    """At D = 2^20 float32 keeps a tenth of the log-density, but gradients of weights need the difference of two."""
    elements = 2**20
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, elements, generator=generator)
    offsets = torch.zeros(1, 2, elements)
    offsets[0, 0, :16], offsets[0, 1, 16:32] = 0.25, 0.25
    weights = torch.tensor([[0.5, 0.5]], requires_grad=True)
    mixture = MixtureTables(torch.tensor([[2**31]]), offsets, torch.full((1, 1, 1), 1.0), weights)
    zero = torch.zeros_like(y)
    made = gmm_step_log_prob(y, zero, zero, coefficient_row(sigma=1.0, offset=1.0), row=0, mixture=mixture)
    made.sum().backward()
    energies = ((y.double() - offsets[0].double()) ** 2).sum(1) / 2
    shares = torch.softmax(-energies, 0)
    assert float(abs(made.detach())) * 2**-24 > 0.05
    torch.testing.assert_close(weights.grad[0].double() / 2, shares, rtol=1e-5, atol=0)
