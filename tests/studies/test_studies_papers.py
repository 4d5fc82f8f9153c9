"""The papers' experiments as data: their cells and controls, the published figures, the estimate, the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import save

from gmmkernel.backends.constants import Column
from gmmkernel.pipelines import load_pipeline
from studies.papers.estimate import Speed, describe, estimate
from studies.papers.experiments import (
    COMPONENTS,
    EXPERIMENTS,
    METHODS,
    MODELS,
    SCALED,
    SIMPLE,
    SKIP,
    VARIANTS,
    Cell,
    Figure,
)
from studies.papers.report import FID, SCORE, full_size, mixture_rows, training_rows, write_report
from studies.papers.run import fingerprint

CELEBAHQ, IMAGENET, CIFAR = (
    EXPERIMENTS[name] for name in ("ddim-gmm-celebahq", "ddim-gmm-imagenet", "s2dm-cifar10")
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save("ldm", folder)
    return folder


def test_cells_are_those_of_the_papers() -> None:
    expected = {
        "ddim-gmm-celebahq": (532, 5000),
        "ddim-gmm-ffhq": (532, 10000),
        "ddim-gmm-imagenet": (266, 50000),
        "s2dm-cifar10": (84, 50000),
        "s2dm-celeba": (84, 50000),
    }
    assert {name: (len(each.cells()), each.count) for name, each in EXPERIMENTS.items()} == expected
    for experiment in EXPERIMENTS.values():
        cells = experiment.cells()
        assert len({cell.name for cell in cells}) == len(cells)
        for steps in experiment.steps:
            of_models = MODELS if experiment.recipe else (None,)
            assert {cell.model for cell in cells if cell == Cell(steps, "dpm-solver", model=cell.model)} == {
                *of_models
            }
        mixtures = [cell for cell in cells if cell.variant is not None and not cell.control]
        controls = [cell for cell in cells if cell.control]
        assert [dataclasses.replace(cell, control=True) for cell in mixtures] == controls
        assert len(mixtures) == len(experiment.steps) * len(experiment.eta) * len(experiment.scales) * 4
    assert {(cell.method, cell.model) for cell in CIFAR.cells()} == {(m, n) for m in METHODS for n in MODELS}


def test_mixtures_are_those_of_the_paper() -> None:
    for variant, (_, shared) in VARIANTS.items():
        mixture = Cell(3, variant=variant, scale=0.1).mixture(48)
        assert list(mixture.offsets.shape) == [1 if shared else 3, COMPONENTS, 48]
        assert mixture.scale == 0.1
        assert mixture.variant == VARIANTS[variant][0]
    assert (
        Cell(10, eta=0.2, variant="VUB*", scale=0.01, control=True).name
        == "10-eta0.2-vub-shared-0.01-control"
    )
    assert Cell(10, "plms", model=SKIP).name == "skip-10-plms"
    assert (Cell(10, "plms", model=SKIP).calls, Cell(10, "deis", model=SKIP).calls) == (11, 10)


def test_published_figures() -> None:
    """Those of ten steps as they are quoted elsewhere, and that no line of a table is missing."""
    quoted = {
        ("ddim-gmm-imagenet", 0.0): (10.15, 6.90, 6.90, 6.94, 6.72),
        ("ddim-gmm-imagenet", 0.2): (10.35, 8.52, 8.54, 7.06, 6.75),
        ("ddim-gmm-imagenet", 1.0): (17.50, 15.95, 15.94, 12.38, 12.34),
        ("ddim-gmm-celebahq", 0.0): (32.95, 28.01, 27.97, 27.94, 27.84),
        ("ddim-gmm-ffhq", 0.0): (28.73, 26.55, 26.46, 26.46, 27.18),
    }
    lines = ("DDIM", *VARIANTS)
    for (name, eta), values in quoted.items():
        published = EXPERIMENTS[name].published or {}
        assert tuple(published[10, eta, line].fid for line in lines) == values
    shared = {  # the paper's table 3: VUB and VUB* at eta 0, then at eta 1
        ("ddim-gmm-celebahq", 10): (27.94, 27.84, 60.65, 61.15),
        ("ddim-gmm-celebahq", 100): (11.44, 11.42, 15.60, 15.94),
        ("ddim-gmm-ffhq", 10): (26.46, 27.18, 69.25, 67.72),
        ("ddim-gmm-ffhq", 100): (11.12, 11.24, 11.44, 11.38),
    }
    for (name, steps), values in shared.items():
        published = EXPERIMENTS[name].published or {}
        found = [published[steps, eta, line].fid for eta in (0.0, 1.0) for line in ("VUB", "VUB*")]
        assert tuple(found) == values
    for name in ("ddim-gmm-celebahq", "ddim-gmm-ffhq", "ddim-gmm-imagenet"):
        experiment = EXPERIMENTS[name]
        known = set(experiment.published or {}) - {(steps, None, "DPM-Solver") for steps in experiment.steps}
        assert known == {
            (steps, eta, line) for steps in experiment.steps for eta in experiment.eta for line in lines
        }
    assert (IMAGENET.published or {})[10, 0.5, "VUB"] == Figure(7.59, 211.93)
    assert (IMAGENET.published or {})[10, None, "DPM-Solver"] == Figure(9.75, 225.68)
    assert (CELEBAHQ.published or {})[100, 0.0, "VUB*"] == Figure(11.42, None, 0.1)
    assert CIFAR.published is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_control_adds_what_the_mixture_adds(variant: str, pipelines: Path) -> None:
    pipeline = load_pipeline(pipelines / "ldm")
    elements, scale = 3 * 8 * 8, 2.0
    for eta in (0.0, 0.5):
        cell = Cell(4, eta=eta, variant=variant, scale=scale)
        rows = pipeline.sampler(4, method="ddim", eta=eta).coefficients.double()
        control = dataclasses.replace(cell, control=True).sampler(pipeline)
        assert control.tables is None
        sigma, weight = rows[:, Column.SIGMA], rows[:, Column.OFFSET]
        if eta == 0:
            share = 1 / elements if variant == "RAND" else (COMPONENTS - 1) / (COMPONENTS * elements)
            expected = weight * scale * share**0.5
            atol = 3e-3 if variant == "RAND" else 1e-6  # whose offsets are not quite centred
        else:
            expected, atol = _deviation(cell.mixture(elements), sigma, weight), 1e-6
        torch.testing.assert_close(
            control.coefficients[:, Column.SIGMA].double(), expected, rtol=0, atol=atol
        )
        others = [column for column in range(rows.shape[1]) if column != Column.SIGMA]
        assert torch.equal(control.coefficients[:, others].double(), rows[:, others])


def _deviation(mixture: Any, sigma: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the root of an element's variance under the mixture, averaged over elements, from its density."""
    found = []
    for step, (noise, factor) in enumerate(zip(sigma.tolist(), weight.tolist(), strict=True)):
        offsets = mixture.offsets[step % len(mixture.offsets)] * factor
        left = torch.full_like(offsets, noise**2)
        removed = mixture.reductions[step % len(mixture.reductions)]
        left[:, : removed.shape[1]] -= factor**2 * removed
        total = (left.clamp(min=0) + offsets.square()).mean(0) - offsets.mean(0).square()
        found.append(total.mean().sqrt())
    return torch.stack(found)


def test_equal_samplers_are_found(pipelines: Path) -> None:
    pipeline = load_pipeline(pipelines / "ldm")

    def mark(variant: str | None, eta: float, control: bool = False, scale: float = 1.0) -> str:
        cell = Cell(3, eta=eta, variant=variant, scale=scale if variant else None, control=control)
        return fingerprint(cell, cell.sampler(pipeline))

    assert mark("ORTHO", 0.0) == mark("VUB", 0.0)
    assert mark("ORTHO", 0.5) != mark("VUB", 0.5)
    assert mark("VUB", 0.0) != mark("VUB*", 0.0)
    assert mark("ORTHO", 0.0, True) == mark("VUB", 0.0, True)
    assert mark("ORTHO", 0.0, True) != mark("ORTHO", 0.0, True, 0.1)
    assert mark("ORTHO", 0.0, True, 0.0) == mark(None, 0.0)
    sampler = pipeline.sampler(3, method="ddim")
    assert fingerprint(Cell(3, model=SIMPLE), sampler) != fingerprint(Cell(3, model=SCALED), sampler)
    assert fingerprint(Cell(3, model=SIMPLE), sampler) != fingerprint(
        Cell(3, "dpm-solver", model=SIMPLE), pipeline.sampler(3, method="dpm-solver")
    )


def test_estimate() -> None:
    cells = [Cell(10), Cell(20, "plms", model=SKIP)]
    found = estimate(cells, count=101, batch_size=50, ranks=2, speed=Speed(2.0, 3.0, 5.0), training_steps=7)
    # 3 batches, of which one rank makes 2; 31 calls and 2 decodings of each.
    assert found == (2, 202, 31 * 101, 2 * (31 * 2.0 + 2 * 3.0), 7, 35.0)
    text = describe(
        found, Speed(2.0, 3.0, 5.0), batch_size=50, ranks=2, device="a GPU", guided=True, reference=1000
    )
    for part in (
        "2 cells, 202 images, 3,131 network calls",
        "twice the batch",
        "7 steps of 5 s",
        "by 2 ranks",
    ):
        assert part in text
    assert "2,202 images through Inception" in text
    assert "training" not in describe(
        found, Speed(2.0, 3.0), batch_size=50, ranks=1, device="a GPU", guided=False, reference=0
    )


def result(fid: float, **more: Any) -> dict[str, Any]:
    return {
        "figures": {FID: fid, "precision": 0.5, "recall": 0.25, SCORE: 100.0},
        "warnings": ["few"],
        "evaluation": {"weights": {}, "versions": {"torch-fidelity": "0.4.0"}, "settings": {}},
        "environment": {"torch": "2", "device": "a GPU"},
        "sampler": "",
        **more,
    }


def options(experiment: Any, **changes: Any) -> dict[str, Any]:
    return {name: getattr(experiment, name) for name in ("count", "steps", "eta", "scales")} | changes


def test_the_report_has_published_figures_beside(tmp_path: Path) -> None:
    done = {
        Cell(10): result(12.0),
        Cell(10, "dpm-solver"): result(9.0),
        Cell(10, variant="ORTHO", scale=1.0): result(11.0),
        Cell(10, variant="ORTHO", scale=1.0, control=True): result(10.5, same_as="other"),
        Cell(10, variant="ORTHO", scale=10.0): result(8.0),
        Cell(10, variant="ORTHO", scale=10.0, control=True): result(8.25),
        Cell(10, eta=0.2): result(13.0),
    }
    rows = mixture_rows(IMAGENET, 10, done, 4096)
    assert [row["line"] for row in rows] == [
        *("DDIM", "ORTHO", "control of ORTHO", "best control", "DDIM", "DPM-Solver++(2M)")
    ]
    ortho = rows[1]
    assert (ortho["scale"], ortho["scale_over_root_d"], ortho["fid"]) == (10.0, 10 / 64, 8.0)
    assert (ortho["from_ddim"], ortho["from_control"]) == (-4.0, -0.25)
    assert ortho["published"] == {"fid": 6.90, "score": 207.65, "from_ddim": 6.90 - 10.15}
    assert rows[2]["published"] is rows[3]["published"] is None
    assert rows[5]["published"] == {"fid": 9.75, "score": 225.68}
    settings = {"count": 50000, "elements": 4096}
    text = write_report(
        tmp_path,
        IMAGENET,
        options(IMAGENET),
        settings,
        IMAGENET.cells(),
        {cell.name: found for cell, found in done.items()},
    )
    lines = text.splitlines()
    assert "| 0 | DDIM |  |  | 12.00 |  |  | 0.500 | 0.250 | 100.00 | 10.15 |  |  | 196.73 |" in lines
    assert (
        "| 0 | ORTHO | 10 | 0.16 | 8.00 | -4.00 | -0.25 | 0.500 | 0.250 | 100.00 | 6.90 | -3.25 |  | 207.65 |"
    ) in lines
    assert (
        "|  | DPM-Solver++(2M) |  |  | 9.00 |  |  | 0.500 | 0.250 | 100.00 | 9.75 |  |  | 225.68 |" in lines
    )
    assert "| 10 | 0 | ORTHO |  |  | 11.00 (10.50) | 8.00 (8.25) |" in lines
    assert lines[2] == "7 of 266 cells are done."
    assert "2311.04938" in text
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == rows


def test_the_report_says_what_is_smaller() -> None:
    assert full_size(CELEBAHQ, options(CELEBAHQ), {}) == []
    assert full_size(CELEBAHQ, options(CELEBAHQ, steps=(100, 50, 20, 10)), {}) == []
    assert full_size(CELEBAHQ, options(CELEBAHQ, count=10, eta=(0.0,)), {}) == [
        "images of each cell 10 and not 5,000",
        "eta 0 and not 0, 0.2, 0.5, 1",
    ]
    recipe = {
        "steps": 800000,
        "size": 32,
        "flip": True,
        "channels": 128,
        "multipliers": [1, 2, 2, 2],
        "layers": 2,
    }
    recipe |= {
        "attention": (16,),
        "dropout": 0.1,
        "schedule": "linear",
        "timesteps": 1000,
        "beta_start": 1e-4,
    }
    recipe |= {"beta_end": 0.02, "prediction_type": "epsilon", "batch_size": 128, "learning_rate": 2e-4}
    recipe |= {"warmup": 5000, "decay": "constant", "max_grad_norm": 1.0, "ema_decay": 0.9999}
    assert full_size(CIFAR, options(CIFAR), {"training": {"settings": recipe}}) == []
    small = recipe | {"steps": 5, "channels": 8}
    assert full_size(CIFAR, options(CIFAR), {"training": {"settings": small}}) == [
        "5 training steps and not 800,000",
        "other settings of the training than the recipe cifar10's: channels",
    ]


def test_the_report_of_trainings() -> None:
    done = {
        Cell(10, "deis", model=SIMPLE): result(4.0),
        Cell(10, "deis", model=SKIP): result(3.8),
        Cell(20, "deis", model=SKIP): result(3.0),
    }
    first, second, third = training_rows(done)
    assert first["from_simple"] is third["from_simple"] is None
    assert second["from_simple_per_cent"] == pytest.approx(-5)
    assert second["published"] is None
