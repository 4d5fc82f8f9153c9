"""A sample that is cut over ranks: its step, and its log-density, have the bits of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks
from torch import Tensor

from gmmkernel import (
    flow_sde_coefficients,
    flow_times,
    gmm_step,
    gmm_step_log_prob,
    gmm_step_log_ratio,
    join_log_prob,
)
from gmmkernel.golden import digest

ROWS = flow_sde_coefficients(flow_times(4)).coefficients
SEEDS = torch.tensor([7, -8])
TOKENS, CHANNELS = 96, 64  # packed as Flux has them; 16 tokens are a tile of sums


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def part(first: int, last: int) -> tuple[Tensor, ...]:
    """Return tokens first .. last - 1 of the sample, the outputs, and step, tiles and log-ratios of them."""
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(3, 2, TOKENS, CHANNELS, generator=generator)
    x, output, old = (tensor[:, first:last].contiguous() for tensor in whole)
    of_step = {"row": 1, "seeds": SEEDS, "first_element": first * CHANNELS}
    drawn = gmm_step(x, output, ROWS, **of_step).prev_sample
    log_prob = gmm_step_log_prob(drawn, x, output, ROWS, row=1, reduction="tiles")
    ratio = gmm_step_log_ratio(drawn, x, output, old, ROWS, row=1, reduction="tiles")
    return drawn, log_prob, ratio.log_ratio, ratio.divergence


def joined(rank: int) -> list[Any]:
    """Gather what the ranks have, and join it on each."""
    ranks = dist.get_world_size()
    # Unequal shares, each a multiple of a tile.
    cuts = [0, *(16 * (6 * (n + 1) // (ranks + 1) + 1) for n in range(ranks - 1)), TOKENS]
    own = part(cuts[rank], cuts[rank + 1])
    gathered: list[tuple[Tensor, ...]] = [() for _ in range(ranks)]
    dist.all_gather_object(gathered, own)
    drawn = torch.cat([each[0] for each in gathered], dim=1)
    elements = (TOKENS * CHANNELS, 0, 0)
    sums = [
        join_log_prob(torch.cat([each[1 + i] for each in gathered], dim=1), elements[i]) for i in range(3)
    ]
    return [digest([drawn]), *(each.tolist() for each in sums)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_has_the_bits_of_one(ranks: int, tmp_path: Path) -> None:
    drawn, *_ = part(0, TOKENS)
    generator = torch.Generator().manual_seed(5)
    x, output, old = torch.randn(3, 2, TOKENS, CHANNELS, generator=generator)
    expected = [
        digest([drawn]),
        gmm_step_log_prob(drawn, x, output, ROWS, row=1).tolist(),
        *(each.tolist() for each in gmm_step_log_ratio(drawn, x, output, old, ROWS, row=1)),
    ]
    assert on_ranks(ranks, tmp_path / "store", joined) == [expected] * ranks
