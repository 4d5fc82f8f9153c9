"""`draw_components`: the component that a step draws, with the weights' frequencies."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import truth
from covering import check_all, pairs
from helpers import assert_same_bits, random_case
from scipy import stats

from gmmkernel import draw_components


def cdf_of(weights: list[float]) -> torch.Tensor:
    cdf = np.cumsum(np.array(weights) / np.sum(weights))[:-1]
    return torch.from_numpy(np.floor(cdf * 2.0**32).astype(np.int64))[None]


@pytest.mark.parametrize("weights", [[1, 1], [5, 1, 3], [0.001, 0.999], [1] * 8, list(range(1, 65))])
def test_frequencies_are_the_weights(weights: list[float]) -> None:
    count = 200_000
    drawn = draw_components(torch.arange(count), cdf_of(weights), step=11)
    expected = count * np.array(weights) / np.sum(weights)
    counts = np.bincount(drawn.numpy(), minlength=len(weights))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_components_of_neighbouring_steps_are_independent() -> None:
    seeds, cdf = torch.arange(100_000), cdf_of([1, 2, 1])
    first, second = (draw_components(seeds, cdf, step=step) for step in (7, 8))
    table = np.bincount((3 * first + second).numpy(), minlength=9).reshape(3, 3)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def check_same(components: int, seed: int, backend: str) -> None:
    case = random_case(seed, batch=40, shape=(2,), components=components, removed=0)
    drawn = draw_components(case.seeds, case.mixture.cdf, row=case.row, step=case.step, backend=backend)
    assert drawn.dtype == torch.int64
    assert_same_bits(case.run(backend=backend).components, drawn)


def test_a_step_draws_the_same_components() -> None:
    backends = ["cpu", "reference"]
    check_all(check_same, pairs(components=[1, 2, 8, 1024], seed=range(3), backend=backends))


def test_components_begin_exactly_at_their_threshold(backend: str) -> None:
    for seed in (0, -1, 2**63 - 1, -(2**63), 12345):
        word = truth.random_words(seed, 2**32 - 1, truth.COMPONENT, 1)[0]
        for cdf, expected in (
            ([word - 1, word], 2),
            ([word, word + 1], 1),
            ([word + 1, word + 2], 0),
            ([0, 2**32], 1),
            ([word] * 5 + [word + 1] * 3, 5),
        ):
            table = torch.tensor([cdf])
            drawn = draw_components(torch.tensor([seed]), table, step=2**32 - 1, backend=backend)
            assert drawn.tolist() == [expected]


def test_row_chooses_the_table_and_is_the_step_unless_given(backend: str) -> None:
    seeds, rows = torch.arange(50), torch.arange(50) % 3
    tables = torch.cat([cdf_of([1, 1]), cdf_of([9, 1]), cdf_of([1, 9])])
    drawn = draw_components(seeds, tables, row=rows, backend=backend)
    for b in range(50):
        row = int(rows[b])
        expected = truth.choose_component(b, row, tables[row].tolist())
        alone = draw_components(seeds[b : b + 1], tables, row=row, backend=backend)
        assert drawn[b] == alone[0] == expected
    # With one table for all, `row` only sets the step.
    assert_same_bits(
        draw_components(seeds, tables[:1], row=rows, backend=backend),
        draw_components(seeds, tables[:1], step=rows, backend=backend),
    )


def test_empty_batch_and_single_component(backend: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert draw_components(nothing, cdf_of([1, 1]), backend=backend).shape == (0,)
    single = draw_components(torch.arange(5), torch.zeros(1, 0, dtype=torch.int64), backend=backend)
    assert single.tolist() == [0] * 5


SEEDS, TABLES = torch.arange(4), torch.tensor([[5, 9], [1, 2], [3, 4]])
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seeds": SEEDS.float()}, TypeError, "seeds: expected int64, got torch.float32"),
    ({"seeds": SEEDS[None]}, ValueError, "seeds: expected shape [B], got (1, 4)"),
    ({"seeds": 3}, TypeError, "seeds: expected a torch.Tensor, got int"),
    ({"cdf": TABLES.int()}, TypeError, "cdf: expected int64, got torch.int32"),
    ({"cdf": TABLES[0]}, ValueError, "cdf: expected shape [S or 1, K - 1], got (2,)"),
    ({"cdf": TABLES[:0]}, ValueError, "cdf: expected shape [S or 1, K - 1], got (0, 2)"),
    (
        {"cdf": torch.zeros(1, 1024).long()},
        ValueError,
        "cdf: expected at most 1024 components, got 1025",
    ),
    (
        {"cdf": TABLES.to("meta")},
        ValueError,
        "cdf: expected a tensor on cpu like seeds, got one on meta",
    ),
    ({"cdf": [[1]]}, TypeError, "cdf: expected a torch.Tensor, got list"),
    ({"row": 3}, IndexError, "row: expected 0 to 2, got 3"),
    ({"row": torch.tensor([0, 1, 2])}, ValueError, "row: expected shape [], [1] or [4], got (3,)"),
    ({"row": torch.tensor([0, 1, 2, 3])}, IndexError, "row: expected 0 to 2, got 3 for sample 3"),
    ({"row": "0"}, TypeError, "row: expected an int or an int64 tensor, got str"),
    ({"step": 2**32}, IndexError, "step: expected 0 to 4294967295, got 4294967296"),
    ({"step": torch.tensor([-1])}, IndexError, "step: expected 0 to 4294967295, got -1 for sample 0"),
    (
        {"backend": "c"},
        ValueError,
        "backend: expected one of ['cpu', 'reference', 'cuda', 'triton'], got 'c'",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUT, ids=[entry[2] for entry in BAD_INPUT])
def test_bad_input_is_refused(
    backend: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"seeds": SEEDS, "cdf": TABLES, "backend": backend} | change
    with pytest.raises(error, match="^" + re.escape(message)):
        draw_components(**arguments)
