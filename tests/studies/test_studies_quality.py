"""The study of quality, in seconds: resumable, the same again, and its tables are what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from studies.folder import taken
from studies.quality import __main__ as quality
from studies.quality.choices import (
    ALTERNATIVES,
    DDIM,
    ISOTROPIC,
    RULES,
    SCALES,
    Choice,
    Losses,
    lines,
    make_sampler,
)
from studies.quality.closed_form import ClosedForm
from studies.quality.compare import Outcome, best_alternative, outcome, read_all
from studies.quality.networks import PATCH, Digits, Patches, PatchesUNet, load_patches
from studies.quality.report import details
from studies.quality.settings import DATA, Cell, Found, Settings

pytestmark = pytest.mark.slow

CaptureText = pytest.CaptureFixture[str]
SHORT = ("--seeds", "2", "--samples", "40", "--steps", "3", "--eta", "0", "0.5", "--patch-steps", "2")
SETTINGS = Settings(40, 2, 1, (3,), (0.0, 0.5))


@pytest.fixture(autouse=True)
def settings_put_back(set_threads: Callable[[int], None]) -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed-form data with few points to compare with."""
    monkeypatch.setattr("studies.quality.closed_form.REFERENCE", 500)


def results_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-*.json")}


@pytest.mark.usefixtures("small")
def test_a_study_that_was_stopped_gives_the_same(
    tmp_path: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped, docs = tmp_path / "whole", tmp_path / "stopped", tmp_path / "docs"
    tasks = ["--tasks", "points-2"]
    assert quality.main(["--output", str(whole), *tasks, *SHORT])
    assert len(results_of(whole)) == 4 * (1 + 2)
    assert not quality.main(["--output", str(stopped), "--minutes", "0", *tasks, *SHORT])
    assert "not complete" in capsys.readouterr().out
    assert results_of(stopped) == {}
    with taken(stopped / Cell("points-2", 3, 0.5).file("lock")) as mine:
        assert mine
        assert not quality.main(["--output", str(stopped), *tasks, *SHORT])
        left = {name for name in results_of(whole) if "eta0.5" in name}
        assert len(left) == 3
        assert set(results_of(stopped)) == set(results_of(whole)) - left
    assert quality.main(["--output", str(stopped), "--report", str(docs), *tasks, *SHORT])
    assert results_of(stopped) == results_of(whole)
    for name in ("quality_table.md", "quality/points-2.md"):
        assert (docs / name).read_text() == (whole / name).read_text()
    for name in ("quality.png", "quality_scales.png"):
        assert imread(docs / name).shape[1] > 200

    def fail(*_: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(quality, "study_cell", fail)
    assert quality.main(["--output", str(whole), *tasks, *SHORT])
    with pytest.raises(SystemExit, match=r'has a study with ."samples": 40'):
        quality.main(["--output", str(whole), *tasks, *SHORT, "--samples", "50"])


@pytest.mark.usefixtures("small")
def test_what_is_reported_is_what_was_chosen_on_other_seeds(tmp_path: Path) -> None:
    quality.main(["--output", str(tmp_path), "--tasks", "gaussians-64", *SHORT])
    cell = Cell("gaussians-64", 3, 0.5)
    found = read_all(tmp_path, SETTINGS, ["gaussians-64"])[cell]
    task = ClosedForm("gaussians", 64)
    losses = Losses(task, 40)
    for line in lines(task, cell):
        if len(line.candidates) > 1:
            tuned = found.tuning[line.name]
            best = tuned.index(min(tuned))
            assert found.levels[line.name] == line.candidates[best].level
            assert len(set(tuned)) == len(tuned)
            assert tuned[best] not in [found.distances[line.name, seed]["sliced W2"] for seed in range(2)]
        else:
            best = 0
        sampler = make_sampler(task, cell, line.candidates[best], 1, losses)
        drawn = sampler.sample(task.predict, torch.arange(40) + 2_000_000, (64,), progress=False).sample
        assert task.distances(drawn) == found.distances[line.name, 1], line.name
        if line.has_control:
            assert (f"{line.name}, control", 1) in found.distances
    assert found.distances[DATA, 0] != found.distances[DATA, 1]
    assert {line.name for line in ALTERNATIVES} <= {name for name, _ in found.distances}


def test_networks_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--output", str(tmp_path), "--tasks", "digits", "patches", "--steps", "2", "--eta", "0"]
    monkeypatch.setattr("studies.quality.choices.SCALES", SCALES[:1])
    assert quality.main(["--seeds", "2", "--samples", "20", "--patch-steps", "2", *words])
    for name, distance in (("digits", "digit-FID"), ("patches", "Frechet")):
        content = json.loads((tmp_path / f"{name}-2-eta0-1.json").read_text())
        assert set(content["distances"][DDIM]) == {"sliced W2", "MMD", "Frechet"} | {distance}
        assert content["distances"]["ORTHO"] != content["distances"]["ORTHO, control"]
        assert "EXACT" not in content["distances"]  # DDIM, at eta = 0


def test_patches_are_of_different_parts_and_the_model_takes_them(tmp_path: Path) -> None:
    trained, held_out = load_patches()
    assert trained.shape[1:] == held_out.shape[1:] == (1, PATCH, PATCH)
    assert len(trained) > 2 * len(held_out) > 10_000
    assert -1 <= float(trained.min()) < -0.9 < 0.9 < float(trained.max()) <= 1
    chosen = held_out[::500].flatten(1)
    assert float(torch.cdist(chosen, trained.flatten(1)).min()) > 0
    unet = PatchesUNet()
    torch.nn.init.normal_(unet.conv_out.weight)
    at_once = unet(held_out[:4], torch.tensor([7] * 4))
    assert at_once.shape == (4, 1, PATCH, PATCH)
    moved = held_out[:4].roll(2, dims=3)
    assert not torch.equal(unet(moved, torch.tensor([7] * 4)), at_once)
    task = Patches(tmp_path, 2, float("inf"), "cpu")
    assert torch.equal(
        task.predict(held_out[:4], torch.tensor([7] * 4)),
        Patches(tmp_path, 2, 0, "cpu").predict(held_out[:4], torch.tensor([7] * 4)),
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(quality.OutOfTimeError):
        Patches(tmp_path / "other", 3, 0, "cpu")
    assert len(task.held_out(20, 1).unique(dim=0)) > 10
    assert (
        float(
            torch.cdist(task.data(5, 1).flatten(1).double(), trained.flatten(1).double()).min(1).values.max()
        )
        < 1e-5
    )


def test_digits_that_are_held_out_come_in_the_order_asked_for() -> None:
    task = Digits("cpu")
    images = task.held_out(400, 1)
    assert images.shape == (400, 1, 8, 8)
    # Told the right class, the model predicts better than told the next one.
    timestep, noise = (
        torch.full((310,), 400),
        torch.randn(310, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    noisy = 0.44 * images[:310] + 0.898 * noise
    with torch.no_grad():
        right = (task.predict(noisy, timestep) - noise).square().mean()
        wrong = (task.predict(noisy.roll(1, 0), timestep) - noise.roll(1, 0)).square().mean()
    assert float(right) < 0.9 * float(wrong)


def test_data_is_what_samples_are_compared_with() -> None:
    task = Digits("cpu")
    drawn = task.data(2000, 1)
    assert drawn.shape == (2000, 1, 8, 8)
    assert not torch.equal(drawn, task.data(2000, 2))
    assert 0 < task.distance(drawn) < 0.8


def make_found(**values: tuple[float, ...]) -> Found:
    return Found(
        {
            (name.replace("_", " "), seed): {"sliced W2": value}
            for name, of_line in values.items()
            for seed, value in enumerate(of_line)
        },
        {},
        {},
    )


def test_outcomes_count_what_is_clear() -> None:
    alternatives = [line.name for line in ALTERNATIVES]
    better = make_found(DDIM=(2.0, 3.0, 4.0), ORTHO=(1.0, 2.1, 2.9), other=(2.5, 2.9, 4.1))
    worse = make_found(DDIM=(2.0, 3.0, 4.0), ORTHO=(2.5, 3.6, 4.5), other=(9.0, 9.0, 9.0))
    for found in (better, worse):
        for number, name in enumerate(alternatives):
            found.distances.update({(name, seed): {"sliced W2": 1.0 + number + seed} for seed in range(3)})
    results = {
        Cell("points-2", 5, 0.0): better,
        Cell("points-2", 10, 0.0): worse,
        Cell("points-2", 5, 1.0): worse,
    }
    assert outcome(results, "eta 0", "ORTHO", DDIM) == Outcome(1, 0, 1)
    assert outcome(results, "eta 0", "other", DDIM) == Outcome(0, 1, 1)
    assert best_alternative(better, "sliced W2") == alternatives[0]
    assert outcome(results, "eta 0", "ORTHO", None) == Outcome(0, 1, 1)
    assert outcome(results, "eta 0.2", "ORTHO", DDIM) == Outcome(0, 0, 0)
    assert str(Outcome(1, 2, 3)) == "1 / 2 / 3"


def test_details_show_differences_levels_and_alternatives() -> None:
    found = make_found(DDIM=(2.0, 4.0), ORTHO=(1.5, 3.5), EXACT=(2.5, 4.6))
    found.distances.update({(DATA, 0): {"sliced W2": 0.25}, (DATA, 1): {"sliced W2": 0.25}})
    found.distances.update({(ALTERNATIVES[0].name, seed): {"sliced W2": 1.0} for seed in range(2)})
    found.levels.update({"ORTHO": 0.1, "EXACT": 0.8, ALTERNATIVES[0].name: 0.3})
    results = {cell: found if cell.eta == 0.5 else Found({}, {}, {}) for cell in SETTINGS.cells("points-2")}
    rows = details(results, SETTINGS, "points-2").split("\n")
    assert f"| {DATA} |  | 0.25 ± 0.00 |  |" in rows
    assert "| DDIM |  | 3.00 ± 1.00 |  |" in rows
    assert "| ORTHO |  | -0.50 ± 0.00 (0.1) |  |" in rows
    assert "| EXACT |  | +0.550 ± 0.050 (0.8) |  |" in rows


def test_choices_are_what_the_issue_names() -> None:
    task = ClosedForm("points", 2)
    names = {eta: [line.name for line in lines(task, Cell("points-2", 5, eta))] for eta in (0.0, 0.2)}
    for kind in ("RAND", "ORTHO", "VUB", "VUB*", "EXACT"):
        assert kind in names[0.2]
    assert not {"VUB", "EXACT"} & set(names[0.0])
    assert "ORTHO, K = 64" not in names[0.2]  # more than D
    assert all(len(line.candidates) in (1, len(SCALES)) for line in lines(task, Cell("points-2", 5, 0.2)))
    assert Choice("ORTHO", 0.1) in lines(task, Cell("points-2", 5, 0.0))[4].candidates
    quadratic = [line.name for line in lines(task, Cell("points-2", 5, 0.0, "quadratic"))]
    assert quadratic == [DDIM, "ORTHO", *(f"ORTHO, by {rule}" for rule in RULES), ISOTROPIC] + [
        f"{ISOTROPIC}, by {rule}" for rule in RULES
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "1"), "--seeds: expected at least 2, got 1"),
        (("--tuning-seeds", "0"), "--tuning-seeds: expected at least 1, got 0"),
        (("--samples", "25"), "--samples: expected a multiple of 10, got 25"),
        (("--samples", "10"), "--samples: expected at least 20, got 10"),
        (("--steps", "5", "30"), "--steps: expected 2 to 29, which all timesteps allow, got [5, 30]"),
        (("--eta", "1.5"), "--eta: expected numbers from 0 to 1, got [1.5]"),
        pytest.param(
            ("--device", "cuda"),
            "--device: expected cuda to be there, got no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there to use"),
        ),
        (("--tasks", "faces"), "invalid choice: 'faces'"),
    ],
)
def test_bad_options(words: tuple[str, ...], message: str, capsys: CaptureText, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--output", str(tmp_path / "none"), *words])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
