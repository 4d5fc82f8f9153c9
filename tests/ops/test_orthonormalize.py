"""`orthonormalize`: what it returns, leaves alone and refuses."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import assert_same_bits

from gmmkernel import orthonormalize


def random_rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[-1]))


@pytest.mark.parametrize(("rows", "elements"), [(1, 1), (1, 5), (8, 8), (8, 64), (30, 1025)])
def test_rows_are_an_orthonormal_basis_of_the_same_spaces(backend: str, rows: int, elements: int) -> None:
    given = random_rows(rows, elements)
    before = given.clone()
    q = orthonormalize(given, backend=backend)
    assert_same_bits(given, before)
    tolerance = 1e-14 * elements * float(torch.linalg.cond(given))
    assert torch.allclose(q @ q.T, torch.eye(rows, dtype=torch.float64), rtol=0, atol=tolerance)
    mixed = given @ q.T  # row k lies in the span of the first k + 1
    assert torch.allclose(
        mixed.triu(1), torch.zeros_like(mixed), rtol=0, atol=tolerance * float(given.norm())
    )
    assert (mixed.diagonal() > 0).all()


def test_strided_rows_give_the_same_bits(backend: str) -> None:
    given = random_rows(4, 9)
    expected = orthonormalize(given, backend=backend)
    assert_same_bits(orthonormalize(given.t().contiguous().t(), backend=backend), expected)
    assert_same_bits(orthonormalize(given.repeat_interleave(2, 1)[:, ::2], backend=backend), expected)
    assert expected.is_contiguous()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1.0]], TypeError, "rows: expected a torch.Tensor, got list"),
        (torch.eye(3), TypeError, "rows: expected float64, got torch.float32"),
        (random_rows(4, 3), ValueError, "rows: expected shape [K, D] with 1 <= K <= D, got (4, 3)"),
        (random_rows(0, 3), ValueError, "rows: expected shape [K, D] with 1 <= K <= D, got (0, 3)"),
        (random_rows(3), ValueError, "rows: expected shape [K, D] with 1 <= K <= D, got (3,)"),
        (torch.zeros(2, 3).double(), ValueError, "rows: expected linearly independent finite rows, row 0 has norm 0"),
        (torch.eye(3).double()[[0, 1, 0]], ValueError, "rows: expected linearly independent finite rows, row 2"),
        (torch.full((1, 3), torch.inf).double(), ValueError, "rows: expected linearly independent finite rows, row 0"),
        (torch.full((1, 3), torch.nan).double(), ValueError, "rows: expected linearly independent finite rows, row 0"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused(backend: str, rows: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        orthonormalize(rows, backend=backend)


def test_dependent_rows_are_refused_although_rounding_leaves_a_rest(backend: str) -> None:
    with pytest.raises(ValueError, match="rows: expected linearly independent finite rows, row 1"):
        orthonormalize(torch.tensor([[0.1, 0.7, 0.3], [0.1, 0.7, 0.3]], dtype=torch.float64), backend=backend)


def test_a_backend_for_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="no backend computes on 'meta' tensors"):
        orthonormalize(random_rows(2, 3).to("meta"))


def test_rows_that_ask_for_gradients_are_refused() -> None:
    with pytest.raises(RuntimeError, match="requires a gradient"):
        orthonormalize(random_rows(2, 3).requires_grad_())
