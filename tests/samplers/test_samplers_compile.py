"""A sampler's whole run as one graph of torch.compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from every_sampler import SHAPE, every_sampler, model_of
from helpers import assert_same_bits
from torch import Tensor

SEEDS = torch.tensor([4, -9, 2**61])
LABELS = torch.tensor([0.3, -0.2, 0.7])
SAMPLERS = every_sampler()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Not what other tests run under, which the compiler cannot trace."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("DDIM, rand", marks=pytest.mark.slow),
        "SDE-DPM-Solver++, exact",
        pytest.param("F-PNDM", marks=pytest.mark.slow),
        "flow, ortho-vub",
        "DDIM, guided, thresholding",
    ],
)
def test_a_whole_run_is_one_graph(name: str) -> None:
    sampler = SAMPLERS[name]

    def run(seeds: Tensor, labels: Tensor) -> Tensor:
        return sampler.sample(
            model_of(sampler), seeds, SHAPE, conditioning=(labels,), batch_size=2, progress=False
        ).sample

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(SEEDS, LABELS), run(SEEDS, LABELS))
