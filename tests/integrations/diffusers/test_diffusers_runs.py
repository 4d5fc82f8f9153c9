"""Runs with a mixture: which seeds, which noise, which mixture; what a run may do that a plain loop does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import PUBLISHED_VARIANTS
from schedulers_beside import SHAPE, inputs, mixture_ddim, model, noise_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gmmkernel import (
    MixtureTables,
    NoiseSchedule,
    ddim_coefficients,
    dynamic_thresholding,
    gaussian_mixture,
    gmm_step,
    seeds_from_generator,
)
from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler
from gmmkernel.integrations.diffusers.timesteps import Timesteps

STEPS = 4
ELEMENTS = 60


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(scheduler: Any, x: Tensor, *, first: int = 0, steps: int = STEPS, **options: Any) -> Tensor:
    """Do what a pipeline does."""
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps[first:]:
        x = scheduler.step(model(x, timestep), timestep, x, **options).prev_sample
    return x


def rows(scheduler: GMMDDIMScheduler, eta: float = 0.0, clip: float | None = 1.0) -> Tensor:
    visited = scheduler.timesteps
    before = (visited - 1000 // STEPS).clamp(min=-1)
    return ddim_coefficients(
        NoiseSchedule(scheduler.alphas_cumprod.double()),
        visited,
        prev_timesteps=before,
        eta=eta,
        clip_sample_range=clip,
    )


def run_by_hand(
    coefficients: Tensor,
    visited: Tensor,
    x: Tensor,
    seeds: Tensor,
    tables: MixtureTables | None,
    first: int = 0,
) -> Tensor:
    for row in range(first, len(visited)):
        x = gmm_step(
            x, model(x, visited[row]), coefficients, row=row, seeds=seeds, mixture=tables
        ).prev_sample
    return x


@pytest.mark.parametrize("shared", [False, True], ids=["per-step", "shared"])
@pytest.mark.parametrize("eta", [0.0, 0.8])
@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_a_run_is_gmm_step_with_the_config_s_mixture(variant: str, eta: float, shared: bool) -> None:
    scheduler = mixture_ddim(
        n_components=3,
        offset_scale=0.5,
        variant=variant,
        shared_mixture=shared,
        weights=[1, 2, 3],
        mixture_seed=9,
    )
    made = run(scheduler, inputs(), eta=eta, generator=generator())
    mixture = gaussian_mixture(
        variant,
        elements=ELEMENTS,
        n_components=3,
        scale=0.5,
        n_steps=None if shared else STEPS,
        weights=[1, 2, 3],
        seed=9,
    )
    coefficients = rows(scheduler, eta)
    seeds = seeds_from_generator(generator(), 2)
    wanted = run_by_hand(coefficients, scheduler.timesteps, inputs(), seeds, mixture.bind(coefficients))
    assert torch.equal(made, wanted)
    assert not torch.equal(
        made, run(GMMDDIMScheduler(offset_scale=0), inputs(), eta=eta, generator=generator())
    )


@pytest.mark.parametrize("options", [{"rho": 0.8}, {"offset_scale": 0.015}], ids=["rho", "scale"])
def test_moments_matched_exactly(options: dict[str, float]) -> None:
    scheduler = mixture_ddim(n_components=3, variant="exact", shared_mixture=True, **options)
    made = run(scheduler, inputs(), eta=1.0, generator=generator())
    renamed = {name.replace("offset_", ""): value for name, value in options.items()}
    mixture = gaussian_mixture("exact", elements=ELEMENTS, n_components=3, **renamed)
    coefficients = mixture.scaled(rows(scheduler, 1.0))
    seeds = seeds_from_generator(generator(), 2)
    wanted = run_by_hand(coefficients, scheduler.timesteps, inputs(), seeds, mixture.bind(coefficients))
    assert torch.equal(made, wanted)
    plain = run(GMMDDIMScheduler(offset_scale=0), inputs(), eta=1.0, generator=generator())
    assert not torch.equal(made, plain)
    copied = GMMDDIMScheduler.from_config(scheduler.config)
    assert torch.equal(run(copied, inputs(), eta=1.0, generator=generator()), made)


def test_a_scale_too_large_to_be_matched_exactly() -> None:
    scheduler = GMMDDIMScheduler(n_components=3, variant="exact", offset_scale=5.0)
    with pytest.raises(ValueError, match=r"^offset_scale: expected at most 0\.\d+, .*got 5"):
        run(scheduler, inputs(), eta=1.0, generator=generator())
    with pytest.raises(ValueError, match=r"^offset_scale: expected 0 beside rho, .*got 5\.0"):
        run(GMMDDIMScheduler(variant="exact", offset_scale=5.0, rho=0.5), inputs())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "exact", "rho": 1.5}, ValueError, "rho: expected a number from 0 to 0.999999, got 1.5"),
        ({"variant": "exact", "rho": ""}, TypeError, "rho: expected a finite number, got ''"),
        ({"variant": "ortho", "rho": 0.0}, ValueError, "rho: expected None for variant='ortho', .*got 0.0"),
    ],
)
def test_a_share_of_the_largest_scale_is_checked_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GMMDDIMScheduler(**options)


def test_a_run_that_starts_late_draws_what_the_whole_run_would_draw() -> None:
    """Image to image: the noise is that of the step's place in the schedule."""
    scheduler = mixture_ddim()
    made = run(scheduler, inputs(), first=2, eta=1.0, generator=generator())
    coefficients = rows(scheduler, 1.0)
    tables = gaussian_mixture("ortho", elements=ELEMENTS, n_steps=STEPS).bind(coefficients)
    seeds = seeds_from_generator(generator(), 2)
    assert torch.equal(made, run_by_hand(coefficients, scheduler.timesteps, inputs(), seeds, tables, first=2))


def test_a_timestep_for_each_sample() -> None:
    scheduler = mixture_ddim(n_components=4, thresholding=True, sample_max_value=3.0)
    scheduler.set_timesteps(STEPS)
    x = inputs((4, 3, 4, 5))
    scheduler.set_seeds(torch.arange(4))
    at = torch.tensor([500, 0, 750, 250])
    made = scheduler.step(2 * x, at, x, eta=1.0)
    for i, t in enumerate(at.tolist()):
        scheduler.set_seeds(torch.tensor([i]))
        one = scheduler.step(2 * x[i : i + 1], t, x[i : i + 1], eta=1.0)
        assert torch.equal(made.prev_sample[i : i + 1], one.prev_sample)
        assert torch.equal(made.pred_original_sample[i : i + 1], one.pred_original_sample)


def test_options_are_read_when_a_run_begins() -> None:
    """Pipelines change the config of a scheduler they were given."""
    scheduler = GMMDDIMScheduler(offset_scale=0)
    run(scheduler, inputs())
    scheduler.register_to_config(clip_sample=False, steps_offset=1)
    wanted = run(GMMDDIMScheduler(offset_scale=0, clip_sample=False, steps_offset=1), inputs())
    assert torch.equal(run(scheduler, inputs()), wanted)


def test_sizes_and_numbers_of_steps_may_change_between_runs() -> None:
    scheduler = mixture_ddim()
    first = run(scheduler, inputs(), generator=generator())
    run(scheduler, inputs((1, 4, 6, 6)), generator=generator())
    run(scheduler, inputs(), steps=7, generator=generator())
    for eta in torch.linspace(0.1, 1, 12).tolist():
        run(scheduler, inputs(), eta=eta, generator=generator())
    assert len(scheduler._transition._plans) <= 8
    assert len(scheduler._transition._mixtures) == 1
    assert torch.equal(first, run(scheduler, inputs(), generator=generator()))


def test_a_mixture_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gmmkernel.integrations.diffusers import transition

    built = []
    make = transition.gaussian_mixture
    monkeypatch.setattr(
        transition,
        "gaussian_mixture",
        lambda *given, **named: built.append(named["elements"]) or make(*given, **named),
    )
    scheduler = mixture_ddim()
    for eta in (0.0, 0.0, 1.0):
        run(scheduler, inputs(), eta=eta, generator=generator())
    run(scheduler, inputs((1, 1, 4, 4)), generator=generator())
    assert built == [60, 16]


def test_a_mixture_of_one_s_own() -> None:
    mixture = gaussian_mixture("rand", elements=ELEMENTS, n_components=2, scale=2.0, n_steps=STEPS, seed=4)
    config = {"variant": "rand", "n_components": 2, "offset_scale": 2.0, "mixture_seed": 4}
    wanted = run(mixture_ddim(**config), inputs(), generator=generator())
    scheduler = GMMDDIMScheduler(offset_scale=0)
    plain = run(scheduler, inputs(), generator=generator())
    scheduler.set_mixture(mixture)
    assert torch.equal(run(scheduler, inputs(), generator=generator()), wanted)
    scheduler.set_mixture(None)
    assert torch.equal(run(scheduler, inputs(), generator=generator()), plain)


def test_given_noise_takes_the_place_of_the_package_s() -> None:
    scheduler = GMMDDIMScheduler(offset_scale=0)
    scheduler.set_timesteps(STEPS)
    x, seeds = inputs(), torch.tensor([5, 6])
    for row, timestep in enumerate(scheduler.timesteps):
        scheduler.set_seeds(seeds)
        drawn = scheduler.step(x, timestep, x, eta=0.7)
        given = scheduler.step(x, timestep, x, eta=0.7, variance_noise=noise_of(row, SHAPE, seeds))
        assert torch.equal(drawn.prev_sample, given.prev_sample)
        assert torch.equal(drawn.pred_original_sample, given.pred_original_sample)


def test_thresholding_is_one_step_with_rows_of_each_sample() -> None:
    scheduler = mixture_ddim(
        thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=3.0, n_components=3
    )
    scheduler.set_timesteps(STEPS)
    seeds, x, output = torch.tensor([1, 2]), inputs(), 3 * inputs(seed=1)
    scheduler.set_seeds(seeds)
    table = rows(scheduler, 0.5, clip=None)
    tables = gaussian_mixture("ortho", elements=ELEMENTS, n_components=3, n_steps=STEPS).bind(table)
    for row, timestep in enumerate(scheduler.timesteps):
        own = dynamic_thresholding(table, row, x, output, ratio=0.8, max_value=3.0)
        wanted = gmm_step(
            x,
            output,
            own,
            row=torch.arange(2),
            step=row,
            seeds=seeds,
            mixture=tables.at(row),
            prediction="x0",
        )
        made = scheduler.step(output, timestep, x, eta=0.5)
        assert torch.equal(made.prev_sample, wanted.prev_sample)
        assert float(made.pred_original_sample.abs().max()) <= 1


def test_a_learned_variance_is_dropped_where_it_is_asked_for() -> None:
    scheduler = mixture_ddim(learned_variance=True)
    scheduler.set_timesteps(STEPS)
    scheduler.set_seeds(torch.tensor([1, 2]))
    x, doubled = inputs(), inputs((2, 6, 4, 5), seed=1)
    made = scheduler.step(doubled, 500, x, eta=1.0).prev_sample
    plain = mixture_ddim()
    plain.set_timesteps(STEPS)
    plain.set_seeds(torch.tensor([1, 2]))
    assert torch.equal(made, plain.step(doubled[:, :3], 500, x, eta=1.0).prev_sample)


class NoReading(TorchDispatchMode):
    """Fails where a value of a tensor is read by the host, or a size depends on one."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(word) for word in self.READING), f"{name} reads a value"
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_reading() -> None:
    for read in (lambda t: int(t[0]), lambda t: t.nonzero(), lambda t: bool(t.any()), lambda t: t[t[1]]):
        with pytest.raises(AssertionError, match="reads a value"), NoReading():
            read(torch.arange(3))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GMMDDIMScheduler, {}),
        (GMMDDIMScheduler, {"offset_scale": 0}),
        (GMMDDIMScheduler, {"thresholding": True}),
        (GMMFlowMatchScheduler, {}),
        (GMMFlowMatchScheduler, {"offset_scale": 0, "eta": 1.0}),
    ],
    ids=str,
)
def test_a_step_reads_nothing(kind: type, options: dict[str, Any]) -> None:
    scheduler = kind(**options)
    named: dict[str, Any] = {"eta": 1.0} if kind is GMMDDIMScheduler else {}
    x, output = inputs(), inputs(seed=1)
    scheduler.set_timesteps(STEPS)
    scheduler.step(output, scheduler.timesteps[0], x, generator=[generator(0), generator(1)], **named)
    scheduler.set_timesteps(STEPS)
    visited = list(scheduler.timesteps)
    used = [generator(0), generator(1)]
    with NoReading():
        for timestep in visited:
            x = scheduler.step(output, timestep, x, generator=used, **named).prev_sample
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=str)
def test_a_timestep_on_a_device_is_looked_up_there(shape: tuple[int, ...]) -> None:
    visited = Timesteps(torch.tensor([75, 50, 0]), "cpu", 100)
    wanted = {75: 0, 50: 1, 0: 2, 74: -1, 99: -1, 100: -1, 2**40: -1, -1: -1, -76: -1}
    for value, row in wanted.items():
        for dtype in (torch.int64, torch.int32) if abs(value) < 2**31 else (torch.int64,):
            with NoReading():
                made = visited.lookup(torch.full(shape, value, dtype=dtype))
            assert made.tolist() == [row] * max(1, *shape, 1)
    elsewhere = torch.zeros(shape, dtype=torch.int64, device="meta")
    place = visited.place(elsewhere, torch.device("meta"))
    assert isinstance(place.row, torch.Tensor)
    assert place.row.device.type == "meta"
    assert place.step is place.row
    assert place.done is None


def test_a_timestep_is_found_by_its_address_only_while_that_tells_its_value() -> None:
    visited = Timesteps(torch.tensor([75, 50, 0]), None, 100)
    steps = visited.timesteps
    assert [visited.index(t) for t in steps] == [0, 1, 2]
    assert [visited.index(t) for t in steps[1:]] == [1, 2]
    assert visited.index(steps[1:2]) == 1
    for other in (
        steps[1].clone(),
        steps[1:],
        steps.float()[1],
        steps.view(torch.int32)[2],
        torch.tensor(75),
    ):
        assert visited.index(other) is None
    element = steps[1]
    element.add_(25)
    assert visited.index(element) is None
    assert visited.place(element, torch.device("cpu")).row == 0


def test_a_run_under_inference_mode() -> None:
    scheduler = mixture_ddim()
    wanted = run(scheduler, inputs(), generator=generator())
    with torch.inference_mode():
        made = run(mixture_ddim(), inputs(), generator=generator())
    assert torch.equal(made, wanted)


def test_what_is_made_under_inference_mode_serves_gradients_too() -> None:
    scheduler = mixture_ddim()
    scheduler.set_timesteps(STEPS)
    scheduler.set_seeds(torch.tensor([1, 2]))
    x = inputs()
    with torch.inference_mode():
        wanted = scheduler.step(x, 500, x, eta=1.0).prev_sample
    made = scheduler.step(x, 500, x.clone().requires_grad_(), eta=1.0).prev_sample
    assert torch.equal(made, wanted)
    made.sum().backward()
