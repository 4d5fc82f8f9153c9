"""NumPy's integers are taken where an int is; what is not an integer, or not one number, is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_case
from torch import Tensor

from gmmkernel import (
    add_noise,
    draw_components,
    gmm_step_log_prob,
    mixture_moments,
    skip_step_loss,
    standard_normal,
)

CASE = random_case(2, components=3, removed=4, per_sample=False, prediction=None, guidance=False, history=0)
X, ROWS, SEEDS = CASE.sample.float(), CASE.coefficients, CASE.seeds
MIXTURE = CASE.mixture._replace(weights=torch.full((1, 3), 1 / 3))
TRAINING_ROWS = torch.ones(3, 9)

TAKES: dict[str, Callable[[Any], Tensor]] = {
    "gmm_step row": lambda i: CASE.run(row=i, step=7).prev_sample,
    "gmm_step step": lambda i: CASE.run(row=1, step=i).prev_sample,
    "gmm_step_log_prob row": lambda i: gmm_step_log_prob(X, X, X, ROWS, row=i),
    "add_noise row": lambda i: add_noise(X, TRAINING_ROWS, row=i, seeds=SEEDS),
    "add_noise step": lambda i: add_noise(X, TRAINING_ROWS, row=1, step=i, seeds=SEEDS),
    "skip_step_loss row": lambda i: skip_step_loss(X, TRAINING_ROWS, row=i, seeds=SEEDS, sample=X),
    "skip_step_loss step": lambda i: skip_step_loss(X, TRAINING_ROWS, row=1, step=i, seeds=SEEDS, sample=X),
    "standard_normal step": lambda i: standard_normal(SEEDS, (4,), step=i),
    "standard_normal stream": lambda i: standard_normal(SEEDS, (4,), stream=i),
    "standard_normal shape": lambda i: standard_normal(SEEDS, (i, 3)),
    "draw_components row": lambda i: draw_components(SEEDS, MIXTURE.cdf, row=i, step=7),
    "draw_components step": lambda i: draw_components(SEEDS, MIXTURE.cdf, row=1, step=i),
    "mixture_moments row": lambda i: mixture_moments(MIXTURE, ROWS, row=i).mean,
}


@pytest.mark.parametrize("name", TAKES)
def test_integers_of_numpy_are_integers(name: str) -> None:
    function = TAKES[name]
    expected = function(2)
    for two in (np.int64(2), np.int32(2), np.uint8(2), np.array(2), np.array(2, dtype=np.uint64)):
        assert torch.equal(function(two), expected)
    argument = name.split()[1]
    wrong = [
        np.float64(2),
        np.float32(2),
        np.bool_(True),
        np.array(True),
        np.array(2.0),
        np.array([2]),
        True,
        2.0,
    ]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected "):
            function(value)
    if argument not in ("stream", "shape"):
        with pytest.raises((IndexError, ValueError), match=f"^{argument}: expected 0 to "):
            function(np.uint64(2**63))


def test_a_shape_may_be_an_array_of_integers() -> None:
    expected = standard_normal(SEEDS, (2, 3))
    for shape in (np.array([2, 3]), np.array([2, 3], dtype=np.uint8), [np.int64(2), 3], torch.Size([2, 3])):
        assert torch.equal(standard_normal(SEEDS, shape), expected)
    for wrong in (
        np.array([2.0, 3.0]),
        np.array([[2, 3]]),
        6,
        np.int64(6),
        "23",
        (2, 3.0),
        torch.tensor([2, 3]),
        None,
    ):
        with pytest.raises(TypeError, match=r"^shape: expected a sequence of integers, got "):
            standard_normal(SEEDS, wrong)
    with pytest.raises(ValueError, match=r"^shape: expected sizes of at least 0, got \(2, -3\)"):
        standard_normal(SEEDS, np.array([2, -3]))


@pytest.mark.parametrize(
    "name", [name for name in TAKES if "_log_prob" not in name and name.endswith(("row", "step"))]
)
def test_tensors_of_indices_are_int64(name: str) -> None:
    """Others are not converted: that would be another kernel launched in each call."""
    with pytest.raises(TypeError, match=r"(row|step): expected an int(,| or an int64 tensor,) got "):
        TAKES[name](torch.tensor(2, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"seeds: expected int64, got torch\.int32"):
        standard_normal(SEEDS.int(), (3,))
