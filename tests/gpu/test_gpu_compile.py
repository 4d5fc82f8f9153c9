"""`torch.compile(fullgraph=True)` on CUDA, with CUDA graphs and without, by either backend: the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import StepCase, assert_same_bits, random_case
from layouts import DEVICE, moved

from gmmkernel import draw_components, gmm_step, standard_normal

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def body(
    case: StepCase, x: torch.Tensor, seeds: torch.Tensor, row: torch.Tensor, backend: str | None = None
) -> torch.Tensor:
    """A step among operations that round nothing, so that compiled or not they give the same bits."""
    stepped = gmm_step(
        x * 2, x * 0.5, case.coefficients,
        row=row, seeds=seeds + 1, step=row * 3, mixture=case.mixture, backend=backend,
    )  # fmt: skip
    return stepped.prev_sample * -4


# torch.compile itself needs Triton here, so there is nothing to skip.
each_backend = pytest.mark.parametrize("backend", ["cuda", "triton"])


@each_backend
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps(dtype: torch.dtype, mode: Any, backend: str) -> None:
    case = random_case(
        1, batch=4, shape=(3, 40), dtype=dtype, output_dtype=dtype, components=8, guidance=False, history=0,
        per_sample=True,
    )  # fmt: skip
    own = moved(case)
    compiled = torch.compile(body, fullgraph=True, mode=mode)
    with torch.no_grad():
        for number in range(5):
            seeds, row = case.seeds + number, torch.arange(number, number + 4) % 4
            torch.compiler.cudagraph_mark_step_begin()
            actual = compiled(own, own.sample, seeds.to(DEVICE), row.to(DEVICE), backend).clone()
            assert_same_bits(actual.cpu(), body(case, case.sample, seeds, row))


@each_backend
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_noise_and_components(mode: Any, backend: str) -> None:
    cdf = torch.tensor([[2**30, 2**31]])
    on_device = cdf.to(DEVICE)

    def draw(
        seeds: torch.Tensor, step: torch.Tensor, table: torch.Tensor, backend: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise = standard_normal(seeds * 2, (3, 5), step=step + 1, backend=backend)
        return noise * 2, draw_components(seeds, table, step=step, backend=backend)

    compiled = torch.compile(draw, fullgraph=True, mode=mode)
    for number in range(4):
        seeds, step = torch.arange(number, number + 4), torch.tensor(number)
        torch.compiler.cudagraph_mark_step_begin()
        actual = compiled(seeds.to(DEVICE), step.to(DEVICE), on_device, backend)
        for got, expected in zip(actual, draw(seeds, step, cdf), strict=True):
            assert_same_bits(got.cpu(), expected)
