"""Training ops on CUDA, by the compiled kernels and Triton's, have the CPU core's bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import DTYPE_PAIRS, DTYPES, assert_same_bits
from layouts import DEVICE, padded, strided
from losses import TrainingCase, random_case
from torch import Tensor

from gmmkernel import TrainingColumn, add_noise, noise_schedule, skip_step_loss, training_coefficients

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda", "triton"])
def on_device(request: pytest.FixtureRequest) -> str:
    """Each backend that computes on CUDA tensors."""
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
    return str(request.param)


def moved(case: TrainingCase) -> TrainingCase:
    fields = {name: getattr(case, name) for name in TrainingCase.__dataclass_fields__}
    return TrainingCase(
        **{
            name: value.clone().to(DEVICE) if isinstance(value, Tensor) else value
            for name, value in fields.items()
        }
    )


def assert_same(case: TrainingCase, backend: str, change: Any = lambda tensor: tensor) -> None:
    expected = case.results()
    actual = moved(case).map_samples(change).results(backend=backend)
    for name, tensor in expected.items():
        assert_same_bits(actual[name].cpu(), tensor)


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("special", [False, True])
def test_types(pair: tuple[torch.dtype, torch.dtype], special: bool, on_device: str) -> None:
    for seed in range(12):
        options = {"dtype": pair[0], "sample_dtype": pair[1], "with_sample": seed % 3 > 0, "special": special}
        assert_same(random_case(seed, **options), on_device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 8, 1000, 1024, 1025, 4096, 4104, 20000])
def test_sizes(size: int, dtype: torch.dtype, on_device: str) -> None:
    for seed in range(3):
        assert_same(random_case(seed, shape=(size,), dtype=dtype, sample_dtype=dtype), on_device)
        assert_same(random_case(seed, shape=(size,), dtype=dtype, with_sample=False), on_device)


def test_layouts(on_device: str) -> None:
    case = random_case(3, batch=4, shape=(3, 8, 12))
    for change in (strided, padded):
        assert_same(case, on_device, change)


@pytest.mark.parametrize(("batch", "elements"), [(0, 5), (3, 0), (300, 7), (70_001, 5), (2, 1024 * 1024 + 5)])
def test_batches_and_large_samples(batch: int, elements: int, on_device: str) -> None:
    assert_same(random_case(1, batch=batch, shape=(elements,)), on_device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cannot_be_is_nan(dtype: torch.dtype, on_device: str) -> None:
    """A row or step out of range, and a row that reads a training sample that is not there."""
    case = random_case(2, batch=3, shape=(1500,), dtype=dtype, per_sample=True, with_sample=False)
    expected = case.results()
    own = moved(case)
    own.row[0], own.step[2] = 5, 2**32
    actual = own.results(backend=on_device)
    for name, tensor in expected.items():
        assert_same_bits(actual[name][1].cpu(), tensor[1])
        assert actual[name][[0, 2]].isnan().all(), name
    own = moved(case)
    own.coefficients[int(case.row[1]), TrainingColumn.EPS_SAMPLE] = 0.5
    reading = (case.row == case.row[1]).tolist()
    losses = own.loss(backend=on_device).cpu()
    assert losses.isnan().tolist() == reading


def test_a_captured_training_step_follows_its_inputs(on_device: str) -> None:
    """Timesteps, seeds and the iteration are read when a graph is replayed, not when it is captured."""
    rows = training_coefficients(noise_schedule()).to(DEVICE)
    data, output = torch.randn(4, 3, 32, 32, device=DEVICE), torch.randn(4, 3, 32, 32, device=DEVICE)
    row, step = torch.tensor([1, 50, 700, 999], device=DEVICE), torch.tensor([3], device=DEVICE)
    seeds = torch.arange(4, device=DEVICE)

    def training() -> tuple[Tensor, Tensor]:
        given = {"row": row, "step": step, "seeds": seeds, "backend": on_device}
        return add_noise(data, rows, **given), skip_step_loss(output, rows, **given)

    training()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training()
    for number in range(3):
        step.fill_(number)
        row.copy_(row.flip(0))
        graph.replay()
        for made, expected in zip(captured, training(), strict=True):
            assert_same_bits(made, expected)


def test_no_noise_is_stored(on_device: str) -> None:
    data = torch.zeros(64, 2**16, device=DEVICE)
    rows = training_coefficients(noise_schedule()).to(DEVICE)
    leaf = torch.zeros_like(data, requires_grad=True)
    row, seeds = torch.full((64,), 500, device=DEVICE), torch.arange(64, device=DEVICE)
    given = {"row": row, "seeds": seeds, "backend": on_device}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    add_noise(data, rows, out=data, **given)
    skip_step_loss(leaf, rows, **given).mean().backward()
    assert torch.cuda.max_memory_allocated() - before < 1.1 * data.nbytes


def test_training_compiles(on_device: str) -> None:
    case = moved(random_case(4, shape=(3, 40), with_sample=False))

    def function(output: Tensor) -> Tensor:
        return case.loss(model_output=output, backend=on_device)

    gradients = []
    for run in (function, torch.compile(function, fullgraph=True)):
        leaf = case.model_output.clone().requires_grad_()
        run(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert_same_bits(*gradients)
    assert replace(case, row=1).loss(backend=on_device).shape == (3,)
