"""The benchmarks of samplers' steps: ours and diffusers' do the same step, again and again."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import all_cases
from benchmarks.workload import Workload

CASES = {case.name: case for case in all_cases() if "solver" in case.name}


@pytest.mark.parametrize("type_name", ["float32", "bfloat16"])
def test_both_do_the_same_step_at_every_call(type_name: str) -> None:
    workload = Workload((3, 7, 9), torch.device("cpu"))
    made = []
    for name in ("sampler/dpm-solver++/new", "diffusers/dpm-solver++/new"):
        case = CASES[f"{name}/{type_name}"]
        prepared = case.build(workload, case.dtype)
        assert prepared.bytes == 5 * 3 * 63 * case.dtype.itemsize
        results = []
        for index in range(3):
            if prepared.before is not None:
                prepared.before()
            results.append(prepared.call(index))
        assert all(torch.equal(result, results[0]) for result in results)
        assert results[0].dtype == case.dtype
        made.append(results[0].float())
    ours, theirs = made
    tolerance = 2e-5 if type_name == "float32" else 2**-7  # one rounding to bfloat16, in theirs of x0 as well
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
