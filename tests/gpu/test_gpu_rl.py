"""What training by rewards and sequence parallelism use, on a device: the bits of the CPU core, and no value read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from differentiable import Ratio, random_density, random_ratio
from helpers import DTYPE_PAIRS, assert_same_bits, random_case
from layouts import DEVICE, moved

from gmmkernel import flow_times, gmm_step_log_ratio, join_log_prob, standard_normal
from gmmkernel.integrations.flow_grpo import sde_step_with_logprob

pytestmark = pytest.mark.gpu

BACKENDS = pytest.mark.parametrize("backend", ["cuda", "triton"])
FIRST_ELEMENTS = (8, 12, 321, 2**34 - 16, 2**34 - 3, 2**63 - 1)


def placed(ratio: Ratio) -> Ratio:
    """Return the log-ratio on the device."""
    return replace(
        ratio.with_leaves({name: tensor.to(DEVICE) for name, tensor in ratio.leaves().items()}),
        case=moved(ratio.case),
    )


@BACKENDS
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
def test_log_ratios(backend: str, pair: tuple[torch.dtype, torch.dtype]) -> None:
    for seed, size in enumerate((5, 1000, 4096, 20001)):
        options = {"dtype": pair[0], "output_dtype": pair[1], "guidance": seed % 2 > 0, "history": seed}
        made = random_ratio(seed, shape=(size,), **options)
        expected = made.gradients()
        for name, tensor in placed(made).gradients(backend=backend).items():
            assert_same_bits(tensor.cpu(), expected[name])


@BACKENDS
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
def test_scored_steps_of_shards(backend: str, pair: tuple[torch.dtype, torch.dtype]) -> None:
    for seed, first in enumerate((0, *FIRST_ELEMENTS, torch.tensor(FIRST_ELEMENTS))):
        case = random_case(
            seed, batch=6, shape=((4096, 1027)[seed % 2],), dtype=pair[0], output_dtype=pair[1], components=0,
            prediction="mean" if seed % 3 == 0 else None,
        )  # fmt: skip
        case = replace(case, first_element=first)
        expected = case.run(return_log_prob=True)
        found = moved(case).run(return_log_prob=True, backend=backend)
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(None if one is None else one.cpu(), other)
        seeds = case.seeds
        noise = standard_normal(seeds, (1000,), first_element=first)
        on_device = first.to(DEVICE) if isinstance(first, torch.Tensor) else first
        made = standard_normal(seeds.to(DEVICE), (1000,), first_element=on_device, backend=backend)
        assert_same_bits(made.cpu(), noise)


@BACKENDS
def test_tiles_join(backend: str) -> None:
    made = random_density(1, batch=2, shape=(5000,), dtype=torch.float32, components=0)
    case = moved(made.case)
    on_device = replace(made, case=case, prev_sample=made.prev_sample.to(DEVICE))
    tiles = on_device.log_prob(reduction="tiles", backend=backend)
    assert_same_bits(join_log_prob(tiles, 5000).cpu(), made.log_prob())


def test_nothing_is_read_and_a_graph_replays() -> None:
    """A rollout's step with a generator's seeds on the device, its score, and a log-ratio."""
    sigmas = flow_times(5, shift=3.0).float().to(DEVICE)
    scheduler = SimpleNamespace(sigmas=sigmas, timesteps=sigmas[:-1] * 1000)
    x, v = torch.randn(2, 3, 4, 16, 16, device=DEVICE)
    timesteps, seeds = (
        scheduler.timesteps[torch.tensor([0, 3, 1], device=DEVICE)],
        torch.arange(3, device=DEVICE),
    )

    def rollout() -> tuple[Any, ...]:
        drawn = sde_step_with_logprob(scheduler, v, timesteps, x, seeds=seeds)
        scored = sde_step_with_logprob(scheduler, v, timesteps, x, prev_sample=drawn[0])
        return *drawn, scored[1]

    expected = rollout()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one, other in zip(rollout(), expected, strict=True):
            assert one.shape == other.shape
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(expected[-1], expected[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = rollout()
    graph.replay()
    for one, other in zip(made, expected, strict=True):
        assert_same_bits(one, other)
    unknown = sde_step_with_logprob(scheduler, v, torch.tensor([123.0], device=DEVICE), x, seeds=seeds)
    assert all(tensor.isnan().all() for tensor in unknown)


def test_a_row_out_of_range_is_nobody_else_s() -> None:
    made = placed(random_ratio(3, batch=3, shape=(100,), dtype=torch.float32, per_sample=True))
    expected = made.run()
    made.case.row[1] = 99
    tensors = (made.prev_sample, made.case.sample, made.case.model_output, made.old_model_output)
    found = gmm_step_log_ratio(
        *tensors,
        made.case.coefficients,
        row=made.case.row,
        model_output_uncond=made.case.model_output_uncond,
        old_model_output_uncond=made.old_model_output_uncond,
        history=made.case.history,
    )
    for one, other in zip(found, expected, strict=True):
        assert one.isnan().tolist() == [False, True, False]
        assert_same_bits(one[[0, 2]], other[[0, 2]])
