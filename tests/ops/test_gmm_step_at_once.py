"""What may go to the kernels past PyTorch's operators, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from covering import pairs
from helpers import random_case
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gmmkernel import Column, MixtureTables, gmm_step
from gmmkernel.backends import cpu
from gmmkernel.ops import checks

IS_EAGER = checks.is_eager
BATCH, ELEMENTS = 2, 3
COEFFICIENTS = torch.ones(4, 16)
COEFFICIENTS[:, Column.HISTORY_0 : Column.HISTORY_3 + 1] = 0
OTHER = torch.randn(BATCH, ELEMENTS)


def at_once(
    sample: Any, model_output: Any = OTHER, out: Any = None, coefficients: Tensor = COEFFICIENTS, **named: Any
) -> bool:
    inputs = [sample, model_output, coefficients, torch.arange(BATCH), 0, 0, 0, None, (), *[None] * 5]
    for name, value in named.items():
        inputs[
            ["seeds", "row", "step", "first_element", "uncond", "history", "cdf", "offsets"].index(name) + 3
        ] = value
    result = torch.full((BATCH, ELEMENTS), 9.0) if out is None else out
    done = cpu.gmm_step_unchecked(tuple(inputs), result, None, 0, None, None, None, tracks=True)
    assert done or out is not None or bool((result == 9).all())
    return done


WIDE = torch.randn(BATCH, 2 * ELEMENTS)
PLAIN: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(BATCH, ELEMENTS),
    "a slice of each sample": lambda: WIDE[:, :ELEMENTS],
    "one sample for all": lambda: WIDE[:1, :ELEMENTS].expand(BATCH, ELEMENTS),
    "a parameter that is frozen": lambda: torch.nn.Parameter(WIDE[:, :ELEMENTS], requires_grad=False),
}
NOT_PLAIN: dict[str, Callable[[], Any]] = {
    "requires a gradient": lambda: torch.randn(BATCH, ELEMENTS, requires_grad=True),
    "strided": lambda: WIDE[:, ::2],
    "transposed": lambda: torch.randn(ELEMENTS, BATCH).T,
    "negated when read": lambda: torch._neg_view(torch.randn(BATCH, ELEMENTS)),
    "zeros without memory": lambda: torch._efficientzerotensor((BATCH, ELEMENTS)),
    "nested": lambda: torch.nested.nested_tensor([WIDE[0], WIDE[1]]),
    "sparse": lambda: torch.randn(BATCH, ELEMENTS).to_sparse(),
    "on another device": lambda: torch.empty(BATCH, ELEMENTS, device="meta"),
    "of another type": lambda: torch.ones(BATCH, ELEMENTS, dtype=torch.int64),
    "of another shape": lambda: torch.randn(BATCH, ELEMENTS + 1),
    "no tensor": lambda: [1.0],
}


@pytest.mark.parametrize("kind", PLAIN)
def test_is_done_at_once(kind: str) -> None:
    made = PLAIN[kind]()
    assert at_once(made)
    assert at_once(OTHER, made)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_is_left_to_python(kind: str) -> None:
    made = NOT_PLAIN[kind]()
    assert not at_once(made)
    assert not at_once(OTHER, made)
    if kind != "no tensor":
        assert not at_once(OTHER, out=made)


def test_memory_that_is_read_elsewhere_is_not_written() -> None:
    memory = torch.zeros(BATCH + 1, ELEMENTS)
    assert at_once(memory[:BATCH], out=memory[:BATCH])
    assert not at_once(memory[:BATCH], out=memory[1:])
    assert not at_once(OTHER, out=COEFFICIENTS.view(-1)[: BATCH * ELEMENTS].view(BATCH, ELEMENTS))
    assert not at_once(OTHER, out=torch.zeros(1, ELEMENTS).expand(BATCH, ELEMENTS))


EXPLAINED: dict[str, dict[str, Any]] = {
    "a flag for a row": {"row": True},
    "a row beyond 64 bits": {"row": 2**70},
    "rows for another batch": {"row": torch.zeros(BATCH + 1, dtype=torch.int64)},
    "seeds for another batch": {"seeds": torch.arange(BATCH + 1)},
    "seeds that are none": {"seeds": torch.zeros(BATCH)},
    "a row that reads a history": {"coefficients": torch.ones(4, 16)},
    "a row that is guided": {"coefficients": 2 * COEFFICIENTS},
    "a column too few": {"coefficients": torch.ones(4, 15)},
    "coefficients of another type": {"coefficients": torch.ones(4, 16, dtype=torch.float64)},
    "too long a history": {"history": [OTHER] * 5},
    "a history of nothing": {"history": [None]},
    "a history that is none": {"history": "x"},
    "cdf without offsets": {"cdf": torch.zeros(1, 0, dtype=torch.int64)},
    "offsets without std": {"offsets": torch.zeros(1, 1, ELEMENTS)},
}


@pytest.mark.parametrize("what", EXPLAINED)
def test_what_needs_an_explanation_is_left_to_python(what: str) -> None:
    assert not at_once(OTHER, **EXPLAINED[what])


CHOICES: dict[str, tuple[Any, ...]] = {
    "batch": (0, 2),
    "elements": (0, 3),
    "dtype": (torch.float32, torch.bfloat16, torch.float64),
    "output_dtype": (torch.float32, torch.float16, torch.float64, torch.int64),
    "out_dtype": (None, torch.float32, torch.bfloat16, torch.float64),
    "row": (0, 3, 4, -1, True, torch.tensor(1), torch.tensor([1]), torch.tensor([0, 5]), torch.tensor([0.0])),
    "step": (None, 0, 2**32, torch.tensor([2, 3])),
    "history": ((), [], None, "one", "five"),
    "components": (0, 1, 2),
    "requires_grad": (False, True),
}


GOOD = {name: values[-1] if name in ("batch", "elements") else values[0] for name, values in CHOICES.items()}


def outcome(**choice: Any) -> list[Any]:
    """Return the bits of a step, or the error."""
    shape, dtype = (choice["batch"], choice["elements"]), choice["dtype"]
    table = torch.float64 if dtype == torch.float64 else torch.float32
    stored = {"one": [torch.ones(shape, dtype=dtype)], "five": [torch.ones(shape, dtype=dtype)] * 5}
    history, k = choice["history"], choice["components"]
    try:
        made = gmm_step(
            torch.ones(shape, dtype=dtype, requires_grad=choice["requires_grad"]),
            torch.ones(shape, dtype=choice["output_dtype"]),
            0.5 * COEFFICIENTS.to(table) + torch.eye(16, dtype=table)[int(Column.GUIDANCE)] / 2,
            row=choice["row"],
            seeds=torch.arange(shape[0]),
            step=choice["step"],
            mixture=MixtureTables(
                torch.zeros(1, k - 1, dtype=torch.int64),
                torch.ones(1, k, shape[1], dtype=table),
                torch.ones(1, 1, 0, dtype=table),
            )
            if k
            else None,
            history=stored[history] if isinstance(history, str) else history,
            out=None if choice["out_dtype"] is None else torch.zeros(shape, dtype=choice["out_dtype"]),
        )
    except Exception as error:
        return [type(error), str(error)]
    return [made.prev_sample.dtype, made.prev_sample.requires_grad, made.prev_sample.tolist()]


def test_what_python_would_say_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = list(pairs(**CHOICES))
    at_once = [outcome(**choice) for choice in choices]
    monkeypatch.setattr(checks, "is_eager", lambda: False)
    for choice, found in zip(choices, at_once, strict=True):
        assert found == outcome(**choice), choice
    for name, values in CHOICES.items():  # pairs of faults hide one another: each alone beside what is good
        for value in values:
            choice = GOOD | {name: value}
            with monkeypatch.context() as patch:
                patch.setattr(checks, "is_eager", IS_EAGER)
                found = outcome(**choice)
            assert found == outcome(**choice), choice


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_Functions, _Operators])
def test_modes_see_the_operator(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    with mode() as watching:
        random_case(0).run()
    assert any("gmmkernel" in name and "gmm_step" in name for name in watching.seen)


def test_the_profiler_sees_the_operator() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        random_case(0).run()
    assert "gmmkernel::gmm_step" in {event.key for event in recorded.key_averages()}
