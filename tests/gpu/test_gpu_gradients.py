"""Gradients and log-densities on CUDA have the CPU core's bits: over types, sizes, options, and whatever is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from differentiable import Density, leaves_of, random_density, step_gradients
from helpers import DTYPE_PAIRS, DTYPES, StepCase, assert_same_bits, every_option, random_case
from layouts import DEVICE, moved

pytestmark = pytest.mark.gpu

TABLES = ("coefficients", "offsets", "std")


def moved_density(density: Density) -> Density:
    return Density(moved(density.case), density.prev_sample.to(DEVICE))


def assert_same_gradients(case: StepCase, without: Sequence[str] = ()) -> None:
    assert_same(step_gradients(moved(case), without=without), step_gradients(case, without=without))


def assert_same_densities(density: Density) -> None:
    assert_same(moved_density(density).gradients(), density.gradients())
    assert_same_bits(moved_density(density).log_prob().cpu(), density.log_prob())


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        try:
            assert_same_bits(actual[name].cpu(), tensor)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("special", [False, True])
def test_every_option(pair: tuple[torch.dtype, torch.dtype], special: bool) -> None:
    for seed, options in enumerate(every_option()):
        case = random_case(seed, dtype=pair[0], output_dtype=pair[1], special=special, **options)
        assert_same_gradients(case)
        assert_same_gradients(case, without=["coefficients"])


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("special", [False, True])
def test_every_option_of_densities(pair: tuple[torch.dtype, torch.dtype], special: bool) -> None:
    for seed, options in enumerate(every_option()):
        chosen = {name: value for name, value in options.items() if name != "prediction"}
        assert_same_densities(
            random_density(
                seed, dtype=pair[0], output_dtype=pair[1], special=special, positive=not special, **chosen
            )
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 1000, 1024, 1025, 4097, 20000])
def test_sizes(size: int, dtype: torch.dtype) -> None:
    for seed in range(4):
        assert_same_gradients(random_case(seed, shape=(size,), dtype=dtype, special=seed == 3))
        assert_same_densities(random_density(seed, shape=(size,), dtype=dtype))


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_common_gradients(dtype: torch.dtype, guidance: bool) -> None:
    """The kernels for aligned tensors of one type without sums over elements, over several tiles."""
    for seed, size in enumerate([8, 4096, 16384, 20000] * 2):
        case = random_case(
            seed, batch=5, shape=(size,), dtype=dtype, output_dtype=dtype, guidance=guidance, history=0,
            prediction=None,
        )  # fmt: skip
        samples = [name for name in leaves_of(case) if name not in TABLES]
        for without in [(), *([name] for name in samples), samples[1:], samples]:
            assert_same_gradients(case, without=["coefficients", *without])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_more_than_a_million_elements(dtype: torch.dtype) -> None:
    options = {"batch": 2, "shape": (1024 * 1024 + 5,), "dtype": dtype, "components": 2}
    assert_same_gradients(random_case(4, **options))
    assert_same_densities(random_density(4, **options))


@pytest.mark.parametrize(("batch", "components"), [(0, 8), (9, 1024), (300, 1), (300, 8), (70_001, 2)])
def test_batches(batch: int, components: int) -> None:
    """More samples than are looked at in one round, and than one dimension of a grid holds."""
    for seed in range(2):
        options = {"batch": batch, "shape": (5,), "dtype": torch.float32, "components": components}
        assert_same_gradients(random_case(seed, **options))
        assert_same_densities(random_density(seed, **options))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_out_of_range(dtype: torch.dtype, common: bool) -> None:
    """Such a sample's gradients are NaN, and tables have those of the others alone."""
    case = random_case(
        3, batch=3, shape=(1024,), dtype=dtype, output_dtype=dtype, components=8, history=0 if common else 1,
        prediction=None, per_sample=True,
    )  # fmt: skip
    case = replace(case, step=torch.tensor([1, 2, 3]))
    without = ["coefficients"] if common else []
    one = case.take(torch.tensor([1]))
    grads = [torch.randn(case.sample.shape, dtype=torch.float64).to(dtype)]
    expected = step_gradients(one, grads=[grads[0][1:2]], without=without)
    own = moved(case)
    own.row[0], own.step[2] = 4, 2**32
    actual = step_gradients(own, grads=[grads[0].to(DEVICE)], without=without)
    for name, tensor in expected.items():
        if name in TABLES:
            assert_same_bits(actual[name].cpu(), tensor)
        else:
            assert_same_bits(actual[name][1:2].cpu(), tensor)
            assert actual[name][[0, 2]].isnan().all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_densities_of_rows_out_of_range(dtype: torch.dtype) -> None:
    density = random_density(2, batch=3, shape=(1500,), dtype=dtype, components=9, per_sample=True)
    one = Density(density.case.take(torch.tensor([1])), density.prev_sample[1:2])
    grad = torch.ones(3, dtype=density.case.coefficients.dtype)
    expected = one.gradients(grad=grad[:1])
    own = moved_density(density)
    own.case.row[0], own.case.row[2] = -1, 4
    actual = own.gradients(grad=grad.to(DEVICE))
    for name, tensor in expected.items():
        if name in (*TABLES, "weights"):
            assert_same_bits(actual[name].cpu(), tensor)
        else:
            assert_same_bits(actual[name][1:2].cpu(), tensor)
            assert actual[name][[0, 2]].isnan().all(), name


def test_a_graph_of_gradients() -> None:
    case = random_case(5, batch=4, shape=(2000,), dtype=torch.float32, components=8, per_sample=True)
    own = moved(case)
    grads = [torch.randn_like(own.sample) for _ in range(2)]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step_gradients(own, grads=grads)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step_gradients(own, grads=grads)
    for number in range(3):
        own.seeds.fill_(number)
        own.sample.normal_()
        graph.replay()
        now = replace(case, seeds=own.seeds.cpu(), sample=own.sample.cpu())
        expected = step_gradients(now, grads=[grad.cpu() for grad in grads])
        for name, tensor in expected.items():
            assert_same_bits(made[name].cpu(), tensor)


def test_gradients_wait_for_nothing() -> None:
    own = moved(random_case(6, batch=4, shape=(2000,), components=8, per_sample=True))
    grads = [torch.randn(own.sample.shape, device=DEVICE).to(own.sample.dtype) for _ in range(2)]
    density = moved_density(random_density(6, batch=4, shape=(2000,), components=8, per_sample=True))
    grad = torch.ones(4, dtype=density.case.coefficients.dtype, device=DEVICE)
    step_gradients(own, grads=grads)
    density.gradients(grad=grad)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_gradients(own, grads=grads)
        density.gradients(grad=grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
