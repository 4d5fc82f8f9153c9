"""Training rows: their equations, what they are at the ends of a schedule, and bad input."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
import torch

from gmmkernel import NoiseSchedule, TrainingColumn, noise_schedule, training_coefficients
from gmmkernel.schedules import TARGETS

SCHEDULE = noise_schedule()


@pytest.mark.parametrize("skip", [1, 9, 49, 999])
@pytest.mark.parametrize("target", TARGETS)
def test_columns_are_those_of_the_equations(skip: int, target: str) -> None:
    rows = training_coefficients(SCHEDULE, skip=skip, tau=0.75, target=target, dtype=torch.float64)
    assert rows.shape == (1000, len(TrainingColumn))
    alphas = [Decimal(a) for a in SCHEDULE.alphas_cumprod.tolist()]  # to 28 digits
    for t in (0, skip - 1, skip, 999):
        row = {column.name: float(rows[t, column]) for column in TrainingColumn}
        a = alphas[t]
        expected = dict.fromkeys(row, 0.0)
        expected |= {"SIGNAL": a.sqrt(), "NOISE": (1 - a).sqrt(), "EPS_OUTPUT": 1.0, "WEIGHT": 1.0}
        if t >= skip:
            ratio = a / alphas[t - skip]
            kappa = ((1 - ratio) / (1 - a)).sqrt()
            of_target = {
                "independent": (((1 - ratio) / ratio).sqrt(), 0.0, 1.0),
                "same": (((1 - ratio) / ratio).sqrt(), 1.0, 0.0),
                "consistent": (kappa, kappa, (1 - kappa**2).sqrt()),
            }[target]
            names = ("SKIP_SCALE", "SKIP_NOISE", "SKIP_FRESH")
            expected |= {"WEIGHT": 0.75, "SKIP_WEIGHT": 0.25, **dict(zip(names, of_target, strict=True))}
        assert row == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-11, abs=0
        )


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_predictions_become_noise(prediction_type: str) -> None:
    rows = training_coefficients(SCHEDULE, prediction_type=prediction_type, dtype=torch.float64)
    x0, e1 = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)
    for row in rows[[0, 10, 999]]:
        signal, noise = row[TrainingColumn.SIGNAL], row[TrainingColumn.NOISE]
        predicted = {"epsilon": e1, "sample": x0, "v_prediction": signal * e1 - noise * x0}[prediction_type]
        x_t = signal * x0 + noise * e1
        eps = row[TrainingColumn.EPS_OUTPUT] * predicted + row[TrainingColumn.EPS_SAMPLE] * x_t
        torch.testing.assert_close(eps, e1, rtol=1e-10, atol=0)


def test_rounding_is_the_last_thing() -> None:
    wide = training_coefficients(SCHEDULE, target="consistent", dtype=torch.float64)
    narrow = training_coefficients(SCHEDULE, target="consistent")
    assert torch.equal(narrow, wide.float())


def test_with_all_weight_on_the_first_term_there_is_no_other() -> None:
    rows = training_coefficients(SCHEDULE, tau=1)
    assert not rows[:, TrainingColumn.SKIP_WEIGHT :].any()
    assert bool((rows[:, TrainingColumn.WEIGHT] == 1).all())


def test_the_ends_of_a_schedule() -> None:
    no_data = noise_schedule("scaled_linear", rescale_betas_zero_snr=True)
    assert float(no_data.alphas_cumprod[-1]) == 0
    for target in ("independent", "same"):
        with pytest.raises(
            ValueError, match=r"got SKIP_SCALE = inf at timestep 999, where alphas_cumprod is 0\.0"
        ):
            training_coefficients(no_data, target=target)
    last = training_coefficients(no_data, target="consistent", dtype=torch.float64)[-1]
    assert float(last[TrainingColumn.SKIP_SCALE]) == 1
    assert float(last[TrainingColumn.SKIP_FRESH]) == 0
    assert training_coefficients(no_data, tau=1.0, prediction_type="v_prediction").isfinite().all()
    clean = NoiseSchedule(torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="got SKIP_SCALE = nan at timestep 1, where alphas_cumprod is 1"):
        training_coefficients(clean, skip=1, target="consistent")
    with pytest.raises(ValueError, match="got EPS_SAMPLE = inf at timestep 0, where alphas_cumprod is 1"):
        training_coefficients(clean, skip=1, prediction_type="sample")
    assert training_coefficients(clean, skip=1).isfinite().all()
    tiny = NoiseSchedule(torch.tensor([0.5, 1e-80], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"finite in torch\.float32, got SKIP_SCALE = inf at timestep 1"):
        training_coefficients(tiny, skip=1)
    assert training_coefficients(tiny, skip=1, dtype=torch.float64).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": "linear"}, TypeError, "schedule: expected a NoiseSchedule, got str"),
        ({"skip": 0}, ValueError, "skip: expected an integer >= 1, got 0"),
        ({"skip": 1000}, ValueError, "skip: expected 1 to 999, less than the schedule's timesteps, got 1000"),
        ({"skip": 9.0}, TypeError, r"skip: expected an integer >= 1, got 9\.0"),
        ({"skip": True}, TypeError, "skip: expected an integer >= 1, got True"),
        ({"tau": -0.1}, ValueError, r"tau: expected a number from 0 to 1, got -0\.1"),
        ({"tau": 1.5}, ValueError, r"tau: expected a number from 0 to 1, got 1\.5"),
        ({"tau": math.nan}, ValueError, "tau: expected a number from 0 to 1, got nan"),
        ({"tau": "all"}, TypeError, "tau: expected a number from 0 to 1, got 'all'"),
        (
            {"target": "other"},
            ValueError,
            "target: expected one of 'independent', 'same', 'consistent', got 'other'",
        ),
        ({"prediction_type": "flow"}, ValueError, "prediction_type: expected one of 'epsilon'"),
        (
            {"dtype": torch.float16},
            TypeError,
            r"dtype: expected torch\.float32 or torch\.float64, got torch\.float16",
        ),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"schedule": SCHEDULE} | arguments
    with pytest.raises(error, match=message):
        training_coefficients(given.pop("schedule"), **given)
