"""What mixtures and tables of exactly matched moments refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from covering import check_all, pairs
from exact_cases import KINDS, bound, kind_name, rows

from gmmkernel import (
    Column,
    DDIMSampler,
    ddim_coefficients,
    gmm_step,
    gmm_step_log_prob,
    moment_report,
    noise_schedule,
    stack_samplers,
    timesteps,
)
from gmmkernel.mixtures import Mixture, gaussian_mixture

SEEDS = torch.arange(2)
GIVEN = {"elements": 6, "n_components": 4}


def test_the_largest_scale_is_said() -> None:
    """With equal weights and orthogonal offsets, s sqrt(1/K) is at most sigma."""
    for scale, rho in ((1.199, None), (1.0, 0.999)):
        mixture = gaussian_mixture("exact", scale=scale, rho=rho, **GIVEN)
        mixture.bind(mixture.scaled(rows(0.9, 0.6)))
    mixture = gaussian_mixture("exact", scale=1.3, **GIVEN)
    with pytest.raises(
        ValueError, match=r"scale: expected at most 1\.2, .* row 1 with sigma = 0\.6, got 1\.3"
    ):
        mixture.bind(rows(0.9, 0.6))
    without_noise = rows(0.9, 0.0)
    with pytest.raises(ValueError, match=r"scale: expected at most 0, .* row 1 with sigma = 0, got 1\.3"):
        mixture.bind(without_noise)
    without_noise[:, Column.OFFSET] = torch.tensor([0.5, 0.0])
    mixture.bind(without_noise)


def check_limit(kind: dict[str, Any], seed: int) -> None:
    table = rows(0.31 + 0.1 * seed, 0.9)
    refused = gaussian_mixture(elements=12, n_components=4, seed=seed, scale=1000.0, **kind)
    for check in (refused.bind, partial(moment_report, refused)):
        with pytest.raises(ValueError, match="scale: expected at most ") as caught:
            check(table)
    limit = float(str(caught.value).split("at most ")[1].split(",")[0])
    largest = gaussian_mixture(elements=12, n_components=4, seed=seed, scale=limit, **kind)
    assert bool(largest.bind(table).std_delta.isfinite().all())


def test_the_scale_that_is_said_is_accepted() -> None:
    """And the report refuses what binding refuses."""
    check_all(check_limit, pairs(kind=KINDS, seed=range(3)))


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_the_largest_share_has_densities(kind: dict[str, Any]) -> None:
    mixture = gaussian_mixture(elements=12, n_components=4, rho=0.999999, **kind)
    table = ddim_coefficients(noise_schedule("linear"), timesteps(10), eta=1.0)
    for table_of in mixture.bind(mixture.scaled(table)):
        assert bool(table_of.isfinite().all())
    moment_report(mixture, mixture.scaled(table))
    with pytest.raises(ValueError, match=r"rows that Mixture\.scaled"):
        moment_report(mixture, table)


def test_rows_must_have_the_scale_of_rho() -> None:
    mixture = gaussian_mixture("exact", rho=0.5, **GIVEN)
    with pytest.raises(
        ValueError, match=r"rows that Mixture\.scaled .* rho = 0\.5, OFFSET 0\.9 or 0 in row 0, got 1$"
    ):
        mixture.bind(rows(0.9, 0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "ortho", "rho": 0.5}, "rho: expected None for variant='ortho', .*got 0.5"),
        ({"variant": "rand", "scheme": "a"}, "scheme: expected 'b' for variant='rand', .*got 'a'"),
        ({"variant": "exact", "scheme": "c"}, "scheme: expected one of 'a', 'b', got 'c'"),
        ({"variant": "exact", "rho": 1.0}, "rho: expected a number from 0 to 0.999999, got 1.0"),
        ({"variant": "exact", "rho": -0.1}, "rho: expected a number from 0 to 0.999999, got -0.1"),
        ({"variant": "exact", "rho": 0.5, "scale": 2.0}, "scale: expected 1 beside rho, .*got 2"),
        ({"variant": "exact", "scale": 0.0}, "scale: expected a number > 0 for variant='exact', got 0"),
        ({"variant": "exact", "n_components": 7}, "n_components: expected at most elements = 6 .*got 7"),
        ({"variant": "exact", "rho": 1 - 1e-7}, "rho: expected a number from 0 to 0.999999, got 0.9999999"),
        ({"variant": "exact", "scale": 1e-40}, "scale: expected one for which float32 holds .*scale = 1e-40"),
        ({"variant": "rand-exact", "scale": 1e-200}, "scale: expected one for which .*scale = 1e-200"),
        ({"variant": "exact", "recentre": True}, "recentre: expected False for variant='exact', .*got True"),
    ],
)
def test_bad_mixtures(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_mixture(**(GIVEN | options))


def test_directions_go_with_offsets_that_stay() -> None:
    mixture = gaussian_mixture("exact", rho=0.5, **GIVEN)
    given = {
        name: getattr(mixture, name)
        for name in ("variant", "scale", "weights", "reductions", "directions", "rho")
    }
    with pytest.raises(
        ValueError, match="offsets: expected a tensor that requires no gradient beside directions"
    ):
        Mixture(offsets=mixture.offsets.clone().requires_grad_(), **given)
    removed = torch.zeros(1, 1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"reductions: expected R = 0 beside directions, got \[1, 1, 2\]"):
        Mixture(offsets=mixture.offsets, **(given | {"reductions": removed}))
    for changed, message in (
        ({"rho": 5.0}, "rho: expected a number from 0 to 0.999999, got 5.0"),
        ({"directions": None}, "rho: expected None without directions, got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixture(offsets=mixture.offsets, **(given | changed))
    other = gaussian_mixture("exact", rho=0.5, elements=6, n_components=3)
    with pytest.raises(ValueError, match=r"directions: expected those of K = 4 offsets .*got those of 3"):
        Mixture(offsets=mixture.offsets, **(given | {"directions": other.directions}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"std": torch.ones(1, 1, 3)},
            ValueError,
            "mixture.std: expected R = 0 elements with a basis, .*got 3",
        ),
        (
            {"basis": torch.ones(1, 3, 5)},
            ValueError,
            r"mixture.basis: expected shape \[1 or 2, 3, 4\], got \(1, 3, 5\)",
        ),
        (
            {"basis": torch.ones(3, 4)},
            ValueError,
            r"mixture.basis: expected .*with R from 1 to 4, got \(3, 4\)",
        ),
        ({"basis": torch.ones(1, 0, 4)}, ValueError, r"\[1 or 2, R, 4\] with R from 1 to 4, got"),
        (
            {"basis": torch.ones(1, 3, 4).double()},
            TypeError,
            "mixture.basis: expected torch.float32, got torch.float64",
        ),
        ({"std_delta": None}, TypeError, "mixture.std_delta: expected a torch.Tensor, got NoneType"),
        (
            {"std_delta": torch.ones(2, 2, 3)},
            ValueError,
            r"mixture.std_delta: expected shape \[1 or 2, 1 or 4, 3\]",
        ),
        ({"slopes": torch.ones(2, 1, 2)}, ValueError, "mixture.slopes: expected shape"),
        ({"shifts": torch.ones(2, 1, 3)}, ValueError, r"mixture.shifts: expected shape \[1 or 2, 4, 3\]"),
        (
            {"half_logdet": torch.ones(3, 1)},
            ValueError,
            r"mixture.half_logdet: expected shape \[1 or 2, 1 or 4\]",
        ),
    ],
)
def test_bad_tables(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    _, coefficients, tables = bound({"variant": "exact"}, rows(0.9, 0.6, dtype=torch.float32), elements=6)
    sample = torch.ones(2, 6)
    bad = tables._replace(**changes)
    with pytest.raises(error, match=message):
        gmm_step(sample, sample, coefficients, row=0, seeds=SEEDS, mixture=bad)
    with pytest.raises(error, match=message):
        gmm_step_log_prob(sample, sample, sample, coefficients, row=0, mixture=bad)


def test_the_result_may_not_lie_in_a_table() -> None:
    _, coefficients, tables = bound({"variant": "exact"}, rows(0.9, 0.6, dtype=torch.float32), elements=6)
    assert tables.basis is not None
    sample, out = torch.ones(1, 6), tables.basis.flatten()[:6].view(1, 6)
    with pytest.raises(ValueError, match=r"out: .*mixture\.basis"):
        gmm_step(sample, sample, coefficients, row=0, seeds=SEEDS[:1], mixture=tables, out=out)


def test_a_stack_does_not_hold_them() -> None:
    mixture = gaussian_mixture("exact", elements=6, rho=0.5, n_components=4)
    sampler = DDIMSampler(noise_schedule("linear"), 3, eta=1.0, mixture=mixture)
    with pytest.raises(
        ValueError, match=r"samplers\[0\]: expected a mixture whose moments are not matched exactly"
    ):
        stack_samplers([sampler])
