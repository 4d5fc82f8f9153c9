"""`torch.compile(fullgraph=True)`: the same bits, no graph break, no recompilation for a new step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output, random_case
from torch._dynamo.testing import CompileCounterWithBackend

from gmmkernel import draw_components, gmm_step, standard_normal
from gmmkernel.ops import GMMStepOutput


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """As the other tests' fixture, which the compiler cannot trace, by PyTorch's own means."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)


def run(case: StepCase, row: int | torch.Tensor, out: torch.Tensor | None = None) -> GMMStepOutput:
    return case.run(row=row, step=row, out=out)


CASES = {
    "everything": random_case(
        1, shape=(3, 5), components=3, removed=4, guidance=True, history=4, per_sample=True, prediction="x0"
    ),
    "bare": random_case(2, components=0, guidance=False, history=0, per_sample=False, prediction=None),
    "empty": random_case(5, batch=0, components=2, prediction="epsilon"),
}


@pytest.mark.parametrize(
    ("name", "as_tensor"), [("everything", True), ("everything", False), ("bare", True), ("empty", True)]
)
def test_compiled_steps_give_the_same_bits(name: str, as_tensor: bool) -> None:
    case = CASES[name]
    step = compiled(run)
    for row in range(4):
        given = torch.tensor(row) if as_tensor else row
        assert_same_output(step(case, given), run(case, row))


def test_compiled_noise_and_components_give_the_same_bits() -> None:
    cdf = torch.tensor([[2**30, 2**31]])

    def draw(seeds: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, ...]:
        options = {"step": step + 1}
        noise = [standard_normal(seeds * 2, (3, 5), dtype=d, **options) * 2 for d in DTYPES]
        return *noise, draw_components(seeds, cdf, step=step)

    seeds, step = torch.arange(4), torch.tensor(5)
    for actual, expected in zip(compiled(draw)(seeds, step), draw(seeds, step), strict=True):
        assert_same_bits(actual, expected)


def loop(case: StepCase, x: torch.Tensor, row: int | torch.Tensor) -> torch.Tensor:
    """One turn of a sampling loop, with the model's part around the step."""
    output = torch.tanh(x) * 0.5
    return gmm_step(x, output, case.coefficients, row=row, seeds=case.seeds, mixture=case.mixture).prev_sample


def test_a_row_in_a_tensor_compiles_once_and_an_int_twice_at_most() -> None:
    case = random_case(2, rows=6, components=3, dtype=torch.float32)
    for as_tensor, most in ((True, 1), (False, 2)):
        counter = CompileCounterWithBackend("aot_eager")
        turn = compiled(loop, counter)
        x = y = case.sample
        for row in range(6):
            x = turn(case, x, torch.tensor(row) if as_tensor else row)
            y = loop(case, y, row)
            assert_same_bits(x, y)
        assert counter.frame_count <= most


def test_compiled_steps_write_into_out_and_work_in_place() -> None:
    case = replace(CASES["everything"], prediction=None)
    expected = run(case, 1)
    step = compiled(run)
    out = torch.full_like(case.sample, 9)
    made = step(case, 1, out)
    assert_same_bits(out, expected.prev_sample)
    assert_same_bits(made.prev_sample, expected.prev_sample)
    in_place = replace(case, sample=case.sample.clone())
    step(in_place, 1, in_place.sample)
    assert_same_bits(in_place.sample, expected.prev_sample)


def test_a_compiled_step_reads_what_was_written_before_it_and_is_not_moved() -> None:
    case = replace(CASES["bare"], sample=CASES["bare"].sample.float())

    def between(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        gmm_step(x, x, case.coefficients.float(), row=0, seeds=case.seeds, out=out)
        x.add_(out)
        return out + x

    given = [case.sample.clone() for _ in range(4)]
    expected, actual = between(given[0], given[1]), compiled(between)(given[2], given[3])
    assert_same_bits(actual, expected)
    assert_same_bits(given[2], given[0])
    assert_same_bits(given[3], given[1])


def test_bad_input_is_an_error_in_compiled_code_too() -> None:
    case = CASES["bare"]
    with pytest.raises(Exception, match="row: expected 0 to 3, got 7"):
        compiled(run)(case, 7)
    with pytest.raises(Exception, match="model_output: expected the sample's shape"):
        compiled(run)(replace(case, model_output=case.model_output[:1]), 0)
    step = compiled(run)
    with pytest.raises(IndexError, match="row: expected 0 to 3, got 7 for sample 0"):
        step(case, torch.tensor(7))
    for row in (0, 1, 2, 3):  # by now an int is traced as a symbol, within its range
        step(case, row)
    with pytest.raises((torch._dynamo.exc.Unsupported, IndexError)):
        step(case, 4)


@pytest.mark.parametrize(
    "options",
    [
        # PyTorch's operators as they are, in Inductor's order and memory: no compiler of C++ runs.
        {"fallback_by_default": True},
        # Fused; but no programs are compiled to learn what the processor has.
        pytest.param({"cpp.vec_isa_ok": False}, marks=pytest.mark.slow),
    ],
    ids=["unfused", "fused"],
)
def test_inductor_gives_the_same_bits(options: dict[str, Any]) -> None:
    case = random_case(2, rows=3, shape=(3, 5), components=3, dtype=torch.float32, output_dtype=torch.float32)
    case = replace(case, prediction=None)

    def turn(x: torch.Tensor, row: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = -x.transpose(1, 2)  # exact, and of other strides than the step's results
        made = replace(case, sample=x, model_output=output.transpose(1, 2)).run(row=row, step=None)
        noise = standard_normal(case.seeds + 1, x.shape[1:], step=row, out=out)
        return made.prev_sample.abs(), -noise

    step = torch.compile(turn, fullgraph=True, options=options)
    for row in range(3):
        outs = [torch.full_like(case.sample, 9) for _ in range(2)]
        expected = turn(case.sample, torch.tensor(row), outs[0])
        # What operators write is no part of the caches' keys.
        with torch.compiler.config.patch(force_disable_caches=True):
            actual = step(case.sample, torch.tensor(row), outs[1])
        for result, plain in zip((*actual, outs[1]), (*expected, outs[0]), strict=True):
            assert_same_bits(result, plain)
