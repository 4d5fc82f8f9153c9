"""Gradients of steps and log-densities of exactly matched moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from covering import check_all, pairs
from derivatives import DIRECTED, assert_derivatives
from exact_cases import KINDS, WEIGHTS, bound, rows
from helpers import DTYPES, assert_same_bits
from torch import Tensor, library
from torch.autograd import gradcheck

from gmmkernel import Column, MixtureTables, gmm_step, gmm_step_log_prob
from gmmkernel.backends.cpu import instruction_sets, use_instruction_set
from gmmkernel.backends.protocol import LogProbInputs, StepInputs
from gmmkernel.mixtures import gaussian_mixture
from gmmkernel.ops.op import LOG_PROB, STEP

OPS = torch.ops.gmmkernel
ROW = torch.tensor([1, 0, 1, 2])  # the last one has no offset
WITH_OFFSET = torch.tensor([1, 0, 1, 0])
SEEDS = torch.arange(4)
STEP_TABLES = ("offsets", "basis", "std_delta")
DENSITY_TABLES = ("offsets", "weights", "basis", "slopes", "shifts", "half_logdet")


def tables_of(
    kind: dict[str, Any], dtype: torch.dtype = torch.float64, elements: int = 5
) -> tuple[Tensor, MixtureTables]:
    """Return three rows and the tables; the last row has no offset."""
    plain = rows(0.9, 0.6, 0.5, dtype=dtype)
    plain[2, 13] = 0
    _, coefficients, tables = bound(kind, plain, elements=elements)
    return coefficients, tables


def samples(count: int, dtype: torch.dtype = torch.float64, elements: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(count, 4, elements, generator=generator, dtype=torch.float64).to(dtype))


def step_of(tables: MixtureTables, **options: Any) -> Callable[..., Tensor]:
    def step(sample: Tensor, output: Tensor, coefficients: Tensor, *given: Tensor) -> Tensor:
        own = tables._replace(**dict(zip(STEP_TABLES, given, strict=True)))
        made = gmm_step(
            sample, output, coefficients, **({"row": ROW} | options), seeds=SEEDS, step=7, mixture=own
        )
        return made.prev_sample

    return step


def density_of(tables: MixtureTables, **options: Any) -> Callable[..., Tensor]:
    def density(prev: Tensor, sample: Tensor, output: Tensor, coefficients: Tensor, *given: Tensor) -> Tensor:
        own = tables._replace(**dict(zip(DENSITY_TABLES, given, strict=True)))
        return gmm_step_log_prob(prev, sample, output, coefficients, **({"row": ROW} | options), mixture=own)

    return density


def arguments(
    kind: dict[str, Any], names: tuple[str, ...], count: int, **options: Any
) -> tuple[Any, MixtureTables]:
    """Return leaves: samples, the rows, and the tables of these names."""
    coefficients, tables = tables_of(kind, **options)
    given = [*samples(count, **options), coefficients, *(getattr(tables, name) for name in names)]
    return tuple(tensor.detach().clone().requires_grad_() for tensor in given), tables


OF_STEP, OF_DENSITY = (STEP_TABLES, 2, step_of), (DENSITY_TABLES, 3, density_of)


def check_derivatives(kind: dict[str, Any], of_step: bool) -> None:
    names, count, made_of = OF_STEP if of_step else OF_DENSITY
    given, tables = arguments(kind, names, count)
    # First ones everywhere; no second ones where a row switches the offset off: the gradients of
    # tables jump there.
    assert gradcheck(made_of(tables), given, **DIRECTED)
    function = made_of(tables, row=WITH_OFFSET)
    leaves = {f"argument {i}": tensor for i, tensor in enumerate(given)}
    assert_derivatives(lambda leaves: (function(*leaves.values()),), leaves)


def test_gradients_are_derivatives() -> None:
    """Of first and second order."""
    check_all(check_derivatives, pairs(kind=KINDS, of_step=[False, True]))


def test_gradients_reach_coefficients_through_the_tables() -> None:
    mixture = gaussian_mixture("exact", elements=5, n_components=4, weights=WEIGHTS, scale=0.3)
    sample, output, prev = samples(3)

    def density(coefficients: Tensor) -> Tensor:
        tables = mixture.bind(coefficients)
        return gmm_step_log_prob(prev, sample, output, coefficients, row=ROW, mixture=tables)

    def step(coefficients: Tensor) -> Tensor:
        tables = mixture.bind(coefficients)
        return gmm_step(sample, output, coefficients, row=ROW, seeds=SEEDS, mixture=tables).prev_sample

    coefficients = rows(0.9, 0.6, 0.5).requires_grad_()
    assert gradcheck(density, coefficients, **DIRECTED)
    assert gradcheck(step, coefficients, **DIRECTED)


def check_bits(kind: dict[str, Any], dtype: torch.dtype, elements: int, of_step: bool) -> None:
    names, count, made_of = OF_STEP if of_step else OF_DENSITY
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    coefficients, tables = tables_of(kind, dtype=row_dtype, elements=elements)
    given = samples(count, dtype=dtype, elements=elements)
    given += [coefficients, *(getattr(tables, name) for name in names)]

    def gradients(backend: str) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
        made = made_of(tables, backend=backend)(*leaves)
        return torch.autograd.grad(made, leaves, torch.ones_like(made))

    expected = gradients("reference")
    for name in instruction_sets():
        with use_instruction_set(name):
            for one, other in zip(gradients("cpu"), expected, strict=True):
                assert_same_bits(one, other)


def test_gradients_have_the_same_bits() -> None:
    choices = pairs(kind=KINDS, dtype=DTYPES, elements=[5, 1500], of_step=[False, True])
    check_all(check_bits, choices)


def check_no_part(kind: dict[str, Any]) -> None:
    given, tables = arguments(kind, DENSITY_TABLES, 3)
    with torch.no_grad():
        given[3][2, [Column.SIGMA, Column.OFFSET]] = torch.tensor([0.0, 0.7], dtype=torch.float64)
        given[0][3] = given[1][2]
    found = []
    for count in (4, 3):
        leaves = [tensor.detach()[:count].clone().requires_grad_() for tensor in given[:3]]
        leaves += [tensor.detach().clone().requires_grad_() for tensor in given[3:]]
        made = density_of(tables, row=ROW[:count])(*leaves)
        assert made.isfinite().tolist() == [True, True, True, False][:count]
        loss = torch.where(torch.arange(count) < 3, made * torch.arange(1, count + 1), 0).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
        found.append((first, second))
    (first, second), (first_alone, second_alone) = found
    for whole, alone in zip(first, first_alone, strict=True):
        assert not whole[len(alone) :].any()
        assert_same_bits(whole[: len(alone)], alone)
    for whole, alone in zip(second, second_alone, strict=True):
        assert not whole[len(alone) :].any()
        torch.testing.assert_close(whole[: len(alone)], alone)


def test_a_sample_without_density_that_has_no_part_in_the_loss_gives_nothing() -> None:
    """The last one, whose row has no noise: both orders of gradients are those of the others."""
    check_all(check_no_part, pairs(kind=KINDS))


def test_vmap_and_compile_give_the_same() -> None:
    given, tables = arguments(KINDS[1], STEP_TABLES, 2)
    step = step_of(tables)
    grads = torch.autograd.grad(step(*given).square().sum(), given)
    functional = torch.func.grad(
        lambda *tensors: step(*tensors).square().sum(), argnums=tuple(range(len(given)))
    )
    for one, other in zip(functional(*given), grads, strict=True):
        assert_same_bits(one, other)
    scales = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    offsets = given[3].detach() * scales[:, None, None, None]
    mapped = torch.func.vmap(lambda table: step(*given[:3], table, *given[4:]).detach())(offsets)
    for index in range(3):
        assert_same_bits(mapped[index], step(*given[:3], offsets[index], *given[4:]).detach())
    given, tables = arguments(KINDS[1], DENSITY_TABLES, 3)
    density = density_of(tables)
    mapped = torch.func.vmap(torch.func.grad(lambda prev: density(prev, *given[1:]).sum()))(
        given[0].detach() * scales[:, None, None]
    )
    direct = torch.autograd.grad(density(given[0] * 0.5, *given[1:]).sum(), given[0])[0]
    assert torch.allclose(mapped[1] * 0.5, direct, rtol=1e-12, atol=0)


def test_a_graph_of_both_is_whole() -> None:
    coefficients, tables = tables_of(KINDS[1], dtype=torch.float32)
    sample, output, prev = samples(3, dtype=torch.float32)

    def both(
        sample: Tensor, output: Tensor, coefficients: Tensor, tables: MixtureTables
    ) -> tuple[Tensor, Tensor]:
        made = gmm_step(sample, output, coefficients, row=ROW, seeds=SEEDS, mixture=tables).prev_sample
        return made, gmm_step_log_prob(prev, sample, output, coefficients, row=ROW, mixture=tables)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        compiled(sample, output, coefficients, tables),
        both(sample, output, coefficients, tables),
        strict=True,
    ):
        assert_same_bits(one, other)


def test_the_raw_operators_pass_pytorch_s_checks() -> None:
    coefficients, t = tables_of(KINDS[1], dtype=torch.float32)
    sample, output, prev = samples(3, dtype=torch.float32)
    common, out = (sample, output, coefficients), torch.zeros_like(sample)
    tables = t.cdf, t.offsets, t.std, t.basis, t.std_delta
    step = STEP.spread(StepInputs(*common, SEEDS, ROW, 7, 0, None, (), *tables))
    library.opcheck(OPS.gmm_step.default, (out, None, None, None, 0, "cpu", *step))
    for wanted in ([True] * 8, [True] * 4 + [False] * 3 + [True]):
        library.opcheck(OPS.gmm_step_backward.default, (wanted, sample, None, 0, "cpu", *step))
    tables = t.offsets, t.std, t.weights, t.basis, t.slopes, t.shifts, t.half_logdet
    density = "cpu", *LOG_PROB.spread(LogProbInputs(*common, prev, ROW, None, (), *tables))
    library.opcheck(OPS.gmm_step_log_prob.default, (False, *density))
    made = OPS.gmm_step_log_prob(False, *density)
    assert len(made) == 3
    library.opcheck(
        OPS.gmm_step_log_prob_backward.default, ([True] * 12, torch.ones(4), made[1], made[2], *density)
    )


@pytest.mark.parametrize("clip", [math.inf, 1.0])
def test_the_scale_that_follows_the_noise_has_gradients(clip: float) -> None:
    """With and without bounds: the noise alone decides on it, whatever the scale was."""
    mixture = gaussian_mixture("exact", elements=12, n_components=4, rho=0.9)
    table = rows(0.9, 0.5)
    table[:, Column.CLIP_MIN], table[:, Column.CLIP_MAX] = -clip, clip
    table.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.scaled(table)[1, Column.OFFSET], table)
    expected = torch.zeros_like(table)
    expected[1, Column.SIGMA] = 0.9 * 2
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)
