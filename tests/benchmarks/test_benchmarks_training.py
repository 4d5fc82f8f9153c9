"""The benchmarks of training compute what they say, and all of them the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import all_cases
from benchmarks.training_cases import DDPM, FUNCTIONS, SKIP, eager_training, rows_and_timesteps
from benchmarks.workload import Workload
from gmmkernel import Stream, add_noise, standard_normal

WORKLOAD = Workload((9, 2, 7, 9), torch.device("cpu"))
CASES = {case.name: case for case in all_cases() if "training" in case.name}


def gradient(name: str) -> torch.Tensor:
    case = CASES[name]
    ready = case.build(WORKLOAD, case.dtype)
    with torch.no_grad(), ready.context():
        return ready.call(3)


def test_every_function_is_a_case() -> None:
    assert {name.rpartition("/")[0] for name in CASES} == set(FUNCTIONS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tau", "name"), [(SKIP, "skip"), (DDPM, "ddpm")])
def test_ours_is_what_is_written_in_pytorch(tau: float, name: str, dtype: str) -> None:
    data, output = WORKLOAD.inputs(getattr(torch, dtype))
    rows, timesteps = rows_and_timesteps(WORKLOAD, tau)
    noise, fresh = (
        standard_normal(WORKLOAD.seeds, data.shape[1:], step=3, stream=stream, dtype=data.dtype)
        for stream in (Stream.TRAINING, Stream.TRAINING_SKIP)
    )
    leaf = output.clone().requires_grad_()
    noised, loss = eager_training(data, leaf, rows, timesteps, noise, fresh)
    (expected,) = torch.autograd.grad(loss, leaf)
    made = gradient(f"training/{name}/new/{dtype}")
    tolerance = 1e-5 if dtype == "float32" else 0.05  # the plain one rounds to bfloat16 at every operation
    torch.testing.assert_close(
        made, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()) / 4
    )
    own = add_noise(data, rows, row=timesteps, seeds=WORKLOAD.seeds, step=3)
    torch.testing.assert_close(own, noised, rtol=tolerance, atol=tolerance)


def test_noise_drawn_again_changes_no_bit() -> None:
    for dtype in ("float32", "bfloat16"):
        one, other = (gradient(f"training/{name}/new/{dtype}") for name in ("skip", "skip-drawn-again"))
        assert torch.equal(one, other)


def test_pytorch_s_own_noise_gives_a_gradient_of_that_size() -> None:
    for name in ("skip", "ddpm"):
        made, expected = (
            gradient(f"eager/training-{name}/new/float32"),
            gradient(f"training/{name}/new/float32"),
        )
        assert 0.8 < float(made.norm() / expected.norm()) < 1.25
