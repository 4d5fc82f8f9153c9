"""The Triton backend on a device: the CPU core's bits. Few combinations of options, as each is compiled anew."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import DTYPES, assert_same_bits, assert_same_output, random_case
from layouts import DEVICE, moved
from test_gpu_bits import on_cpu

from gmmkernel import Stream, backends, draw_components, gmm_step, standard_normal

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {"components": 0, "guidance": False, "history": 0, "prediction": None},
    "mixture": {"components": 8, "guidance": False, "history": 0, "prediction": None},
    "everything": {
        "components": 8,
        "guidance": True,
        "history": 4,
        "prediction": "epsilon",
        "per_sample": True,
    },
}


@pytest.fixture(autouse=True)
def triton_needed() -> None:
    """Skip where Triton is not installed; one that does not work is a failure."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    (status,) = (status for status in backends.available_backends() if status.name == "triton")
    assert status.available, status.detail


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps(dtype: torch.dtype, options: str) -> None:
    for size in (1, 1000, 2048, 20000):
        for removed in (0, min(8, size), size):
            case = random_case(
                size,
                shape=(size,),
                dtype=dtype,
                output_dtype=dtype,
                special=True,
                removed=removed,
                **OPTIONS[options],
            )
            assert_same_output(on_cpu(moved(case).run(backend="triton")), case.run())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tiles(dtype: torch.dtype) -> None:
    from gmmkernel.backends.triton import launch

    case = random_case(
        1, batch=4096, shape=(4096,), dtype=dtype, output_dtype=dtype, removed=4096, **OPTIONS["mixture"]
    )
    there = moved(case)
    assert launch.tile_for(4096, 4096, [there.sample]) == (launch.LARGE_TILE, True)
    assert_same_output(on_cpu(there.run(backend="triton")), case.run())


@pytest.mark.parametrize("direct", [True, False])
def test_launches_past_the_binder_and_by_it(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the same bits, with addresses, alignments, seeds and rows of each call's own."""
    from gmmkernel.backends.triton import launch

    assert launch._STEP.direct, "this Triton is launched its own way, at several times the cost"
    monkeypatch.setattr(launch._STEP, "direct", direct)
    monkeypatch.setattr(launch._STEP, "compiled", {})
    options = {"dtype": torch.float32, "output_dtype": torch.float32, **OPTIONS["mixture"]}
    for number in range(6):
        case = random_case(number, shape=(2048,), per_sample=False, removed=2048, **options)
        memory = torch.full((case.sample.numel() + 1,), 9.0, device=DEVICE)
        out = memory[number % 2 :][: case.sample.numel()].view(case.sample.shape)
        assert_same_output(on_cpu(moved(case).run(backend="triton", out=out)), case.run())
    assert bool(launch._STEP.compiled) == direct


def test_in_place_and_rows_out_of_range() -> None:
    case = random_case(
        4, shape=(2048,), dtype=torch.float32, output_dtype=torch.float32, **OPTIONS["mixture"]
    )
    there = moved(case)
    row = torch.tensor([0, there.coefficients.shape[0], 1])
    there.run(backend="triton", row=row.to(DEVICE), out=there.sample)
    row[1] = 2
    good = case.run(row=row)
    assert bool(there.sample[1].isnan().all())
    for sample in (0, 2):
        assert_same_bits(there.sample[sample].cpu(), good.prev_sample[sample])


def test_samples_without_elements() -> None:
    case = random_case(5, shape=(8, 0), dtype=torch.float32, output_dtype=torch.float32, **OPTIONS["mixture"])
    assert_same_output(on_cpu(moved(case).run(backend="triton")), case.run())


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(dtype: torch.dtype) -> None:
    seeds = torch.tensor([0, -1, 2**63 - 1])
    for size, step in ((1000, 2**32 - 1), (4096, torch.tensor([1, 2, 3]))):
        expected = standard_normal(seeds, (size,), step=step, stream=Stream.TRANSITION, dtype=dtype)
        there = step.to(DEVICE) if isinstance(step, torch.Tensor) else step
        made = standard_normal(
            seeds.to(DEVICE), (size,), step=there, stream=Stream.TRANSITION, dtype=dtype, backend="triton"
        )
        assert_same_bits(made.cpu(), expected)


def test_components() -> None:
    seeds, cdf = torch.arange(70000), torch.arange(1, 1024)[None] * 2**22
    made = draw_components(seeds.to(DEVICE), cdf.to(DEVICE), step=3, backend="triton")
    assert torch.equal(made.cpu(), draw_components(seeds, cdf, step=3))


def test_a_captured_step_reads_new_rows_and_seeds() -> None:
    case = random_case(
        3, shape=(4096,), dtype=torch.float32, output_dtype=torch.float32, **OPTIONS["mixture"]
    )
    there = moved(case)
    row, seeds = torch.tensor([0], device=DEVICE), there.seeds.clone()
    out = torch.empty_like(there.sample)

    def step() -> None:
        gmm_step(
            there.sample, there.model_output, there.coefficients,
            row=row, seeds=seeds, mixture=there.mixture, out=out, backend="triton",
        )  # fmt: skip

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiled before it is captured
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for new in range(3):
        row.fill_(new)
        seeds.add_(17)
        graph.replay()
        expected = gmm_step(
            case.sample,
            case.model_output,
            case.coefficients,
            row=new,
            seeds=seeds.cpu(),
            mixture=case.mixture,
        )
        assert_same_bits(out.cpu(), expected.prev_sample)
