"""What may go to the kernels past PyTorch's operators, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from helpers import random_case
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gmmkernel.backends import cpu

BATCH, ELEMENTS = 2, 3
COEFFICIENTS = torch.ones(4, 16)
OTHER = torch.randn(BATCH, ELEMENTS)


def at_once(
    sample: Any, model_output: Any = OTHER, out: Any = None, coefficients: Tensor = COEFFICIENTS, **named: Any
) -> bool:
    inputs = [sample, model_output, coefficients, torch.arange(BATCH), 0, 0, None, (), *[None] * 5]
    for name, value in named.items():
        inputs[["seeds", "row", "step", "uncond", "history", "cdf", "offsets"].index(name) + 3] = value
    result = torch.full((BATCH, ELEMENTS), 9.0) if out is None else out
    done = cpu.gmm_step_unchecked(tuple(inputs), result, None, 0, None, tracks=True)
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
