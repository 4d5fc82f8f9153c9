"""`torch.compile(fullgraph=True)`, forward and backward: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from differentiable import ARGUMENTS, CASE, direct, of_density, of_ratio, of_sample
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import gmm_step


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """As the other tests' fixture, which the compiler cannot trace, by PyTorch's own means."""
    torch.use_deterministic_algorithms(True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("function", [of_sample, of_density, of_ratio])
@pytest.mark.parametrize("row", [1, torch.tensor([2, 0, 1])], ids=["int", "each"])
def test_compiled_forward_and_backward_give_the_same_bits(function: Callable[..., Tensor], row: Any) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [tensor.clone().requires_grad_() for tensor in ARGUMENTS]
    made = compiled(*leaves, CASE.seeds, row)
    assert_same_bits(made, function(*ARGUMENTS, CASE.seeds, row))
    made.square().sum().backward()
    for leaf, expected in zip(leaves, direct(function, row, *ARGUMENTS), strict=True):
        assert_same_bits(leaf.grad, expected)


def test_a_tensor_given_twice_compiles() -> None:
    def step(x: Tensor) -> Tensor:
        return gmm_step(x, x, CASE.coefficients, row=1, seeds=CASE.seeds, history=[x, x]).prev_sample

    x = CASE.sample.clone().requires_grad_()
    torch.compile(step, fullgraph=True, backend="aot_eager")(x).sum().backward()
    y = CASE.sample.clone().requires_grad_()
    step(y).sum().backward()
    assert_same_bits(x.grad, y.grad)
