"""Whole runs of the papers' experiments on tiny models: stopped, gone on with, refused, by two ranks.

Inception is not here: a stand-in judges images by their mean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_pipelines import save

from gmmkernel import noise_schedule
from gmmkernel.backends.constants import Column
from gmmkernel.evaluation.images import open_images
from studies.papers import run as module
from studies.papers.__main__ import main
from studies.papers.experiments import METHODS, MODELS, SIMPLE, Cell
from studies.papers.report import FID, SCORE
from studies.papers.trainings import Trainings
from studies.skip_step_methods import Method, optimal_scale

CaptureText = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in ("ldm", "dit"):
        save(kind, folder)
    return folder


def judge_by_the_mean(patch: pytest.MonkeyPatch) -> list[str]:
    """Put a stand-in where Inception would be; return the names of the folders that it has judged."""
    names: list[str] = []

    def evaluate(samples: Path, reference: Path, *, metrics: tuple[str, ...], **options: Any) -> Any:
        images = torch.cat(list(open_images("samples", samples).batches(64))).double()
        figures = {FID: abs(float(images.mean()) - 100)}
        figures |= {"precision": 0.5, "recall": 0.25} if "prc" in metrics else {}
        figures |= {SCORE: float(images.std())} if "is" in metrics else {}
        names.append(samples.name)
        return SimpleNamespace(
            figures=figures,
            warnings=(f"{len(images)} images are few",),
            weights={"sha256": "abc"},
            versions={"torch-fidelity": "0.4.0"},
            settings={"metrics": list(metrics)},
        )

    patch.setattr(module, "evaluate", evaluate)
    patch.setattr(module, "check_library", lambda: "0.4.0")
    patch.setattr(module, "find_weights", lambda given: SimpleNamespace(sha256="abc"))
    return names


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that the stand-in has judged."""
    return judge_by_the_mean(monkeypatch)


def pictures(path: Path, size: int, count: int = 12) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels)
    return path


def words(experiment: str, output: Path, *more: object) -> list[str]:
    return [experiment, "--output", str(output), "--device", "cpu", *map(str, more)]


@pytest.fixture
def trial(pipelines: Path, tmp_path: Path) -> list[str]:
    real = pictures(tmp_path / "real.npz", 16)
    small = ("--count", 10, "--batch-size", 4, "--steps", 2, "--eta", 0, "--scales", 0.5, 2)
    return words(
        "ddim-gmm-celebahq", tmp_path / "out", "--pipeline", pipelines / "ldm", "--reference", real, *small
    )


def test_a_run_that_was_stopped_goes_on(
    trial: list[str], tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    whole, drawn = module.evaluate, []
    real_sampling = module.sample_shards

    def counted(*arguments: Any, **options: Any) -> Any:
        drawn.append(real_sampling(*arguments, **options).samples)

    def stopped(*arguments: Any, **options: Any) -> Any:
        if len(judged) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(module, "sample_shards", counted)
    monkeypatch.setattr(module, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(trial)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "3 of 18 cells are done" in text
    kept = sorted(path.name for path in (tmp_path / "out" / "cells").iterdir())
    assert len([name for name in kept if name.endswith(".json")]) == 3
    assert len(kept) == 4  # and the images that were drawn and not judged
    monkeypatch.setattr(module, "evaluate", whole)
    assert main(trial) == 0
    out = capsys.readouterr().out
    assert "to do: 15 cells, 150 images, 300 network calls" in out
    # DDIM, DPM-Solver++; mixtures of RAND, ORTHO and VUB*, controls of RAND and of the others, at two scales.
    assert len(judged) == len(set(judged)) == 2 + 2 * (3 + 2)
    assert sum(drawn) == 10 * len(judged)
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "18 of 18 cells are done. **This is not the full size: images of each cell 10 and not 5,000; steps 2"
        in text
    )
    assert "| VUB (the sampler of 2-eta0-ortho-" in text
    assert "10 images are few" in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["results"]["2-eta0-vub-2"]["same_as"] == "2-eta0-ortho-2"
    assert report["settings"]["elements"] == 192
    assert not [path for path in (tmp_path / "out" / "cells").iterdir() if path.is_dir()]
    assert main(trial) == 0
    assert len(judged) == 12
    assert "0 cells, 0 images" in capsys.readouterr().out


def test_classes_guidance_and_kept_images(
    pipelines: Path, tmp_path: Path, judged: list[str], capsys: CaptureText
) -> None:
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.zeros(2048), sigma=np.eye(2048))
    small = ("--count", 10, "--batch-size", 5, "--steps", 2, "--eta", 1, "--scales", 1, "--keep-images")
    given = ("--pipeline", pipelines / "dit", "--reference", statistics)
    assert main(words("ddim-gmm-imagenet", tmp_path / "out", *given, *small)) == 0
    assert "each of twice the batch (guidance)" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["guidance"] == 2.5
    row = report["rows"][0]
    assert row["score"] > 0
    assert row["precision"] is None
    manifest = json.loads((tmp_path / "out" / "cells" / "2-eta1-ddim" / "manifest.json").read_text())
    assert len(manifest["conditioning"]) == 1
    assert manifest["count"] == 10


def test_an_estimate_changes_nothing(
    trial: list[str], tmp_path: Path, judged: list[str], capsys: CaptureText
) -> None:
    assert main([*trial, "--estimate"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ddim-gmm-celebahq: DDIM-GMM, CelebA-HQ")
    assert "18 cells, 180 images, 360 network calls" in out
    assert "report" not in out.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())
    assert judged == []


def failed(given: list[str], capsys: CaptureText) -> str:
    assert main(given) == 2
    return (
        capsys.readouterr().err.rpartition("error: ")[2].rstrip("\n")
    )  # before it: diffusers' progress bars


def test_errors_before_the_work(
    trial: list[str],
    tmp_path: Path,
    pipelines: Path,
    judged: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: CaptureText,
) -> None:
    place = trial.index("--reference") + 1
    wrong = str(pictures(tmp_path / "wrong.npz", 8))
    message = failed([*trial[:place], wrong, *trial[place + 1 :]], capsys)
    assert message == "--reference: expected images of 16 x 16, as they are made, got 8 x 8"
    message = failed([*trial[:place], str(tmp_path / "none"), *trial[place + 1 :]], capsys)
    assert message.startswith("--reference: expected a folder or an .npz")
    place = trial.index("--pipeline") + 1
    message = failed([*trial[:place], "./none", *trial[place + 1 :]], capsys)
    assert message.startswith("--pipeline: expected a folder")
    message = failed([*trial[:place], str(pipelines / "dit"), *trial[place + 1 :]], capsys)
    assert message.startswith(
        "--pipeline: expected a model without classes and prompts for ddim-gmm-celebahq, got"
    )
    message = failed(["ddim-gmm-ffhq", *trial[1 : place - 1], *trial[place + 1 :]], capsys)
    assert message.startswith("--pipeline: needed for ddim-gmm-ffhq")
    message = failed([*trial, "--steps", "2", "1001"], capsys)
    assert message == "--steps: expected an integer from 1 to 1000, got 1001"
    (tmp_path / "file").write_text("")
    message = failed([*trial, "--output", str(tmp_path / "file" / "out")], capsys)
    assert message.startswith("--output: cannot write in")
    if not torch.cuda.is_available():
        assert failed([*trial, "--device", "cuda"], capsys).startswith(
            "--device: expected cuda:0 to be there"
        )

    def missing(*given: object) -> None:
        raise ImportError('evaluate needs torch-fidelity: pip install "gmmkernel[evaluate]"')

    with monkeypatch.context() as patch:
        patch.setattr(module, "check_library", missing)
        assert failed(trial, capsys).startswith("evaluate needs torch-fidelity")

    def absent(*given: object) -> None:
        raise FileNotFoundError("weights: expected weights-inception.pth, got none")

    monkeypatch.setattr(module, "find_weights", absent)
    assert failed(trial, capsys).startswith("--weights: expected")
    assert judged == []


def test_a_folder_is_of_one_run(
    trial: list[str], tmp_path: Path, judged: list[str], capsys: CaptureText
) -> None:
    short = [*trial, "--scales", "0"]  # which adds nothing
    assert main(short) == 0
    assert judged == ["2-eta0-ddim", "2-dpm-solver", "2-eta0-rand-0", "2-eta0-ortho-0", "2-eta0-vub-shared-0"]
    assert "has a study with" in failed([*short, "--count", "11"], capsys)
    before = len(judged)
    assert main([*short, "--eta", "0", "1"]) == 0  # more cells of the same
    assert judged[before] == "2-eta1-ddim"
    assert all("eta1" in name for name in judged[before:])
    broken = tmp_path / "out" / "cells" / "2-eta0-ddim.json"
    broken.write_text("{")
    assert failed(short, capsys).startswith(f"--output: {broken} is damaged")
    broken.unlink()
    with module.taken(tmp_path / "out" / "lock") as mine:
        assert mine
        assert failed(short, capsys).startswith("--output: another process is at work")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("faces",), "invalid choice: 'faces'"),
        (("ddim-gmm-celebahq",), "--reference: needed, real images or their statistics, got none"),
        (("s2dm-cifar10",), "--images: needed for the trainings, a folder or an .npz, got none"),
        (
            ("s2dm-cifar10", "--images", "i", "--pipeline", "p"),
            "--pipeline: is for the experiments of DDIM-GMM, got s2dm-cifar10",
        ),
        (
            ("ddim-gmm-ffhq", "--reference", "r", "--training-steps", "3"),
            "--training-steps: is for the experiments of S2-DM, got ddim-gmm-ffhq",
        ),
        (
            ("ddim-gmm-ffhq", "--reference", "r", "--count", "9"),
            "--count: expected an integer >= 10, got '9'",
        ),
        (
            ("ddim-gmm-ffhq", "--reference", "r", "--eta", "2"),
            "--eta: expected a number from 0 to 1, got '2'",
        ),
        (
            ("ddim-gmm-ffhq", "--reference", "r", "--scales", "-1"),
            "--scales: expected a finite number >= 0, got '-1'",
        ),
        (
            ("ddim-gmm-ffhq", "--reference", "r", "--weights", "none.pth"),
            "--weights: expected the name of a file",
        ),
    ],
)
def test_bad_options(given: tuple[str, ...], message: str, tmp_path: Path, capsys: CaptureText) -> None:
    with pytest.raises(SystemExit):
        main([*given, "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RECIPE = """
size = 8
channels = 8
multipliers = [1, 2]
layers = 1
attention = []
batch_size = 4
loss = "skip"
tau = 0.5
"""


@pytest.fixture
def training(tmp_path: Path, set_threads: Callable[[int], None]) -> list[str]:
    (tmp_path / "small.toml").write_text(RECIPE)
    images = pictures(tmp_path / "images.npz", 8)
    small = ("--count", 10, "--batch-size", 10, "--steps", 4, "--training-steps", 2, "--workers", 0)
    set_threads(1)
    return words(
        "s2dm-cifar10", tmp_path / "out", "--images", images, "--recipe", tmp_path / "small.toml", *small
    )


def test_both_trainings_and_their_samples(
    training: list[str], tmp_path: Path, judged: list[str], capsys: CaptureText
) -> None:
    assert main(training) == 0
    out = capsys.readouterr().out
    assert "12 cells, 120 images, 510 network calls" in out
    assert "training: 4 steps of" in out
    text = (tmp_path / "out" / "report.md").read_text()
    assert "12 of 12 cells are done. **This is not the full size" in text
    assert (
        "2 training steps and not 800,000; other settings of the training than the recipe cifar10's" in text
    )
    assert "must not be compared with published ones" in text
    assert "| skip-step loss |" in text
    assert "3.27 to 14.06%" in text
    assert sorted(judged) == sorted(f"{model}-4-{method}" for model in MODELS for method in METHODS)
    done = json.loads((tmp_path / "out" / "training-skip" / "done.json").read_text())
    assert done == {"steps": 2, "loss": "skip", "skip": 9, "tau": 0.99, "target": "independent"}
    reference = open_images("reference", tmp_path / "out" / "reference.npz")
    with np.load(tmp_path / "images.npz") as images:
        assert torch.equal(
            torch.cat([*reference.batches(5)]), torch.from_numpy(images["arr_0"]).permute(0, 3, 1, 2)
        )
    trainings = Trainings(tmp_path / "out", tmp_path / "images.npz", str(tmp_path / "small.toml"), 2, 0)
    pipeline, _ = trainings.load(SIMPLE, "float32", module.Place(0, 1, torch.device("cpu")))
    assert bool((Cell(5, model=SIMPLE).sampler(pipeline).coefficients[:, Column.CLIP_MIN] < -1e30).all())
    assert main(training) == 0
    assert len(judged) == 12
    assert "training" not in capsys.readouterr().out.split("sampling")[0]
    other = [*training, "--training-steps", "3"]
    assert "has a study with" in failed(other, capsys)


def test_the_scaled_model_and_bad_recipes(
    training: list[str], tmp_path: Path, judged: list[str], capsys: CaptureText
) -> None:
    images, recipe = tmp_path / "images.npz", tmp_path / "small.toml"
    trainings = Trainings(tmp_path, images, str(recipe), 2, 0)
    assert trainings.settings.loss == "simple"
    predict = trainings.scaled(lambda sample, timestep: sample)
    expected = optimal_scale(noise_schedule("linear"), Method("", "independent", 9, trained=False))
    timestep = torch.tensor([0, 500, 999])
    assert torch.equal(predict(torch.ones(3, 3, 8, 8), timestep)[:, 0, 0, 0], expected[timestep])
    without = training[: training.index("--training-steps")] + training[training.index("--workers") :]
    assert failed(without, capsys).startswith("--training-steps: needed with a --recipe that has no steps")
    assert failed([*training, "--steps", "1001"], capsys).startswith(
        "--steps: expected an integer from 1 to 1000"
    )
    recipe.write_text(RECIPE + 'prediction_type = "sample"')
    assert failed(training, capsys).startswith("--recipe: expected one that predicts epsilon")
    recipe.write_text("sides = 8")
    assert failed(training, capsys).startswith("--recipe: expected settings in")
    training[training.index("--images") + 1] = str(tmp_path / "none")
    recipe.write_text(RECIPE)
    assert failed(training, capsys).startswith("--images: expected a folder or an .npz")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trial", "training"])
def test_two_ranks_make_the_same(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    judged: list[str],
    set_threads: Callable[[int], None],
) -> None:
    given: list[str] = request.getfixturevalue(kind)
    set_threads(1)
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, *given]
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "pipelines")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    subprocess.run([sys.executable, *program], env=environment, check=True, timeout=300)
    found = results(tmp_path / "out")
    given[given.index("--output") + 1] = str(tmp_path / "alone")
    assert main(given) == 0
    alone = results(tmp_path / "alone")
    assert found.keys() == alone.keys()
    if kind == "trial":  # two ranks share a training's batch, and sum its gradients in another order
        assert found == alone
    assert {each["ranks"] for each in seconds(tmp_path / "out")} == {2}


def results(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report.json").read_text())["results"]
    return {name: (each["figures"], each["sampler"]) for name, each in found.items()}


def seconds(folder: Path) -> list[dict[str, Any]]:
    return [each["seconds"] for each in json.loads((folder / "report.json").read_text())["results"].values()]


if __name__ == "__main__":  # by torchrun
    judge_by_the_mean(pytest.MonkeyPatch())
    sys.exit(main())
