"""`evaluate` with torch-fidelity itself: its figures, and what they are by equations of their own.

The library is installed into a folder of its own. PyPI's torchvision is built for a PyTorch with CUDA and does not load
beside one without, for want of an operator that nothing here calls: so it is declared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_kept import as_array, as_files, as_shards, some_images

from gmmkernel.evaluation.statistics import read_statistics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SAMPLES, REAL = some_images(10), some_images(9, seed=1)

DECLARATION = """from torch import library
for name in ("nms", "qnms"):
    library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def start(words: list[str], folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders' packages."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "OMP_NUM_THREADS": "1",  # several wait for each other when other tests run beside this one
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Install the library; return its folder, and that of a module which makes torchvision fit where it does not."""
    folder, fitting = tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("fitting")
    constraints = (ROOT / "constraints.txt").read_text()
    names = re.findall(r"^(torch-fidelity==\S+|torchvision==\S+)", constraints, re.MULTILINE)
    assert len(names) == 2
    done = start(["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *names], folder)
    assert done.returncode == 0, done.stderr
    if start(["-c", "import torchvision"], folder, folder).returncode != 0:
        (fitting / "sitecustomize.py").write_text(DECLARATION)
    return folder, fitting


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same samples in every form, and real images."""
    folder = tmp_path_factory.mktemp("evaluated")
    as_files(folder / "samples", SAMPLES)
    as_files(folder / "real", REAL)
    as_shards(folder / "shards", SAMPLES, batch_size=7)
    as_array(folder / "samples.npz", SAMPLES)
    as_array(folder / "real.npz", REAL)
    return folder


@pytest.fixture(scope="session")
def found(library: tuple[Path, Path], place: Path) -> dict[str, dict[str, Any]]:
    """What a process with the library has found."""
    done = start([str(Path(__file__).with_name("with_library.py"))], place, *library)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="session")
def outputs(found: object, place: Path) -> dict[str, np.ndarray]:
    """The network's outputs, in float64."""
    return {name: array.astype(np.float64) for name, array in np.load(place / "outputs.npz").items()}


def test_the_figures_are_those_that_the_library_gives_by_itself(found: dict[str, Any]) -> None:
    ours, theirs = found["images"]["figures"], found["library"]
    assert set(ours) == set(theirs) - {"f_score"}
    for name, figure in ours.items():
        # Its means of features are float32, where these are float64.
        assert figure == pytest.approx(theirs[name], rel=1e-3 if "frechet" in name else 1e-5, abs=1e-6), name


def test_every_form_has_the_same_figures_and_statistics_are_as_good_as_images(found: dict[str, Any]) -> None:
    whole = found["images"]["figures"]
    for form in ("shards", "array"):
        figures = found[form]["figures"]
        assert "inception_score_mean" in figures
        assert ("frechet_inception_distance" in figures) == (form == "shards")
        assert figures == pytest.approx({name: whole[name] for name in figures}, rel=1e-6), form
    assert found["images"]["weights"]["standard"] is False


def test_images_and_themselves(found: dict[str, Any]) -> None:
    figures = found["itself"]["figures"]
    assert abs(figures["frechet_inception_distance"]) < 1e-3
    assert (figures["precision"], figures["recall"]) == (1, 1)


def test_fid(found: dict[str, Any], outputs: dict[str, np.ndarray], place: Path) -> None:
    """The trace of (S1 S2)^(1/2) is the sum of the singular values of A B^T, if S1 = A^T A and S2 = B^T B."""
    means = [outputs[name].mean(0) for name in ("features", "real")]
    roots = [
        (outputs[name] - mean) / np.sqrt(len(outputs[name]) - 1)
        for name, mean in zip(("features", "real"), means, strict=True)
    ]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    expected = ((means[0] - means[1]) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * overlap
    assert expected > 0.5
    assert found["images"]["figures"]["frechet_inception_distance"] == pytest.approx(expected, abs=1e-3)
    statistics = read_statistics("reference", place / "real_statistics.npz")
    assert statistics is not None
    assert statistics.count == 9
    np.testing.assert_allclose(statistics.mu, means[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.sigma, roots[1].T @ roots[1], rtol=1e-3, atol=1e-5)


def test_inception_score(found: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
    logits = outputs["logits"][np.random.RandomState(2020).permutation(10)]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = [
        np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in p.reshape(2, 5, p.shape[1])
    ]
    assert np.mean(parts) > 1.01
    assert found["images"]["figures"]["inception_score_mean"] == pytest.approx(np.mean(parts), rel=1e-4)
    assert found["images"]["figures"]["inception_score_std"] == pytest.approx(np.std(parts), rel=1e-2)


def test_kid(found: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
    random, distances = np.random.RandomState(2020), []
    for _ in range(20):
        x = outputs["features"][random.choice(10, 6, replace=False)]
        y = outputs["real"][random.choice(9, 6, replace=False)]
        within = sum((((z @ z.T / 2048 + 1) ** 3) * (1 - np.eye(6))).sum() / 30 for z in (x, y))
        distances.append(within - 2 * ((x @ y.T / 2048 + 1) ** 3).mean())
    figures = found["images"]["figures"]
    assert figures["kernel_inception_distance_mean"] == pytest.approx(np.mean(distances), rel=1e-2, abs=2e-6)
    assert figures["kernel_inception_distance_std"] == pytest.approx(np.std(distances), rel=1e-2, abs=2e-6)


def test_precision_and_recall(found: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - y, axis=2)

    def covered(x: np.ndarray, y: np.ndarray) -> float:
        return float((distances(x, y) <= np.sort(distances(y, y))[:, 3]).any(1).mean())

    figures = found["images"]["figures"]
    assert figures["precision"] == pytest.approx(covered(outputs["features"], outputs["real"]))
    assert figures["recall"] == pytest.approx(covered(outputs["real"], outputs["features"]))


def test_the_command(found: object, library: tuple[Path, Path], place: Path) -> None:
    words = "-m gmmkernel evaluate samples --count 4 --is-splits 2 --weights weights.pth"
    done = start(words.split(), place, *library)
    assert done.returncode == 0, done.stderr
    assert "samples    samples: 4 images of 32 x 32 (image files)\n" in done.stdout
    assert "not the standard Inception weights" in done.stdout
    assert re.search(r"^IS         \d\.\d{4} ± \d\.\d{4} over 2 splits$", done.stdout, re.MULTILINE)


def test_a_torchvision_that_does_not_fit(library: tuple[Path, Path], place: Path) -> None:
    folder, fitting = library
    done = start(["-m", "gmmkernel", "evaluate", "samples", "--metrics", "fid"], place, folder)
    assert done.returncode == 2
    expected = (
        "torchvision: expected a build for PyTorch"
        if any(fitting.iterdir())
        else "--reference: expected a reference for fid"
    )
    assert done.stderr.startswith(f"error: {expected}")
