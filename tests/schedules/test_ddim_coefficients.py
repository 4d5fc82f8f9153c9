"""Coefficient rows of DDIM, against the equations step by step and against whole runs of diffusers.

A row is applied here in plain float64, as the docstring of `Column` reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from covering import check_all, pairs
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, noise_schedule, timesteps

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SHAPE = (2, 5)


def apply_row(row: Tensor, x: Tensor, o: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next sample, x0 and eps."""
    x0 = (row[Column.X0_SAMPLE] * x + row[Column.X0_OUTPUT] * o).clamp(
        row[Column.CLIP_MIN], row[Column.CLIP_MAX]
    )
    mean = row[Column.SAMPLE] * x + row[Column.OUTPUT] * o + row[Column.X0] * x0
    eps = row[Column.EPS_SAMPLE] * x + row[Column.EPS_OUTPUT] * o
    return mean + row[Column.SIGMA] * z, x0, eps


def ddim_step(
    a_t: float,
    a_s: float,
    x: Tensor,
    o: Tensor,
    z: Tensor,
    eta: float,
    kind: str,
    limit: float | None,
    rederive: bool,
) -> tuple[Tensor, Tensor]:
    """DDIM by the paper's equations 12 and 16, with diffusers' clipping: the next sample and x0."""
    if kind == "epsilon":
        x0, eps = (x - math.sqrt(1 - a_t) * o) / math.sqrt(a_t), o
    elif kind == "sample":
        x0, eps = o, (x - math.sqrt(a_t) * o) / math.sqrt(1 - a_t)
    else:
        x0, eps = math.sqrt(a_t) * x - math.sqrt(1 - a_t) * o, math.sqrt(a_t) * o + math.sqrt(1 - a_t) * x
    if limit is not None:
        x0 = x0.clamp(-limit, limit)
    if rederive:
        eps = (x - math.sqrt(a_t) * x0) / math.sqrt(1 - a_t)
    sigma = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    return math.sqrt(a_s) * x0 + math.sqrt(1 - a_s - sigma**2) * eps + sigma * z, x0


def draws(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@given(
    a_t=st.floats(1e-4, 0.98),
    ratio=st.floats(1e-3, 0.99),
    eta=st.floats(0, 1),
    limit=st.none() | st.floats(0.1, 3),
    rederive=st.booleans(),
)
def test_one_step(
    kind: str, a_t: float, ratio: float, eta: float, limit: float | None, rederive: bool
) -> None:
    a_s = 1 - (1 - a_t) * ratio
    schedule = NoiseSchedule(torch.tensor([a_s, a_t], dtype=torch.float64))
    row = ddim_coefficients(
        schedule,
        torch.tensor([1]),
        prev_timesteps=torch.tensor([0]),
        eta=eta,
        prediction_type=kind,
        clip_sample_range=limit,
        use_clipped_model_output=rederive,
        dtype=torch.float64,
    )[0]
    draw = draws(7)
    x, o, z = next(draw), next(draw), next(draw)
    expected, expected_x0 = ddim_step(a_t, a_s, x, o, z, eta, kind, limit, rederive)
    got, got_x0, _ = apply_row(row, x, o, z)
    torch.testing.assert_close(got_x0, expected_x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_perfect_model_gives_back_data_and_noise(kind: str) -> None:
    schedule = noise_schedule()
    steps = timesteps(7, spacing="linspace")
    rows = ddim_coefficients(schedule, steps, prediction_type=kind, dtype=torch.float64)
    draw = draws(3)
    x0, eps = next(draw), next(draw)
    for row, a in zip(rows, schedule.alphas_cumprod[steps], strict=True):
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        output = {"epsilon": eps, "sample": x0, "v_prediction": v}[kind]
        _, got_x0, got_eps = apply_row(row, x, output, torch.zeros(SHAPE))
        torch.testing.assert_close(got_x0, x0, rtol=0, atol=1e-12)
        torch.testing.assert_close(got_eps, eps, rtol=0, atol=1e-12)


def check_run(
    kind: str,
    eta: float,
    limit: float | None,
    rederive: bool,
    set_alpha_to_one: bool,
    visited: tuple[str, int, int],
) -> None:
    spacing, offset, count = visited
    schedule = noise_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler = DDIMScheduler(
        prediction_type=kind,
        clip_sample=limit is not None,
        clip_sample_range=limit or 1.0,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    scheduler.alphas_cumprod = schedule.alphas_cumprod  # the same schedule, in float64
    if not set_alpha_to_one:
        scheduler.final_alpha_cumprod = schedule.alphas_cumprod[0]
    scheduler.set_timesteps(count)
    steps = timesteps(count, spacing=spacing, steps_offset=offset)
    rows = ddim_coefficients(
        schedule,
        steps,
        # The previous step as diffusers has it.
        prev_timesteps=(steps - 1000 // count).clamp(min=-1),
        eta=eta,
        prediction_type=kind,
        clip_sample_range=limit,
        use_clipped_model_output=rederive,
        set_alpha_to_one=set_alpha_to_one,
        dtype=torch.float64,
    )
    draw = draws(count)
    x = next(draw)
    mixing = next(draw).T @ next(draw)
    for t, row in zip(steps.tolist(), rows, strict=True):
        o = torch.tanh(x @ mixing + t / 1000)
        z = next(draw)
        theirs = scheduler.step(
            o,
            t,
            x,
            eta=eta,
            use_clipped_model_output=rederive,
            variance_noise=z if eta > 0 else None,
        )
        ours, x0, _ = apply_row(row, x, o, z)
        torch.testing.assert_close(x0, theirs.pred_original_sample, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-11, atol=1e-11)
        x = ours


def test_whole_runs_of_diffusers() -> None:
    choices = pairs(
        visited=[
            ("leading", 0, 10),
            ("leading", 1, 7),
            ("trailing", 0, 16),
            ("linspace", 0, 9),
            ("leading", 0, 100),
        ],
        kind=PREDICTION_TYPES,
        eta=[0.0, 1.0],
        limit=[None, 1.0],
        rederive=[False, True],
        set_alpha_to_one=[True, False],
    )
    check_all(check_run, choices)


def test_the_previous_step_is_the_next_entry() -> None:
    schedule = noise_schedule()
    steps = timesteps(16, spacing="trailing")
    default = ddim_coefficients(schedule, steps, eta=0.5)
    previous = torch.tensor([*steps.tolist()[1:], -1])
    assert torch.equal(default, ddim_coefficients(schedule, steps, eta=0.5, prev_timesteps=previous))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_columns_that_do_not_depend_on_the_prediction(count: int) -> None:
    rows = ddim_coefficients(
        noise_schedule(), timesteps(count), eta=1.0, clip_sample_range=1.5, guidance_scale=7.5
    )
    assert rows.shape == (count, len(Column))
    assert rows.dtype == torch.float32
    assert rows[:, Column.OFFSET].tolist() == [1.0] * (count - 1) + [0.0]
    assert rows[:, Column.GUIDANCE].tolist() == [7.5] * count
    assert rows[:, Column.CLIP_MIN].tolist() == [-1.5] * count
    assert rows[:, Column.CLIP_MAX].tolist() == [1.5] * count
    assert not rows[:, Column.HISTORY_0 : Column.HISTORY_3 + 1].any()
    assert rows[-1, Column.SIGMA] == 0
    assert bool((rows[:-1, Column.SIGMA] > 0).all())
    unclipped = ddim_coefficients(noise_schedule(), timesteps(count))
    assert bool((unclipped[:, Column.CLIP_MIN] == -math.inf).all())
    assert bool((unclipped[:, Column.CLIP_MAX] == math.inf).all())
    assert unclipped[:, Column.GUIDANCE].tolist() == [1.0] * count


def test_noise_at_the_last_step_follows_the_end_of_the_schedule() -> None:
    options = {"eta": 1.0, "set_alpha_to_one": False}
    assert ddim_coefficients(noise_schedule(), timesteps(10, steps_offset=1), **options)[-1, Column.SIGMA] > 0
    assert ddim_coefficients(noise_schedule(), timesteps(10), **options)[-1, Column.SIGMA] == 0


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_rows_are_rounded_once(kind: str) -> None:
    schedule = noise_schedule("squaredcos_cap_v2")
    options = {"eta": 0.3, "prediction_type": kind, "guidance_scale": 1.1}
    double = ddim_coefficients(schedule, timesteps(63), dtype=torch.float64, **options)
    single = ddim_coefficients(schedule, timesteps(63), **options)
    assert double.dtype == torch.float64
    assert torch.equal(single, double.float())


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_zero_terminal_snr(kind: str, eta: float) -> None:
    schedule = noise_schedule("scaled_linear", rescale_betas_zero_snr=True)
    steps = timesteps(10, spacing="trailing")
    rows = ddim_coefficients(schedule, steps, eta=eta, prediction_type=kind, dtype=torch.float64)
    a_s = float(schedule.alphas_cumprod[steps[1]])
    draw = draws(5)
    x, x0, z = next(draw), next(draw), next(draw)  # x is pure noise here: eps = x, and v = -x0
    got, got_x0, _ = apply_row(rows[0], x, x0 if kind == "sample" else -x0, z)
    torch.testing.assert_close(got_x0, x0, rtol=0, atol=0)
    sigma = eta * math.sqrt(1 - a_s)
    expected = math.sqrt(a_s) * x0 + math.sqrt(max(1 - a_s - sigma**2, 0)) * x + sigma * z
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)
    if eta == 1:  # all noise is fresh: nothing of x is left, to the last bit
        assert not rows[0, [Column.SAMPLE, Column.OUTPUT]].any()


def test_epsilon_cannot_start_without_signal() -> None:
    schedule = noise_schedule(rescale_betas_zero_snr=True)
    expected = (
        r"prediction_type: expected 'sample' or 'v_prediction' at row 0 \(timestep 999\).* got 'epsilon'"
    )
    with pytest.raises(ValueError, match=expected):
        ddim_coefficients(schedule, timesteps(10, spacing="trailing"))
    assert ddim_coefficients(schedule, timesteps(10)).isfinite()[:, : Column.CLIP_MIN].all()


def test_eta_above_one_where_the_noise_allows_it() -> None:
    alphas = torch.tensor([0.9, 0.8, 0.1], dtype=torch.float64)
    share = (1 - 0.8 / 0.9) / (1 - 0.8)  # sigma^2 at eta = 1 over 1 - a_s
    largest = 1 / math.sqrt(share)
    one_step = {"prev_timesteps": torch.tensor([0]), "dtype": torch.float64}
    row = ddim_coefficients(NoiseSchedule(alphas), torch.tensor([1]), eta=largest, **one_step)[0]
    assert float(row[Column.SIGMA]) == pytest.approx(math.sqrt(0.1), rel=1e-12)
    assert float(row[Column.OUTPUT]) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match=r"eta: expected 1 - a_s - sigma\^2 >= 0 .* at row 0 \(timestep 1\)"):
        ddim_coefficients(NoiseSchedule(alphas), torch.tensor([1]), eta=largest * 1.0001, **one_step)
    with pytest.raises(ValueError, match=r"eta: .* got eta = 1.2, .* at row 0 \(timestep 2\)"):
        ddim_coefficients(NoiseSchedule(alphas), torch.tensor([2, 1]), eta=1.2)


SCHEDULE = noise_schedule(num_train_timesteps=100)
STEPS = torch.tensor([50, 20])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schedule": torch.ones(3)}, TypeError, "schedule: expected a NoiseSchedule, got Tensor"),
        (
            {"timesteps": [50, 20]},
            TypeError,
            "timesteps: expected a tensor of torch.int64 or torch.int32, got list",
        ),
        ({"timesteps": STEPS.short()}, TypeError, "timesteps: .* got torch.int16"),
        ({"timesteps": STEPS[None]}, ValueError, r"timesteps: expected shape \[S\], got \[1, 2\]"),
        ({"timesteps": STEPS[:0]}, ValueError, "timesteps: expected at least one, got none"),
        ({"timesteps": STEPS.to("meta")}, ValueError, "timesteps: expected a tensor on the CPU, got meta"),
        ({"timesteps": torch.tensor([100, 20])}, ValueError, r"in 0 \.\. 99, got 100 at row 0"),
        ({"timesteps": torch.tensor([20, -1])}, ValueError, r"in 0 \.\. 99, got -1 at row 1"),
        (
            {"timesteps": torch.tensor([50, 50])},
            ValueError,
            "strictly descending values, got 50 at row 1 after 50",
        ),
        (
            {"timesteps": torch.tensor([9, 5, 7])},
            ValueError,
            "strictly descending values, got 7 at row 2 after 5",
        ),
        (
            {"prev_timesteps": torch.tensor([20])},
            ValueError,
            r"prev_timesteps: expected shape \[2\], got \[1\]",
        ),
        ({"prev_timesteps": torch.tensor([20.0, -1.0])}, TypeError, "prev_timesteps: .* got torch.float32"),
        ({"prev_timesteps": torch.tensor([50, -1])}, ValueError, r"-1 \(.*\) to 49 at row 0 .* got 50"),
        (
            {"prev_timesteps": torch.tensor([20, -2])},
            ValueError,
            r"prev_timesteps: .* to 19 at row 1 .* got -2",
        ),
        ({"eta": -0.1}, ValueError, "eta: expected a finite number >= 0, got -0.1"),
        ({"eta": math.nan}, ValueError, "eta"),
        ({"eta": math.inf}, ValueError, "eta"),
        ({"eta": None}, TypeError, "eta: expected a finite number >= 0, got None"),
        (
            {"prediction_type": "flow"},
            ValueError,
            "prediction_type: expected one of 'epsilon', 'sample', .* got 'flow'",
        ),
        ({"clip_sample_range": 0}, ValueError, "clip_sample_range: expected a finite number > 0, got 0"),
        ({"clip_sample_range": True}, TypeError, "clip_sample_range"),
        (
            {"use_clipped_model_output": None},
            TypeError,
            "use_clipped_model_output: expected True or False, got None",
        ),
        ({"set_alpha_to_one": 1}, TypeError, "set_alpha_to_one: expected True or False, got 1"),
        ({"guidance_scale": math.inf}, ValueError, "guidance_scale"),
        ({"guidance_scale": 1e39}, ValueError, "dtype: .* got torch.float32 for GUIDANCE = 1e\\+39 at row 0"),
        (
            {"dtype": torch.bfloat16},
            TypeError,
            "dtype: expected torch.float32 or torch.float64, got torch.bfloat16",
        ),
    ],
)
def test_bad_input(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"schedule": SCHEDULE, "timesteps": STEPS, **changes}
    with pytest.raises(error, match=message):
        ddim_coefficients(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alphas", "steps", "message"),
    [
        ([1.0, 0.9], [1, 0], r"start where alphas_cumprod < 1, got row 1 \(timestep 0\)"),
        ([0.9, 0.0, 0.0], [2, 1], r"end where alphas_cumprod > 0, got row 0 \(timestep 2\)"),
    ],
)
def test_steps_without_noise_or_without_signal(alphas: list[float], steps: list[int], message: str) -> None:
    schedule = NoiseSchedule(torch.tensor(alphas, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"timesteps: expected steps that {message}"):
        ddim_coefficients(schedule, torch.tensor(steps), prediction_type="sample")
