"""Gradients against independent ones: differences, PyTorch's own of the equations, the clip's by its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, without
from derivatives import DIRECTED, assert_derivatives
from differentiable import (
    cotangent,
    leaves_of,
    random_density,
    smooth,
    step_gradients,
    with_leaves,
)
from helpers import DTYPE_PAIRS, StepCase, coefficient_row, every_option, random_case
from torch import Tensor
from torch.autograd import gradgradcheck

from gmmkernel import Column, MixtureTables, draw_components, gmm_step, standard_normal
from gmmkernel.backends.constants import Stream
from gmmkernel.ops.eager import predict

CHOICES = every_option(sizes=[5], types=[(torch.float64, torch.float64)], batch=[2])
Function = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def smooth_step(seed: int, **options: Any) -> tuple[Function, dict[str, Tensor]]:
    case = smooth(random_case(seed, **options))

    def step(leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in with_leaves(case, leaves).run()[:2] if tensor is not None)

    return step, leaves_of(case)


def smooth_density(seed: int, **options: Any) -> tuple[Function, dict[str, Tensor]]:
    density = random_density(seed, **without([options], "prediction")[0])
    density = replace(density, case=smooth(density.case))
    return lambda leaves: (density.with_leaves(leaves).log_prob(),), density.leaves()


@pytest.mark.parametrize("made", [smooth_step, smooth_density])
def test_differences_give_the_same_derivatives(made: Callable[..., Any]) -> None:
    """Of first and second order, in float64; the reference has the kernels' bits."""
    check_all(lambda **options: assert_derivatives(*made(**options)), numbered(CHOICES))


@pytest.mark.parametrize("made", [smooth_step, smooth_density])
def test_second_derivatives_pass_pytorch_s_checks(made: Callable[..., Any]) -> None:
    """Where gradients that were sent are missing, too."""
    function, leaves = made(1, **CHOICES[-1])
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items() if leaf.numel()}

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        return function(dict(zip(leaves, tensors, strict=True)))

    assert gradgradcheck(of_tensors, list(leaves.values()), **DIRECTED)


def plainly(case: StepCase) -> tuple[Tensor, ...]:
    """Return a step's results by the equations, float64, for autograd to go through."""
    batch = case.sample.shape[0]
    rows = torch.as_tensor(case.row).expand(batch)
    steps = case.row if case.step is None else case.step
    c = case.coefficients.double()[rows]

    def column(name: str) -> Tensor:
        return c[:, Column[name]].reshape(batch, *[1] * (case.sample.dim() - 1))

    x, o = case.sample.double(), case.model_output.double()
    if case.model_output_uncond is not None:
        u = case.model_output_uncond.double()
        o = u + column("GUIDANCE") * (o - u)
    x0 = (column("X0_SAMPLE") * x + column("X0_OUTPUT") * o).clamp(column("CLIP_MIN"), column("CLIP_MAX"))
    y = column("SAMPLE") * x + column("OUTPUT") * o + column("X0") * x0
    for j, stored in enumerate(case.history):
        y = y + column(f"HISTORY_{j}") * stored.double()
    mean = y
    z = standard_normal(
        case.seeds, case.sample.shape[1:], step=steps, stream=Stream.TRANSITION, dtype=torch.float64
    )
    std = column("SIGMA").expand_as(y).flatten(1)
    if case.mixture is not None:
        k = draw_components(case.seeds, case.mixture.cdf, row=case.row, step=steps)
        entry = {
            table: rows if len(getattr(case.mixture, table)) > 1 else 0 * rows for table in ("offsets", "std")
        }
        y = y + column("OFFSET") * case.mixture.offsets.double()[entry["offsets"], k].view_as(y)
        own = case.mixture.std.double()[entry["std"], k if case.mixture.std.shape[1] > 1 else 0 * k]
        std = torch.cat([own, std[:, own.shape[1] :]], dim=1)
    y = y + std.view_as(y) * z
    epsilon = column("EPS_SAMPLE") * x + column("EPS_OUTPUT") * o
    made = {"x0": x0, "epsilon": epsilon, "model_output": o, "mean": mean}
    return (y,) if case.prediction is None else (y, made[case.prediction])


ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def check_against_pytorch(seed: int, **options: Any) -> None:
    case = random_case(seed, batch=3, **options)
    leaves = {name: tensor.double().requires_grad_() for name, tensor in leaves_of(case).items()}
    results = plainly(with_leaves(case, leaves))
    grads = [cotangent(case.sample, 1 + i).double() for i in range(len(results))]
    expected = torch.autograd.grad(results, list(leaves.values()), grads, allow_unused=True)
    for (name, actual), truth in zip(step_gradients(case).items(), expected, strict=True):
        truth = torch.zeros_like(actual, dtype=torch.float64) if truth is None else truth
        # Some are sums over elements or samples.
        scale = 100 if name in ("coefficients", "offsets", "std") else 10
        error = scale * ROUNDOFF[case.coefficients.dtype] + ROUNDOFF[actual.dtype]
        # Ingredients are of order 1, but a few cancel.
        torch.testing.assert_close(actual.double(), truth, rtol=error, atol=10 * error, msg=name)


def test_pytorch_gives_the_same_gradients() -> None:
    check_all(check_against_pytorch, numbered(every_option(types=DTYPE_PAIRS)))


def clipped(
    x0: list[float], low: float, high: float, backend: str, plainly: bool
) -> tuple[list[float], list[float], list[float]]:
    """Return the derivatives of a step, 2 x0, with respect to x0 before clipping and to each bound, by elements.

    The kernels', or those of the plain PyTorch that second derivatives are made of.
    """
    row = coefficient_row(x0_sample=1.0, x0=2.0, clip_min=low, clip_max=high).expand(len(x0), -1)
    sample, row = torch.tensor(x0)[:, None].requires_grad_(), row.clone().requires_grad_()
    nothing, each = torch.zeros(len(x0), 1), torch.arange(len(x0))
    if plainly:
        result = 2 * predict(sample, nothing, None, (), row)[2]
    else:
        result = gmm_step(sample, nothing, row, row=each, seeds=each, step=0, backend=backend).prev_sample
    of_sample, of_row = torch.autograd.grad(result, (sample, row), torch.ones_like(result))
    derivatives = of_sample[:, 0], of_row[:, Column.CLIP_MIN], of_row[:, Column.CLIP_MAX]
    of_x0, of_low, of_high = (derivative.tolist() for derivative in derivatives)
    return of_x0, of_low, of_high


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (-math.inf, math.inf), (0.0, 0.0), (1.0, -1.0), (-math.inf, 0.5), (-0.0, math.inf)],
)
@pytest.mark.parametrize("plainly", [False, True], ids=["kernel", "plain"])
def test_the_clip_s_derivative_is_that_of_a_choice(
    low: float, high: float, plainly: bool, backend: str
) -> None:
    """Of the lower bound below it, then of the upper one above it, else of x0: on a bound too, and for NaN."""
    values = [-3.0, -1.0, math.nextafter(-1.0, -2.0), -0.5, -0.0, 0.0, 1e-45, 0.5, 0.7, 1.0, 1.0000001, 5.0]
    values += [math.inf, -math.inf, math.nan]
    expected: list[tuple[float, float, float]] = []
    for value in torch.tensor(values).tolist():
        below = value < low
        above = (low if below else value) > high
        expected.append((2.0 * (not below and not above), 2.0 * (below and not above), 2.0 * above))
    assert list(zip(*clipped(values, low, high, backend, plainly), strict=True)) == expected


def test_what_a_row_switches_off_has_gradients_all_the_same() -> None:
    """Derivatives at 0 of a history's coefficient, the offset's, and sigma's, whose terms are then left out."""
    seeds, row = torch.tensor([3]), coefficient_row().requires_grad_()
    stored = torch.tensor([[1.0, 2.0, 4.0]])
    mixture = MixtureTables(
        torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[[5.0, 6.0, 7.0]]]), torch.empty(1, 1, 0)
    )
    nothing = torch.zeros(1, 3)
    made = gmm_step(nothing, nothing, row, row=0, seeds=seeds, mixture=mixture, history=[stored])
    assert not made.prev_sample.any()
    made.prev_sample.sum().backward()
    noise = standard_normal(seeds, (3,), stream=Stream.TRANSITION)
    assert row.grad[0, Column.HISTORY_0] == 7
    assert row.grad[0, Column.OFFSET] == 18
    torch.testing.assert_close(row.grad[0, Column.SIGMA], noise.sum())


def test_entries_that_nobody_used_have_gradient_zero() -> None:
    case = random_case(1, batch=2, components=8, removed=63, rows=4, per_sample=False, dtype=torch.float32)
    mixture = MixtureTables(
        case.mixture.cdf[:1],
        case.mixture.offsets[:1].repeat(4, 1, 1),
        case.mixture.std[:1].repeat(4, 1, 1),
    )
    made: Any = step_gradients(replace(case, mixture=mixture, row=2, step=5))
    drawn = set(draw_components(case.seeds, mixture.cdf, step=5).tolist())
    for row in range(4):
        assert bool(made["coefficients"][row].any()) == (row == 2)
        assert bool(made["std"][row].any()) == (row == 2)
        used = {k for k in range(8) if made["offsets"][row, k].any()}
        assert used == (drawn if row == 2 and case.coefficients[2, Column.OFFSET] else set())
