"""`torch.compile(fullgraph=True)` of training ops, forward and backward: the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import assert_same_bits
from losses import random_case
from torch import Tensor

from gmmkernel import skip_step_loss


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """As the other tests' fixture, which the compiler cannot trace, by PyTorch's own means."""
    torch.use_deterministic_algorithms(True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("dtype", "per_sample"), [(torch.float32, True), (torch.bfloat16, False)])
def test_compiled_forward_and_backward_give_the_same_bits(dtype: torch.dtype, per_sample: bool) -> None:
    case = random_case(1, dtype=dtype, sample_dtype=dtype, per_sample=per_sample, shape=(3, 9))

    def function(data: Tensor, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        noised = replace(case, data=data).noised()
        return noised, case.loss(model_output=output, sample=sample)

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.clone().requires_grad_() for tensor in (case.data, case.model_output, case.sample)]
        noised, losses = run(*leaves)
        ((noised.float() ** 2).sum() + (losses * case.grad).sum()).backward()
        results.append([noised.detach(), losses.detach(), *(leaf.grad for leaf in leaves)])
    for made, expected in zip(*results, strict=True):
        assert_same_bits(made, expected)


def test_sizes_may_be_dynamic() -> None:
    def function(output: Tensor, seeds: Tensor, coefficients: Tensor) -> Tensor:
        return skip_step_loss(output, coefficients, row=1, seeds=seeds, step=3)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, elements in ((2, 5), (3, 1200), (4, 7)):
        case = random_case(2, batch=batch, shape=(elements,), with_sample=False)
        gradients = []
        for run in (function, compiled):
            leaf = case.model_output.clone().requires_grad_()
            run(leaf, case.seeds, case.coefficients).sum().backward()
            gradients.append(leaf.grad)
        assert_same_bits(*gradients)
