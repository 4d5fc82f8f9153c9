"""Steps and log-densities of exactly matched moments on CUDA have the CPU core's bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from differentiable import Density
from exact_steps import exact_density, exact_step
from helpers import DTYPE_PAIRS, DTYPES, StepCase, assert_same_bits, assert_same_output
from layouts import DEVICE, LAYOUTS, moved
from test_gpu_bits import on_cpu

from gmmkernel import Column
from gmmkernel.mixtures import gaussian_mixture

pytestmark = pytest.mark.gpu

SIZES = (1, 3, 63, 1000, 1024, 4097, 20000)


def assert_same(case: StepCase) -> None:
    assert_same_output(on_cpu(moved(case).run(backend="cuda")), case.run())


def assert_same_density(density: Density) -> None:
    own = Density(moved(density.case), density.prev_sample.to(DEVICE))
    assert_same_bits(own.log_prob(backend="cuda").cpu(), density.log_prob())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_and_types(dtype: torch.dtype, size: int) -> None:
    for seed in range(12):
        assert_same(exact_step(seed, 1 + seed % 9, shape=(size,), dtype=dtype, special=seed % 4 == 3))


@pytest.mark.parametrize("size", [64, 4096, 16384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_common_steps(dtype: torch.dtype, size: int) -> None:
    """The kernels for aligned samples of one type without history and prediction, over several tiles."""
    for seed in range(8):
        assert_same(
            exact_step(
                seed, 2 + seed, batch=5, shape=(size,), dtype=dtype, output_dtype=dtype, guidance=seed % 2 == 0,
                history=0, prediction=None, per_sample=True,
            )
        )  # fmt: skip


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
def test_every_pair_of_types(pair: tuple[torch.dtype, torch.dtype]) -> None:
    for seed in range(6):
        assert_same(exact_step(seed, shape=(1000,), dtype=pair[0], output_dtype=pair[1]))


@pytest.mark.parametrize("components", [1, 2, 16, 17, 257, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_components(dtype: torch.dtype, components: int) -> None:
    directions = min(components, 300)
    assert_same(exact_step(components, components, directions, shape=(300,), dtype=dtype))
    assert_same_density(exact_density(components, components, directions, shape=(300,), dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    for seed, shape in enumerate([(1,), (64,), (1000,), (3, 5, 7), (4, 16, 16)]):
        case = exact_step(seed, shape=shape, dtype=dtype)
        laid_out, out = LAYOUTS[layout](moved(case))
        result = laid_out.run(out=out, backend="cuda")
        assert out is None or result.prev_sample is out
        assert_same_output(on_cpu(result), case.run())


@pytest.mark.parametrize(("batch", "shape"), [(0, (63,)), (3, (0,)), (1, (1024 * 1025 + 8,)), (70_001, (5,))])
def test_batches_of_every_size(batch: int, shape: tuple[int, ...]) -> None:
    """More tiles than one level of sums takes; more samples than one dimension of a grid holds."""
    assert_same(exact_step(1, 3, batch=batch, shape=shape))
    assert_same_density(exact_density(1, 3, batch=batch, shape=shape))


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("special", [False, True])
def test_densities(pair: tuple[torch.dtype, torch.dtype], special: bool) -> None:
    for seed, size in enumerate((1, 63, 1024, 4097)):
        options = {"shape": (size,), "dtype": pair[0], "output_dtype": pair[1]}
        assert_same_density(exact_density(seed, special=special, positive=not special, **options))


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.2, 0.1]])
@pytest.mark.parametrize("variant", ["exact", "rand-exact"])
def test_mixtures(variant: str, weights: list[float] | None) -> None:
    """The tables of real mixtures."""
    mixture = gaussian_mixture(variant, elements=1000, n_components=4, weights=weights, rho=0.5)
    case = exact_step(3, 4, shape=(1000,), per_sample=True)
    coefficients = case.coefficients.clone()
    coefficients[:, Column.SIGMA] = torch.tensor([0.9, 0.0, 0.7, 0.4])
    coefficients[:, Column.OFFSET] = 1
    coefficients = mixture.scaled(coefficients)
    assert_same(replace(case, coefficients=coefficients, mixture=mixture.bind(coefficients)))


@pytest.mark.parametrize("history", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_out_of_range(dtype: torch.dtype, history: int) -> None:
    """Such a sample is NaN, its component -1, and no other sample notices."""
    case = exact_step(
        history, batch=4, shape=(4096,), dtype=dtype, output_dtype=dtype, history=history, prediction=None,
        per_sample=True,
    )  # fmt: skip
    case = replace(case, step=torch.tensor([0, 2**32 - 1, 2, 3]))
    expected = case.run()
    for name, bad in [("row", -1), ("row", 4), ("row", 2**40), ("step", -1), ("step", 2**32)]:
        own = moved(case)
        getattr(own, name)[1] = bad
        result = own.run(backend="cuda")
        assert result.prev_sample[1].isnan().all(), (name, bad)
        assert result.components[1] == -1
        others = [0, 2, 3]
        assert_same_bits(result.prev_sample[others].cpu(), expected.prev_sample[others])
    density = exact_density(history, batch=4, shape=(4096,), dtype=dtype, per_sample=True)
    own_density = Density(moved(density.case), density.prev_sample.to(DEVICE))
    own_density.case.row[1] = 4
    log_prob, whole = own_density.log_prob(backend="cuda").cpu(), density.log_prob()
    assert log_prob[1].isnan()
    assert_same_bits(log_prob[[0, 2, 3]], whole[[0, 2, 3]])
