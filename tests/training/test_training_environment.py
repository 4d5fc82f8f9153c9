"""Flush-to-zero, set by the caller, changes no bit of training ops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import DTYPES, assert_same_bits
from losses import random_case

from gmmkernel.backends import cpu

SMALL = {dtype: torch.finfo(dtype).smallest_normal for dtype in DTYPES}


@pytest.fixture
def no_flushing() -> Iterator[None]:
    """Put the processor's mode back afterwards."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no flush-to-zero mode")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_sample", [False, True])
def test_subnormal_gradients_and_samples_stay(dtype: torch.dtype, with_sample: bool) -> None:
    case = random_case(2, shape=(3000,), dtype=dtype, sample_dtype=dtype, with_sample=with_sample)
    small = SMALL[dtype]
    tiny = replace(
        case,
        data=(case.data.double() * small).to(dtype),
        coefficients=case.coefficients.clone(),
        grad=case.grad.sign() * small * 300,
    )
    tiny.coefficients[:, :2] = torch.tensor([0.5, small / 3])  # x_t is subnormal too
    expected = tiny.results(backend="reference")
    for name in ("noised", "grad_alone", *(["grad_sample"] if with_sample else [])):
        found = expected[name].double().abs()
        assert ((found > 0) & (found < small)).double().mean() > 0.05, name
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            torch.set_flush_denormal(True)
            made = tiny.results(backend="cpu")
            torch.set_flush_denormal(False)
            for key, tensor in expected.items():
                assert_same_bits(made[key], tensor)
