"""Indices out of range in a device tensor: such a sample is NaN, its component -1, and no other sample notices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import DTYPES, assert_same_bits, random_case
from layouts import DEVICE, moved

from gmmkernel import draw_components, standard_normal

pytestmark = pytest.mark.gpu

BAD_ROWS = (-1, 4, 2**31, 2**32, 2**40, -(2**63))
BAD_STEPS = (-1, 2**32, 2**40, -(2**63))


@pytest.mark.parametrize("history", [0, 1])
@pytest.mark.parametrize("size", [63, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps(dtype: torch.dtype, size: int, history: int) -> None:
    """With history the general kernel does the work; without it, at 4096 elements, the one for common steps."""
    case = random_case(
        history, batch=5, shape=(size,), dtype=dtype, output_dtype=dtype, components=8, history=history,
        prediction="x0" if history else None, per_sample=True,
    )  # fmt: skip
    case = replace(case, step=torch.tensor([0, 2**32 - 1, 2, 3, 4]))
    expected = case.run()
    spoilt = [("row", bad) for bad in BAD_ROWS] + [("step", bad) for bad in BAD_STEPS]
    for sample, (name, bad) in enumerate(spoilt):
        sample %= 5
        own = moved(case)
        getattr(own, name)[sample] = bad
        result = own.run()
        others = [index for index in range(5) if index != sample]
        assert result.prev_sample[sample].isnan().all(), (name, bad)
        assert result.components[sample] == -1
        assert_same_bits(result.prev_sample[others].cpu(), expected.prev_sample[others])
        assert_same_bits(result.components[others].cpu(), expected.components[others])
        if history:
            assert result.prediction[sample].isnan().all()
            assert_same_bits(result.prediction[others].cpu(), expected.prediction[others])


def test_one_index_for_all() -> None:
    own = moved(random_case(1, shape=(1000,), components=2, per_sample=False))
    result = own.run(row=torch.tensor(4, device=DEVICE))
    assert result.prev_sample.isnan().all()
    assert (result.components == -1).all()


def test_in_place_and_without_elements() -> None:
    own = moved(random_case(2, batch=4, shape=(64,), components=2, per_sample=True))
    before = own.sample.clone()
    own.row[2] = 99
    expected = replace(own, sample=before).run()
    result = own.run(out=own.sample)
    assert result.prev_sample[2].isnan().all()
    assert_same_bits(result.prev_sample, expected.prev_sample)
    empty = random_case(3, batch=4, shape=(0,), components=2, per_sample=True)
    empty = moved(replace(empty, step=torch.tensor([0, -1, 2, 3])))
    assert (empty.run().components == -1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(dtype: torch.dtype) -> None:
    seeds = torch.arange(6)
    step = torch.tensor([0, -1, 2**32 - 1, 2**32, 2**40, 5])
    actual = standard_normal(seeds.to(DEVICE), (1001,), step=step.to(DEVICE), dtype=dtype).cpu()
    good = [0, 2, 5]
    assert_same_bits(actual[good], standard_normal(seeds[good], (1001,), step=step[good], dtype=dtype))
    assert actual[[1, 3, 4]].isnan().all()


def test_components() -> None:
    cdf = torch.tensor([[2**30], [2**31], [2**32]])
    seeds = torch.arange(6)
    row, step = torch.tensor([0, 3, 1, 2, -1, 1]), torch.tensor([0, 0, -1, 2**32 - 1, 4, 5])
    actual = draw_components(seeds.to(DEVICE), cdf.to(DEVICE), row=row.to(DEVICE), step=step.to(DEVICE)).cpu()
    good = [0, 3, 5]
    assert_same_bits(actual[good], draw_components(seeds[good], cdf, row=row[good], step=step[good]))
    assert actual[[1, 2, 4]].tolist() == [-1, -1, -1]
