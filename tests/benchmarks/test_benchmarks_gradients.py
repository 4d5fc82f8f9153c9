"""The benchmarks of forward and backward passes compute what they say, and so does the measure of memory."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import all_cases
from benchmarks.memory import peak_memory
from benchmarks.workload import Workload

CASES = {case.name: case for case in all_cases() if "backward" in case.name}
PAIRS = {
    "gmm_step/K8-backward/new": "eager/K8-backward/new",
    "gmm_step/K8-backward-tables/new": "eager/K8-backward-tables/new",
    "log_prob/K8-backward/new": "eager/K8-log_prob-backward/new",
}


def gradient(name: str, workload: Workload) -> torch.Tensor:
    case = CASES[name]
    ready = case.build(workload, case.dtype)
    with torch.no_grad(), ready.context():
        return ready.call(3)


def test_every_case_has_its_like() -> None:
    assert {name.rpartition("/")[0] for name in CASES} == {*PAIRS, *PAIRS.values()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("ours", "plain"), PAIRS.items())
def test_both_have_the_same_gradient_of_the_sample(ours: str, plain: str, dtype: str) -> None:
    """Which, of a step, depends neither on the noise nor on the component: each draws its own."""
    workload = Workload((3, 1, 7, 9), torch.device("cpu"))
    actual, expected = (gradient(f"{name}/{dtype}", workload) for name in (ours, plain))
    assert actual.dtype == expected.dtype == getattr(torch, dtype)
    assert actual.any()
    tolerance = 1e-4 if dtype == "float32" else 0.2  # the plain one rounds to bfloat16 at every operation
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()) / 4
    )


def test_peak_memory_is_what_a_call_adds() -> None:
    size = 2**26

    def allocate() -> None:
        first = torch.ones(size // 4)
        del first
        torch.ones(size // 4).add_(1)

    assert 0.9 * size < peak_memory(allocate) < 1.5 * size
