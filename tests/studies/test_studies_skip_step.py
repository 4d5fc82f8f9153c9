"""The study of the skip-step loss, in seconds: resumable, the same again, and its table is what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from gmmkernel import TrainingColumn, noise_schedule, training_coefficients
from studies import skip_step, skip_step_report
from studies.skip_step_methods import BASELINE, METHODS, Method, optimal_scale
from studies.skip_step_report import Settings, table
from studies.statistics import difference

pytestmark = pytest.mark.slow

CaptureText = pytest.CaptureFixture[str]
SHORT = ("--training-steps", "3", "--seeds", "2", "--samples", "20", "--sampling-steps", "4")


@pytest.fixture(autouse=True)
def settings_put_back(set_threads: Callable[[int], None]) -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Method, ...]:
    """The baseline, a loss, and the same by scaling."""
    methods = tuple(method for method in METHODS if method.target is None or method.skip == 49)
    monkeypatch.setattr(skip_step, "METHODS", methods)
    monkeypatch.setattr(skip_step_report, "METHODS", methods)
    monkeypatch.setattr(skip_step_report, "SAMPLERS", ("DDIM", "DEIS"))
    monkeypatch.setattr(skip_step, "SAMPLERS", ("DDIM", "DEIS"))
    monkeypatch.setattr(skip_step, "denoising_loss", lambda unet: float(unet.conv_in.weight.abs().sum()))
    return methods


def test_a_study_that_was_stopped_gives_the_same(
    few: tuple[Method, ...], tmp_path: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert skip_step.main(["--output", str(whole), *SHORT])
    assert not skip_step.main(
        ["--output", str(stopped), "--minutes", "0", *SHORT]
    )  # one step and a checkpoint
    assert "not complete" in capsys.readouterr().out
    assert (stopped / "baseline-0" / "checkpoint.safetensors").exists()
    assert skip_step.main(["--output", str(stopped), "--report", str(tmp_path / "docs"), *SHORT])
    names = sorted(path.name for path in whole.glob("*-*.json"))
    assert len(names) == 2 * len(few)
    for name in names:
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert (tmp_path / "docs" / "skip_step_table.md").read_text() == (
        whole / "skip_step_table.md"
    ).read_text()
    assert imread(tmp_path / "docs" / "skip_step.png").shape[1] > 500

    def fail(*_: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(skip_step, "train", fail)
    capsys.readouterr()
    assert skip_step.main(["--output", str(whole), *SHORT])
    out = capsys.readouterr().out
    measured = [json.loads((whole / f"{BASELINE}-{seed}.json").read_text())["DEIS 4"] for seed in range(2)]
    assert f"| {BASELINE} | {sum(measured) / 2:.2f} ± {abs(measured[0] - measured[1]) / 2:.2f} |" in out
    with pytest.raises(SystemExit, match=r'has a study with ."training_steps": 3'):
        skip_step.main(["--output", str(whole), *SHORT[:-1], "5"])


def test_processes_share_the_seeds(few: tuple[Method, ...], tmp_path: Path, capsys: CaptureText) -> None:
    """A seed that another process has taken is left to it."""
    with skip_step.taken(tmp_path / "seed-0.lock") as mine:
        assert mine
        assert not skip_step.main(["--output", str(tmp_path), *SHORT])
        assert {path.name for path in tmp_path.glob("*-*.json")} == {
            skip_step.result_file(tmp_path, method, 1).name for method in few
        }
    assert "not complete" in capsys.readouterr().out
    assert skip_step.main(["--output", str(tmp_path), *SHORT])


def test_scales_are_the_minimisers() -> None:
    """By a least-squares fit to the two squares, for made-up noise of known mean."""
    schedule = noise_schedule()
    for method in METHODS:
        scale = optimal_scale(schedule, method).double()
        assert scale.shape == (1000,)
        if method.target is None:
            assert bool((scale == 1).all())
            continue
        rows = training_coefficients(
            schedule, skip=method.skip, tau=0.99, target=method.target, dtype=torch.float64
        )
        mean = 0.8  # E[e1 | x_t], the output that DDPM's loss wants

        def slope(at: torch.Tensor, rows: torch.Tensor = rows, mean: float = mean) -> torch.Tensor:
            column = {c: rows[:, c] for c in TrainingColumn}
            second = column[TrainingColumn.SKIP_NOISE] * mean - column[TrainingColumn.SKIP_SCALE] * at
            return (
                column[TrainingColumn.WEIGHT] * (mean - at)
                + column[TrainingColumn.SKIP_WEIGHT] * column[TrainingColumn.SKIP_SCALE] * second
            )

        assert float(slope(scale * mean).abs().max()) < 1e-6
        assert bool((scale[: method.skip] == 1).all())
        if method.target == "independent":
            assert bool((scale[method.skip :] < 1).all())


def test_differences_are_of_pairs_and_say_what_could_have_been_seen() -> None:
    results = {
        (name, seed): {"DDIM 4": value}
        for name, values in {BASELINE: (5.0, 9.0, 7.0), "other": (5.5, 10.0)}.items()
        for seed, value in enumerate(values)
    }
    found = difference(results, "other", BASELINE, "DDIM 4")
    assert found is not None
    assert found.mean == pytest.approx(0.75)
    assert found.error == pytest.approx(0.25)
    assert found.visible == pytest.approx(
        (12.7062 + 1.37638) * 0.25, rel=1e-4
    )  # Student's t of one, from a table
    del results["other", 1]
    (one,) = [difference(results, "other", BASELINE, "DDIM 4")]
    assert one is not None
    assert (one.mean, math.isnan(one.error), math.isnan(one.visible)) == (0.5, True, True)
    assert difference(results, "third", BASELINE, "DDIM 4") is None


def test_a_table_of_nothing_has_every_line() -> None:
    text = table(Settings(3, 2, 20, (4, 5)), {})
    for method in METHODS:
        assert f"\n| {method.name} |  |  |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "1"), "--seeds: expected at least 2, got 1"),
        (("--samples", "25"), "--samples: expected a multiple of 10, at least 20, got 25"),
        (("--sampling-steps", "10", "3"), "--sampling-steps: expected at least 4, got 3"),
        (("--training-steps", "0"), "--training-steps: expected at least 1, got 0"),
    ],
)
def test_bad_options(words: tuple[str, ...], message: str, capsys: CaptureText, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        skip_step.main(["--output", str(tmp_path / "none"), *words])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
