"""Steps and log-densities of exactly matched moments by the Triton backend on a device: the CPU core's bits."""

from __future__ import annotations

import pytest
import torch
from differentiable import Density
from exact_steps import exact_density, exact_step
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output
from layouts import DEVICE, moved
from test_gpu_bits import on_cpu
from test_gpu_triton import triton_needed  # noqa: F401  a fixture

pytestmark = pytest.mark.gpu


def assert_same(case: StepCase) -> None:
    assert_same_output(on_cpu(moved(case).run(backend="triton")), case.run())


def assert_same_density(density: Density) -> None:
    own = Density(moved(density.case), density.prev_sample.to(DEVICE))
    assert_same_bits(own.log_prob(backend="triton").cpu(), density.log_prob())


@pytest.mark.parametrize("size", [1, 63, 1024, 4097, 20000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_and_types(dtype: torch.dtype, size: int) -> None:
    for seed in range(4):
        assert_same(exact_step(seed, 1 + 3 * seed, shape=(size,), dtype=dtype, special=seed == 3))
        assert_same_density(exact_density(seed, 1 + 3 * seed, shape=(size,), dtype=dtype))


@pytest.mark.parametrize("components", [1, 2, 17, 257])
def test_numbers_of_components(components: int) -> None:
    directions = min(components, 100)
    options = {"shape": (300,), "dtype": torch.float32}
    assert_same(exact_step(components, components, directions, **options))
    assert_same_density(exact_density(components, components, directions, **options))


def test_sums_of_several_levels_and_large_batches() -> None:
    assert_same(exact_step(3, 3, batch=2, shape=(1026 * 1024 + 5,), dtype=torch.float32))
    assert_same(exact_step(4, 3, batch=70_000, shape=(5,), dtype=torch.float32))
