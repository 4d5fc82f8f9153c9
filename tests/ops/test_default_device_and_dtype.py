"""PyTorch's default device and dtype change nothing: every tensor made inside says its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, random_case
from torch import Tensor

from gmmkernel import (
    Column,
    add_noise,
    ddim_coefficients,
    draw_components,
    gaussian_mixture,
    gmm_step,
    gmm_step_log_prob,
    mixture_moments,
    moment_report,
    noise_schedule,
    orthonormalize,
    skip_step_loss,
    standard_normal,
    timesteps,
    training_coefficients,
)

SCHEDULE = noise_schedule("linear")
SEEDS, ROW = torch.arange(2), torch.tensor([1, 2])
TRAINING_ROWS = training_coefficients(SCHEDULE)
CASE = random_case(
    1, batch=2, components=3, removed=9, guidance=True, history=2, prediction="x0", dtype=torch.float32
)
ROWS = ddim_coefficients(SCHEDULE, timesteps(5), eta=1.0)
EXACT = gaussian_mixture("exact", elements=6, n_components=3, n_steps=5, rho=0.5)
SCALED = EXACT.scaled(ROWS)
TABLES = EXACT.bind(SCALED)
X = torch.linspace(-1, 1, 12).view(2, 6)
W = torch.linspace(0.5, 1, 12).view(2, 6)


def of_step(x: Tensor, seeds: Tensor = SEEDS, **options: Any) -> Tensor:
    return gmm_step(x, x * x, SCALED, row=1, seeds=seeds, mixture=TABLES, **options).prev_sample


def of_density(x: Tensor, seeds: Tensor = SEEDS, **options: Any) -> Tensor:
    return gmm_step_log_prob(X, x, x * x, SCALED, row=1, mixture=TABLES, **options)


def of_loss(x: Tensor, seeds: Tensor = SEEDS, **options: Any) -> Tensor:
    return skip_step_loss(x, TRAINING_ROWS, row=20, seeds=seeds, **options)


def of_noised(x: Tensor, seeds: Tensor = SEEDS, **options: Any) -> Any:
    return add_noise(x, TRAINING_ROWS, row=ROW, seeds=seeds, step=ROW, **options)


DIFFERENTIABLE = {"step": of_step, "density": of_density, "loss": of_loss, "noised": of_noised}


def derivatives(function: Callable[..., Tensor]) -> list[Tensor]:
    """Return a function's gradient, second derivatives, both by transforms, and mapped gradients."""

    def scalar(x: Tensor) -> Tensor:
        return function(x).square().sum()

    leaf = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(scalar(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    mapped = torch.vmap(torch.func.grad(scalar))(torch.stack([X, W]))
    return [first.detach(), second, torch.func.jacrev(torch.func.grad(scalar))(X), mapped]


def results(backend: str) -> Iterator[Tensor]:
    """Yield what the ops make of the same tensors."""
    yield from (made for made in CASE.run(backend=backend) if made is not None)
    yield standard_normal(SEEDS, (3,), backend=backend)
    yield standard_normal(SEEDS, (3,), dtype=torch.float16, step=ROW, backend=backend)
    yield torch.vmap(lambda seed: standard_normal(seed[None], (3,), backend=backend))(SEEDS)
    yield draw_components(SEEDS, CASE.mixture.cdf, row=1, backend=backend)
    yield torch.vmap(lambda t: draw_components(SEEDS, t, row=1, backend=backend))(CASE.mixture.cdf[None])
    yield orthonormalize(W.double(), backend=backend)
    yield from mixture_moments(TABLES, SCALED, row=1)
    yield from (table for table in TABLES.at(ROW) if table is not None)
    yield from (value for value in vars(moment_report(EXACT, SCALED)).values() if isinstance(value, Tensor))
    for function in DIFFERENTIABLE.values():
        yield function(X, backend=backend)
    yield from of_noised(X, return_noise=True, backend=backend)
    yield from gmm_step(
        X, W.half(), SCALED, row=1, seeds=SEEDS, mixture=TABLES, return_log_prob=True, backend=backend
    )[::3]


@contextmanager
def other_defaults() -> Iterator[None]:
    """A device that computes nothing, and a type so coarse that what is rounded to it shows."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):  # what torch.set_default_device sets, for a block
            yield
    finally:
        torch.set_default_dtype(before)


def test_results_have_the_same_bits(backend: str) -> None:
    expected = list(results(backend))
    with other_defaults():
        made = list(results(backend))
    for tensor, usual in zip(made, expected, strict=True):
        assert tensor.device == usual.device
        assert_same_bits(tensor, usual)


def test_rows_are_looked_at() -> None:
    rows = ROWS.clone()
    rows[1, Column.HISTORY_0] = 0.5
    with other_defaults():
        for row in (1, ROW):
            with pytest.raises(ValueError, match="history: expected at least 1 tensor, which row 1 reads"):
                gmm_step(X, X, rows, row=row, seeds=SEEDS)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_have_the_same_bits(name: str) -> None:
    expected = derivatives(DIFFERENTIABLE[name])
    with other_defaults():
        made = derivatives(DIFFERENTIABLE[name])
    for tensor, usual in zip(made, expected, strict=True):
        assert tensor.device == usual.device
        assert_same_bits(tensor, usual)


def test_gradients_of_tables_have_the_same_bits() -> None:
    """Those of exactly matched moments are plain PyTorch in part."""

    def gradients() -> list[Tensor]:
        names = ("offsets", "weights", "basis", "std_delta", "slopes", "shifts", "half_logdet")
        leaves = {name: getattr(TABLES, name).detach().clone().requires_grad_() for name in names}
        tables = TABLES._replace(**leaves)
        made = gmm_step(X, W, SCALED, row=1, seeds=SEEDS, mixture=tables, return_log_prob=True)
        loss = made.prev_sample.sum() + made.log_prob.sum()
        return list(torch.autograd.grad(loss, list(leaves.values())))

    expected = gradients()
    with other_defaults():
        made = gradients()
    for tensor, usual in zip(made, expected, strict=True):
        assert_same_bits(tensor, usual)
