"""diffusers' schedulers with mixtures on CUDA: nothing is read back in a step, and the bits are the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from layouts import DEVICE

pytestmark = pytest.mark.gpu
pytest.importorskip("diffusers", reason="diffusers is not installed", exc_type=ModuleNotFoundError)

from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler  # noqa: E402

SHAPE = (3, 3, 8, 8)
CASES: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "ddim": (GMMDDIMScheduler, {"offset_scale": 0}, {}),
    "ddpm": (GMMDDIMScheduler, {"offset_scale": 0}, {"eta": 1.0}),
    "mixture": (GMMDDIMScheduler, {"n_components": 5, "offset_scale": 1.0}, {"eta": 0.7}),
    "shared": (
        GMMDDIMScheduler,
        {"shared_mixture": True, "variant": "ortho-vub", "offset_scale": 1.0},
        {"eta": 1.0},
    ),
    "thresholding": (
        GMMDDIMScheduler,
        {"thresholding": True, "sample_max_value": 2.0, "offset_scale": 1.0},
        {"eta": 0.7},
    ),
    "flow": (GMMFlowMatchScheduler, {"shift": 3.0, "eta": 0.5, "offset_scale": 1.0}, {}),
}


def run(scheduler: Any, device: torch.device, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    """Do what a pipeline does, with a model of one product: the same on every device."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(x))]
    scheduler.set_timesteps(5, device)
    visited = list(scheduler.timesteps)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for timestep in visited:
            x = scheduler.step(x * 0.75, timestep, x, generator=generators, **options).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_run_reads_nothing_back_and_has_the_bits_of_the_cpu(case: str, dtype: torch.dtype) -> None:
    kind, config, options = CASES[case]
    made = [run(kind(**config), device, dtype, **options).cpu() for device in (DEVICE, torch.device("cpu"))]
    assert_same_bits(*made)


def test_timesteps_that_are_copies() -> None:
    """They are looked up on the device; one that is not in the schedule gives NaN."""
    scheduler = GMMDDIMScheduler(offset_scale=1.0)
    scheduler.set_timesteps(4, DEVICE)
    scheduler.set_seeds(torch.arange(3))
    x = torch.randn(SHAPE, device=DEVICE)
    wanted = scheduler.step(x, 500, x, eta=1.0).prev_sample
    copies = [torch.tensor(500, device=DEVICE), torch.tensor([500, 500, 501], device=DEVICE)]
    scheduler.step(x, copies[0], x, eta=1.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one, each = (scheduler.step(x, timestep, x, eta=1.0).prev_sample for timestep in copies)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(one, wanted)
    assert_same_bits(each[:2], wanted[:2])
    assert bool(each[2].isnan().all())


def test_timesteps_that_are_copies_draw_at_each_step() -> None:
    """Whether they repeat cannot be told, so no noise is used twice; and a repeated element draws anew."""
    scheduler = GMMDDIMScheduler(eta=1.0)
    scheduler.set_timesteps(4, DEVICE)
    x, used = torch.zeros(SHAPE, device=DEVICE), torch.Generator().manual_seed(1)
    forms = [scheduler.timesteps[1].clone(), scheduler.timesteps[1].int(), scheduler.timesteps[1]]
    made = [scheduler.step(x, at, x, generator=used).prev_sample for at in forms for _ in range(2)]
    noise = torch.stack([step.flatten() for step in made]).cpu()
    assert float((torch.corrcoef(noise) - torch.eye(6)).abs().max()) < 0.2  # 576 independent pairs


def test_generators_on_the_device_are_refused() -> None:
    scheduler = GMMDDIMScheduler(offset_scale=1.0)
    scheduler.set_timesteps(4, DEVICE)
    x = torch.randn(SHAPE, device=DEVICE)
    with pytest.raises(ValueError, match="generator: expected one on the CPU, got one on cuda"):
        scheduler.step(x, 500, x, generator=torch.Generator(DEVICE))


def test_a_step_in_a_cuda_graph() -> None:
    scheduler = GMMDDIMScheduler(offset_scale=1.0)
    scheduler.set_timesteps(4, DEVICE)
    scheduler.set_seeds(torch.arange(3))
    x = torch.randn(SHAPE, device=DEVICE)
    timestep = torch.tensor(500, device=DEVICE)
    for value in (750, 500):
        timestep.fill_(value)
        wanted = scheduler.step(x, timestep, x, eta=1.0).prev_sample
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = scheduler.step(x, timestep, x, eta=1.0).prev_sample
    for value in (750, 500):
        timestep.fill_(value)
        wanted = scheduler.step(x, timestep, x, eta=1.0).prev_sample
        graph.replay()
        assert_same_bits(made, wanted)


def test_transitions_read_nothing_back_and_have_the_bits_of_the_cpu() -> None:
    """Each sample at a timestep of its own, drawn and scored; one that is not in the schedule gives NaN."""
    made = []
    for device in (DEVICE, torch.device("cpu")):
        scheduler = GMMFlowMatchScheduler(shift=3.0, dynamics="flow-sde")
        scheduler.set_timesteps(5, device)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
        at, seeds = scheduler.timesteps[[3, 0, 1]], torch.arange(3).to(device)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            drawn = scheduler.transition(x * 0.75, at, x, seeds=seeds)
            scored = scheduler.transition(x * 0.75, at, x, drawn.prev_sample)
            outside = scheduler.transition(x, at + 1, x, seeds=seeds) if device == DEVICE else None
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same_bits(scored.log_prob, drawn.log_prob)
        assert outside is None or all(bool(part.isnan().all()) for part in outside)
        made.append(drawn)
    for found, expected in zip(*made, strict=True):
        assert_same_bits(found.cpu(), expected)
