"""The fixed order of sums, and the orthonormalisation built on it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from gmmkernel.backends.constants import SUM_TILE as TILE
from gmmkernel.backends.reference.sums import orthonormalize, tree_sum

SIZES = (1, 2, 3, 63, 1000, TILE - 1, TILE, TILE + 1, 4097, 3 * TILE)


def tree_of(values: list[float], index: int = 0, stride: int = 1) -> float:
    """The halving tree as a recursion: a node adds the nodes at its index and half a tile (then a quarter...) on."""
    if stride == TILE:
        return values[index]
    return tree_of(values, index, 2 * stride) + tree_of(values, index + stride, 2 * stride)


def sum_by_recursion(values: list[float]) -> float:
    tiles = [values[i : i + TILE] for i in range(0, len(values), TILE)]
    sums = [tree_of(tile + [0.0] * (TILE - len(tile))) for tile in tiles]
    return sums[0] if len(sums) == 1 else sum_by_recursion(sums)


@pytest.mark.parametrize("size", SIZES)
def test_sum_follows_the_halving_tree(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size) * 10.0 ** rng.integers(-8, 8, size)
    assert tree_sum(values) == sum_by_recursion(values.tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_sum_is_within_the_bound_of_its_depth(size: int, dtype: type) -> None:
    values = np.random.default_rng(size).standard_normal(size).astype(dtype)
    exact = sum(map(Fraction, values.tolist()))
    depth = 10 if size <= TILE else 20
    roundoff = Fraction(float(np.finfo(dtype).eps)) / 2
    size_of_terms = sum(abs(Fraction(value)) for value in values.tolist())
    result = tree_sum(values)
    assert result.dtype == dtype
    assert abs(Fraction(float(result)) - exact) <= ((1 + roundoff) ** depth - 1) * size_of_terms


def test_sum_of_three_levels_is_exact_for_integers() -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, TILE * TILE + 5)
    assert tree_sum(values.astype(np.float64)) == values.sum()


def test_sums_of_rows_are_the_sums_of_each_row() -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 1500))
    sums = tree_sum(values)
    assert sums.shape == (3, 2)
    assert all(sums[i, j] == tree_sum(values[i, j]) for i in range(3) for j in range(2))


@pytest.mark.parametrize(("rows", "elements"), [(1, 1), (1, 7), (5, 5), (8, 63), (20, 1025)])
def test_rows_become_orthonormal_and_span_the_same_space(rows: int, elements: int) -> None:
    given = np.random.default_rng(rows).standard_normal((rows, elements))
    q = given.copy()
    orthonormalize(q)
    # Modified Gram-Schmidt loses orthogonality in proportion to the condition number.
    tolerance = 1e-14 * elements * np.linalg.cond(given)
    assert np.allclose(q @ q.T, np.eye(rows), rtol=0, atol=tolerance)
    assert np.allclose(given @ q.T @ q, given, rtol=0, atol=tolerance * np.linalg.norm(given))
    assert np.allclose(np.triu(q @ given.T, 0), q @ given.T, rtol=0, atol=tolerance * np.linalg.norm(given))
    assert (np.diag(q @ given.T) > 0).all()  # each keeps its direction
