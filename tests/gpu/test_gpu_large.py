"""More than 2^31 elements: slices against the specification, whose blocks of random words start anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from layouts import DEVICE

from gmmkernel import Column, MixtureTables, Stream, gmm_step, standard_normal
from gmmkernel.backends.reference.arithmetic import clip, fma
from gmmkernel.backends.reference.normal import normals_from_words
from gmmkernel.backends.reference.philox import random_words

pytestmark = pytest.mark.gpu

LENGTH = 40
SIGMA = 0.75


@pytest.fixture(autouse=True)
def memory_given_back() -> None:
    torch.cuda.empty_cache()


def need(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GB of free device memory, there are {free:.0f}")


def places(elements: int, batch: int) -> list[tuple[int, int]]:
    """Return (sample, first element, a multiple of 4) around every power of two, of a sample and of the batch."""
    found = []
    for sample in range(batch):
        before = sample * elements
        marks = [0, elements - LENGTH, *(2**power - 20 for power in (16, 29, 30, 31, 32))]
        marks += [2**power - 20 - before for power in (30, 31, 32)]
        found += [
            (sample, mark // 4 * 4) for mark in sorted(set(marks)) if 0 <= mark // 4 * 4 <= elements - LENGTH
        ]
    return found


def noise(seed: int, step: int, stream: Stream, first: int) -> np.ndarray:
    words = random_words(seed, step, stream, first_block=first // 4, blocks=LENGTH // 4)
    return normals_from_words(words).reshape(-1)


def coefficients() -> torch.Tensor:
    row = torch.zeros(1, len(Column))
    row[0, Column.X0_SAMPLE], row[0, Column.X0_OUTPUT] = 1.25, -0.5
    row[0, Column.CLIP_MIN], row[0, Column.CLIP_MAX] = -1, 1
    row[0, Column.SAMPLE], row[0, Column.OUTPUT], row[0, Column.X0] = 0.3, -0.7, 0.9
    row[0, Column.SIGMA], row[0, Column.OFFSET] = SIGMA, 0.6
    return row


def expected_step(
    x: torch.Tensor, o: torch.Tensor, z: np.ndarray, offset: torch.Tensor | None
) -> torch.Tensor:
    """Return a slice of a step in bfloat16, from the specification's equations."""
    row = coefficients()[0].numpy()
    sample, output = x.float().cpu().numpy(), o.float().cpu().numpy()
    x0 = fma(row[Column.X0_OUTPUT], output, row[Column.X0_SAMPLE] * sample)
    mean = row[Column.X0] * clip(x0, row[Column.CLIP_MIN], row[Column.CLIP_MAX])
    mean = fma(row[Column.SAMPLE], sample, fma(row[Column.OUTPUT], output, mean))
    if offset is not None:
        mean = fma(row[Column.OFFSET], offset.cpu().numpy(), mean)
    return torch.from_numpy(fma(row[Column.SIGMA], z, mean)).bfloat16()


@pytest.mark.parametrize(("batch", "elements"), [(3, 2**30 + 8), (1, 2**31 + 1004), (2, 2**30 + 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_noise(dtype: torch.dtype, batch: int, elements: int) -> None:
    need(batch * elements * dtype.itemsize / 1e9 + 2)
    seeds = torch.tensor([5, -6, 7])[:batch]
    made = standard_normal(seeds.to(DEVICE), (elements,), step=11, stream=Stream.TRAINING, dtype=dtype)
    for sample, first in places(elements, batch):
        z = noise(int(seeds[sample]), 11, Stream.TRAINING, first)
        actual = made[sample, first : first + LENGTH].cpu()
        assert_same_bits(actual, torch.from_numpy(z).to(dtype))


@pytest.mark.parametrize(("batch", "elements"), [(3, 2**30 + 8), (1, 2**31 + 1004), (2, 2**30 + 1)])
def test_step(batch: int, elements: int) -> None:
    """The last size is no multiple of 16 bytes: the general kernel."""
    need(3 * batch * elements * 2 / 1e9 + 2)
    seeds = torch.tensor([5, -6, 7])[:batch]
    x = torch.empty(batch, elements, dtype=torch.bfloat16, device=DEVICE).uniform_(-2, 2)
    o = torch.empty_like(x).uniform_(-2, 2)
    made = gmm_step(x, o, coefficients().to(DEVICE), row=0, step=9, seeds=seeds.to(DEVICE)).prev_sample
    for sample, first in places(elements, batch):
        here = slice(first, first + LENGTH)
        z = noise(int(seeds[sample]), 9, Stream.TRANSITION, first)
        assert_same_bits(made[sample, here].cpu(), expected_step(x[sample, here], o[sample, here], z, None))


def test_tables_of_more_than_two_to_the_31_numbers() -> None:
    components, elements = 9, 2**28 + 64
    need(components * elements * 4 / 1e9 + 6)
    x = torch.empty(1, elements, dtype=torch.bfloat16, device=DEVICE).uniform_(-2, 2)
    o = torch.empty_like(x).uniform_(-2, 2)
    offsets = torch.empty(1, components, elements, device=DEVICE).uniform_(-1, 1)
    tables = MixtureTables(
        torch.zeros(
            1, components - 1, dtype=torch.int64, device=DEVICE
        ),  # every word reaches all: the last one
        offsets,
        torch.full((1, 1, elements), SIGMA, device=DEVICE),
    )
    result = gmm_step(
        x, o, coefficients().to(DEVICE), row=0, step=9, seeds=torch.tensor([5], device=DEVICE), mixture=tables,
        return_components=True,
    )  # fmt: skip
    assert result.components is not None
    assert result.components.tolist() == [components - 1]
    for _, first in places(elements, 1):
        here = slice(first, first + LENGTH)
        z = noise(5, 9, Stream.TRANSITION, first)
        expected = expected_step(x[0, here], o[0, here], z, offsets[0, components - 1, here])
        assert_same_bits(result.prev_sample[0, here].cpu(), expected)
