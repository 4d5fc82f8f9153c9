"""Timesteps outside of the schedule, steps that cannot be done, and runs of one step: as diffusers' DDIM has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from schedulers_beside import SHAPE, inputs, mixture_ddim, noise_of, relative
from torch import Tensor

from gmmkernel import NoiseSchedule, ddim_coefficients, gaussian_mixture, gmm_step
from gmmkernel.integrations.diffusers import GMMDDIMScheduler

FLOAT32 = 1e-4
X, OUTPUT = inputs(), inputs(seed=1)
SEEDS = torch.tensor([5, 6])
NO_DATA = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def both(steps: int, **options: Any) -> tuple[GMMDDIMScheduler, DDIMScheduler]:
    made = GMMDDIMScheduler(offset_scale=0, **options), DDIMScheduler(**options)
    for scheduler in made:
        scheduler.set_timesteps(steps)
    return made


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_any_timestep_is_stepped_as_diffusers_does(spacing: str, prediction_type: str) -> None:
    ours, theirs = both(
        7, timestep_spacing=spacing, prediction_type=prediction_type, thresholding=spacing == "linspace"
    )
    for timestep in (999, 998, 501, 143, 142, 141, 1, 0):
        wanted = theirs.step(OUTPUT, timestep, X, eta=0.7, variance_noise=X)
        for given in (timestep, torch.tensor(timestep), torch.tensor([timestep], dtype=torch.int32)):
            made = ours.step(OUTPUT, given, X, eta=0.7, variance_noise=X)
            assert relative(made.prev_sample, wanted.prev_sample) < FLOAT32
            assert relative(made.pred_original_sample, wanted.pred_original_sample) < FLOAT32


def test_timesteps_of_each_sample_some_of_them_outside() -> None:
    scheduler = mixture_ddim(n_components=3, thresholding=True, sample_max_value=3.0)
    scheduler.set_timesteps(4)
    x = inputs((4, 3, 4, 5))
    at = [500, 501, 0, 999]
    scheduler.set_seeds(torch.arange(4))
    made = scheduler.step(2 * x, torch.tensor(at), x, eta=1.0).prev_sample
    for i, timestep in enumerate(at):
        scheduler.set_seeds(torch.tensor([i]))
        one = scheduler.step(2 * x[i : i + 1], timestep, x[i : i + 1], eta=1.0).prev_sample
        assert torch.equal(made[i : i + 1], one)


@pytest.mark.parametrize("variant", ["ortho", "ortho-vub", "exact"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_timestep_outside_has_the_mixture_of_the_next_one(variant: str, shared: bool) -> None:
    """And noise of a step of its own, which comes after those of the schedule."""
    options: dict[str, Any] = {"rho": 0.8} if variant == "exact" else {"offset_scale": 0.5}
    scheduler = GMMDDIMScheduler(variant=variant, n_components=3, shared_mixture=shared, **options)
    scheduler.set_timesteps(4)
    scheduler.set_seeds(SEEDS)
    schedule = NoiseSchedule(scheduler.alphas_cumprod.double())
    for timestep, row in ((999, 0), (700, 1), (260, 2)):
        made = scheduler.step(OUTPUT, timestep, X, eta=1.0).prev_sample
        # A second row, so that the first is not the last of its run.
        pair = torch.tensor([timestep, timestep - 1])
        rows = ddim_coefficients(schedule, pair, prev_timesteps=pair - 250, eta=1.0, clip_sample_range=1.0)[
            :1
        ]
        mixture = gaussian_mixture(
            variant,
            elements=60,
            n_components=3,
            n_steps=1 if shared else 4,
            scale=0.5 if variant != "exact" else 1.0,
            rho=options.get("rho"),
        )
        table = rows if shared else torch.cat([rows] * 4)
        table = mixture.scaled(table)
        tables = mixture.bind(table).at(row)
        wanted = gmm_step(
            X, OUTPUT, table[:1], row=0, step=4 + 999 - timestep, seeds=SEEDS, mixture=tables
        ).prev_sample
        assert torch.equal(made, wanted)


def test_the_noise_of_a_timestep_outside_is_no_other_s() -> None:
    scheduler = GMMDDIMScheduler()
    scheduler.set_timesteps(4)
    used = torch.Generator().manual_seed(1)
    made = []
    for timestep in (999, 998, 997, 750, 500):
        step = scheduler.step(0 * X, timestep, 0 * X, eta=1.0, generator=used).prev_sample
        made.append(step.flatten() / step.std())
    correlation = torch.corrcoef(torch.stack(made)) - torch.eye(5)
    assert float(correlation.abs().max()) < 0.4  # 120 independent pairs


@pytest.mark.parametrize("offset_scale", [0.0, 1.0])
def test_no_data_left_is_an_error_of_its_own_step_alone(offset_scale: float) -> None:
    """Image to image starts later; diffusers' first step gives numbers that are not finite."""
    ours, theirs = both(5, **NO_DATA)
    with pytest.raises(ValueError, match=r"alphas_cumprod is 0 and epsilon does not determine the data"):
        ours.step(OUTPUT, ours.timesteps[0], X)
    x = X
    for timestep in theirs.timesteps[1:]:
        made = ours.step(OUTPUT, timestep, x).prev_sample
        x = theirs.step(OUTPUT, timestep, x).prev_sample
        assert relative(made, x) < FLOAT32
    mixed = GMMDDIMScheduler(offset_scale=offset_scale, **NO_DATA)
    mixed.set_timesteps(5)
    for timestep in (999, torch.tensor([999, 799])):
        with pytest.raises(ValueError, match=r"timestep 999\), where alphas_cumprod is 0"):
            mixed.step(OUTPUT, timestep, X, eta=0.5)
    assert bool(mixed.step(OUTPUT, torch.tensor([799, 599]), X, eta=0.5).prev_sample.isfinite().all())


def test_no_data_left_is_nan_where_the_timestep_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = both(5, **NO_DATA)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # looked up as on a device
    made = ours.step(OUTPUT, torch.tensor([999, 799]), X).prev_sample
    assert bool(made[0].isnan().all())
    assert torch.equal(made[1:], ours.step(OUTPUT, 799, X).prev_sample[1:])


def test_a_model_of_the_sample_needs_no_data_left() -> None:
    for prediction_type in ("sample", "v_prediction"):
        ours, theirs = both(5, prediction_type=prediction_type, **NO_DATA)
        made, wanted = (s.step(OUTPUT, s.timesteps[0], X).prev_sample for s in (ours, theirs))
        assert relative(made, wanted) < FLOAT32


def test_betas_that_end_the_schedule_early() -> None:
    """All that is left of the schedule can be stepped."""
    ours, theirs = both(50, beta_start=0.1, beta_end=2.0)
    wanted = theirs.step(OUTPUT, 0, X).prev_sample
    assert relative(ours.step(OUTPUT, 0, X).prev_sample, wanted) < FLOAT32
    with pytest.raises(ValueError, match="alphas_cumprod"):
        ours.step(OUTPUT, 980, X)


@pytest.fixture
def warnings() -> Iterator[Callable[[], str]]:
    """Return what diffusers' logger has said."""
    log = diffusers.logging.get_logger("gmmkernel.integrations.diffusers.steps")
    said: list[str] = []

    class Handler(diffusers.logging.logging.Handler):
        def emit(self, record: Any) -> None:
            said.append(record.getMessage())

    handler = Handler()
    log.addHandler(handler)
    yield lambda: " ".join(said)
    log.removeHandler(handler)


@pytest.mark.parametrize(
    ("options", "first", "warned"),
    [
        ({"timestep_spacing": "leading"}, 0, True),
        ({"timestep_spacing": "leading", "steps_offset": 1}, 1, True),
        ({"timestep_spacing": "linspace", "steps_offset": 1}, 0, True),
        ({"timestep_spacing": "trailing"}, 999, False),
        ({"num_train_timesteps": 1}, 0, False),
    ],
    ids=str,
)
def test_a_run_of_one_step(
    options: dict[str, Any], first: int, warned: bool, warnings: Callable[[], str]
) -> None:
    ours, theirs = both(1, **options)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == [first]
    assert ("visits timestep" in warnings()) == warned
    made, wanted = (s.step(OUTPUT, s.timesteps[0], X).prev_sample for s in (ours, theirs))
    assert relative(made, wanted) < FLOAT32
    if options.get("steps_offset"):
        return
    with pytest.raises(ValueError, match="steps_offset: expected an offset that keeps every timestep in"):
        GMMDDIMScheduler(**{**options, "timestep_spacing": "leading", "steps_offset": 1000}).set_timesteps(1)


def test_a_mixture_of_one_step_has_the_offsets_of_a_last_one() -> None:
    """None: its transition ends at the data."""
    made: list[Tensor] = []
    for scale in (0.0, 1.0):
        scheduler = GMMDDIMScheduler(offset_scale=scale, timestep_spacing="trailing")
        scheduler.set_timesteps(1)
        scheduler.set_seeds(SEEDS)
        made.append(scheduler.step(OUTPUT, 999, X).prev_sample)
    assert torch.equal(*made)
    assert noise_of(0, SHAPE).shape == X.shape
