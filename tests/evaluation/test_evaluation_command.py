"""The command `evaluate`: its report, its files, and every error before it computes anything."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from images_kept import as_array, as_files, as_shards, some_images

from gmmkernel.cli import main
from gmmkernel.evaluation import evaluate, inception
from gmmkernel.evaluation.images import Images

CaptureText = pytest.CaptureFixture[str]
SAMPLES, REAL = some_images(12), some_images(11, seed=1)
STANDARD_NAME = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with samples, real images, statistics and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    as_files(tmp_path / "samples", SAMPLES)
    as_array(tmp_path / "real.npz", REAL)
    mean = np.zeros(2048)
    mean[:3] = 100
    np.savez(tmp_path / "statistics.npz", mu=mean, sigma=np.eye(2048, dtype=np.float32))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    return tmp_path


def run(words: str, capsys: CaptureText) -> list[str]:
    """Run the command with the weights of the folder, and return the lines that it prints."""
    assert main(f"evaluate {words} --weights weights.pth".split()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # which is no terminal, and gets no bars
    return printed.out.splitlines()


def failed(words: str, capsys: CaptureText) -> str:
    """Run the command, and return the error that it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "batches", begin)
        assert main(["evaluate", *words.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.rstrip("\n").removeprefix("error: ")


def begin(*arguments: object) -> Iterator[Any]:
    raise AssertionError("images are read")


@pytest.mark.usefixtures("library")
def test_the_report_and_the_files(place: Path, capsys: CaptureText) -> None:
    words = "samples --reference real.npz --kid-subset-size 4 --json out/x.json --save-statistics out/x.npz"
    lines = run(words, capsys)
    digest = hashlib.sha256((place / "weights.pth").read_bytes()).hexdigest()
    distance = abs(SAMPLES.double().mean((0, 1, 2)) - REAL.double().mean((0, 1, 2))).sum().item()
    assert lines[:10] == [
        "samples    samples: 12 images of 32 x 32 (image files)",
        "reference  real.npz: 11 images of 32 x 32 (.npz)",
        f"weights    weights.pth, SHA-256 {digest[:16]}...: not the standard Inception weights",
        f"library    torch-fidelity 0.4.0, torch {torch.__version__}",
        "",
        f"FID        {distance:.4f}",
        "IS         12.0000 ± 10.0000 over 10 splits",
        "KID        12.000000 ± 11.000000 over 100 subsets of 4",
        "precision  0.1200 (3 neighbours, Inception's features)",
        "recall     0.1100",
    ]
    weights, few = lines[10:]
    assert weights.startswith(
        "warning: These are not the standard Inception weights, whose SHA-256 begins with 6726"
    )
    assert "12 samples and 11 reference images: below 10000" in few
    known = json.loads((place / "out" / "x.json").read_text())
    assert known["figures"]["frechet_inception_distance"] == pytest.approx(distance, rel=1e-6)
    assert known["samples"] == {"path": "samples", "form": "image files", "count": 12, "size": [32, 32]}
    assert known["weights"] == {"path": "weights.pth", "sha256": digest, "standard": False}
    assert known["settings"]["kid_subset_size"] == 4
    assert known["settings"]["metrics"] == ["fid", "is", "kid", "prc"]
    assert known["versions"]["torch-fidelity"] == "0.4.0"
    assert known["warnings"] == [line.removeprefix("warning: ") for line in lines[10:]]
    # The second time from the statistics.
    again = run("samples --reference out/x.npz", capsys)
    assert again[1] == "reference  out/x.npz: statistics of 11 images"
    assert again[5:7] == lines[5:7]
    assert len(again) == 9
    assert failed("samples --reference out/x.npz --weights other.pth", capsys).startswith(
        "--weights: expected a file"
    )
    torch.save({"weight": torch.ones(1)}, "other.pth")
    assert failed("samples --reference out/x.npz --weights other.pth", capsys).startswith(
        "--reference: expected statistics made with other.pth ("
    )


@pytest.mark.usefixtures("library", "place")
@pytest.mark.parametrize(
    ("words", "figures"),
    [
        ("samples", ["IS"]),
        ("samples --metrics is --reference real.npz", ["IS"]),
        ("samples --reference statistics.npz", ["FID", "IS"]),
        ("samples --reference real.npz --kid-subset-size 4", ["FID", "IS", "KID", "precision", "recall"]),
        ("samples --reference real.npz --metrics prc,fid", ["FID", "precision", "recall"]),
        ("samples --reference real.npz --metrics kid --kid-subset-size 4", ["KID"]),
    ],
)
def test_which_figures(words: str, figures: list[str], capsys: CaptureText) -> None:
    lines = run(words, capsys)
    report = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in report if not line.startswith("warning")] == figures


@pytest.mark.usefixtures("library")
def test_a_reference_with_images_and_statistics_of_more(
    place: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADM's files: FID is from the statistics, the rest from the images."""
    statistics = dict(np.load(place / "statistics.npz"))
    np.savez(place / "both.npz", arr_0=REAL.numpy(), **statistics)
    lines = run("samples --reference both.npz --kid-subset-size 4", capsys)
    alone = run("samples --reference statistics.npz", capsys)
    assert lines[1] == "reference  both.npz: 11 images of 32 x 32 (.npz), and statistics"
    assert lines[5] == alone[5]
    assert lines[7].startswith("KID        12.000000 ± 11.000000")
    read, batches = [], Images.batches

    def noted(images: Images, batch_size: int) -> Iterator[Any]:
        read.append(images.name)
        return batches(images, batch_size)

    monkeypatch.setattr(Images, "batches", noted)
    run("samples --reference both.npz --metrics fid", capsys)
    assert read == ["samples"]


@pytest.mark.usefixtures("library", "place")
def test_the_first_samples(place: Path, capsys: CaptureText) -> None:
    some = evaluate("samples", "real.npz", metrics=["fid"], weights="weights.pth", count=6, progress=False)
    as_shards(place / "fewer", SAMPLES[:6])
    fewer = evaluate(
        "fewer", "real.npz", metrics=["fid"], weights="weights.pth", batch_size=4, progress=False
    )
    assert some.samples["count"] == 6
    assert some.figures == fewer.figures
    assert failed("samples --count 13 --weights weights.pth", capsys) == (
        "--count: expected at most the 12 images of samples, got 13"
    )


@pytest.mark.usefixtures("library", "place")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x", "samples: expected a folder or an .npz, got 'x', which is not there"),
        ("samples --reference x", "--reference: expected a folder or an .npz, got 'x', which is not there"),
        (
            "statistics.npz",
            "samples: expected an .npz with arr_0, uint8 [N, H, W, 3], got statistics.npz without it",
        ),
        ("samples --metrics fid", "--reference: expected a reference for fid, got none"),
        (
            "samples --reference statistics.npz --metrics fid,kid,prc",
            "--reference: expected images for kid, prc, got statistics.npz, which has statistics alone, enough for fid",
        ),
        (
            "samples --reference real.npz",
            "samples: expected at least 1000 images for kid_subset_size = 1000, got 12",
        ),
        (
            "samples --reference real.npz --kid-subset-size 12",
            "--reference: expected at least 12 images for kid_subset_size = 12, got 11",
        ),
        (
            "samples --reference real.npz --metrics prc --neighbours 11",
            "--reference: expected at least 12 images for neighbours = 11, got 11",
        ),
        ("samples --is-splits 13", "samples: expected at least 13 images for is_splits = 13, got 12"),
        (
            "samples --count 1 --is-splits 1 --reference statistics.npz",
            "samples: expected at least 2 images for FID",
        ),
        ("samples --weights x.pth", "--weights: expected a file, got 'x.pth', which is none"),
        ("samples --device cuda", "--device: expected a CUDA device to be there, got none"),
        ("samples --json samples/a/0000.png/x.json", "--json: cannot write "),
        (
            "samples --save-statistics x.npz",
            "--save-statistics: expected a --reference and fid among the metrics",
        ),
        (
            "samples --save-statistics x.npz --reference real.npz --metrics is",
            "--save-statistics: expected a --reference and fid among the metrics",
        ),
    ],
)
def test_errors_before_images_are_read(
    words: str, message: str, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert failed(words if "--weights" in words else f"{words} --weights weights.pth", capsys).startswith(
        message
    )


@pytest.mark.parametrize(
    "words", ["--metrics fid,lpips", "--metrics FID", "--metrics ,", "--kid-subset-size 1", "--json x.txt"]
)
def test_options_that_make_no_sense(words: str, capsys: CaptureText) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "samples", *words.split()])
    error = capsys.readouterr().err
    assert f"argument {words.split()[0]}: expected " in error
    assert error.endswith("got 'FID'; did you mean 'fid'?\n") or "FID" not in words


@pytest.mark.usefixtures("library", "place")
def test_arguments_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"^metrics: expected a sequence of names, got 'fid'$"):
        evaluate("samples", metrics="fid")
    with pytest.raises(ValueError, match=r"^metrics: expected some of fid, is, kid, prc, got none$"):
        evaluate("samples", metrics=[])
    with pytest.raises(ValueError, match=r"^metrics: expected one of 'fid', .*, got 'lpips'$"):
        evaluate("samples", metrics=["lpips"])
    for name in ("batch_size", "count", "is_splits", "kid_subsets", "kid_subset_size", "neighbours"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"^{name}: expected an integer >= "):
            evaluate("samples", **wrong)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(768), np.eye(2048), r"expected mu as floats \[2048\], got float64 \[768\] in x.npz"),
        (np.zeros(2048), np.eye(768), r"expected sigma as floats \[2048, 2048\], got float64 \[768, 768\]"),
        (np.zeros(2048, np.int64), np.eye(2048), "expected mu as floats .* got int64"),
        (np.full(2048, np.nan), np.eye(2048), "expected a finite mu, got NaN or infinity in x.npz"),
        (np.array([object()]), np.eye(3), "expected an .npz, got x.npz, damaged or foreign"),
    ],
    ids=["mu", "sigma", "integers", "NaN", "objects"],
)
def test_statistics_of_something_else(mu: Any, sigma: Any, message: str, place: Path) -> None:
    np.savez(place / "x.npz", mu=mu, sigma=sigma)
    with pytest.raises(ValueError, match=f"^reference: {message}"):
        evaluate("samples", "x.npz", weights="weights.pth")


@pytest.mark.usefixtures("library")
def test_a_reference_that_is_nothing(place: Path, capsys: CaptureText) -> None:
    np.savez(place / "x.npz", mu=np.zeros(2048))
    (place / "y.npz").write_bytes(b"something else")
    assert failed("samples --reference x.npz --weights weights.pth", capsys).endswith(
        "got x.npz without it, and without statistics mu and sigma"
    )
    assert failed("samples --reference y.npz --weights weights.pth", capsys).startswith(
        "--reference: expected an .npz, got y.npz, damaged or foreign: "
    )


class Program:
    """What a pickle may hold, and run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "state", [{"other": torch.zeros(1)}, Program(), b"no pickle"], ids=["keys", "program", "none"]
)
def test_weights_of_something_else(state: Any, place: Path, capsys: CaptureText) -> None:
    if isinstance(state, bytes):
        Path("x.pth").write_bytes(state)
    else:
        torch.save(state, "x.pth")
    assert failed("samples --weights x.pth", capsys).startswith(
        "--weights: expected torch-fidelity's state of Inception-v3, got x.pth: "
    )
    assert not (place / "ran").exists()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", [STANDARD_NAME, "pt_inception-2015-12-05-6726825d.pth"])
def test_the_standard_weights_are_found_where_they_are_kept(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    folder = place / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (place / "weights.pth").rename(folder / name)
    monkeypatch.setattr(inception, "STANDARD", hashlib.sha256((folder / name).read_bytes()).hexdigest())
    assert main(["evaluate", "samples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"weights    {folder / name}, SHA-256 ")
    assert lines[1].endswith("...: the standard ones")
    assert not any("not the standard" in line for line in lines)


@pytest.mark.usefixtures("library")
def test_weights_are_fetched_or_the_error_says_what_to_put_where(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    def offline(url: str, path: str, digest: str, progress: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = place / "hub" / "checkpoints"
    assert failed("samples", capsys) == (
        f"--weights: expected {STANDARD_NAME} in {str(folder)!r}, got none, and it cannot be fetched (no network): put "
        f"the file from https://example.org/{STANDARD_NAME} there, or say where it is"
    )

    def fetch(url: str, path: str, digest: str, progress: bool) -> None:
        assert digest == inception.STANDARD
        Path(path).write_bytes((place / "weights.pth").read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert main(["evaluate", "samples"]) == 0
    assert f"weights    {folder / STANDARD_NAME}" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: CaptureText, library: ModuleType) -> None:
    library.__dict__["__version__"] = "0.3.0"
    assert failed("samples", capsys) == (
        'evaluate needs torch-fidelity 0.4, got 0.3.0: pip install "gmmkernel[evaluate]"'
    )
    for name in ("torch_fidelity", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
        assert failed("x", capsys).startswith("samples: expected a folder or an .npz, got 'x', which is not")
        message = failed("samples", capsys)
        assert message.startswith("evaluate needs torch-fidelity")
        assert message.endswith('pip install "gmmkernel[evaluate]"')


@pytest.mark.usefixtures("place")
def test_a_torchvision_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: CaptureText, tmp_path: Path
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert failed("samples", capsys) == (
        f"torchvision: expected a build for PyTorch {torch.__version__}, got one that cannot be loaded beside it: "
        "operator torchvision::nms does not exist; take both from one index"
    )


def test_a_network_without_finite_outputs(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    made = library.utils.create_feature_extractor

    def broken(*arguments: Any, **options: Any) -> Any:
        network = made(*arguments, **options)
        forward = network.forward
        network.forward = lambda images: tuple(output * float("nan") for output in forward(images))
        return network

    monkeypatch.setattr(library.utils, "create_feature_extractor", broken)
    with pytest.raises(
        ValueError, match=r"^weights: expected a network with finite outputs, got others for samples$"
    ):
        evaluate("samples", weights="weights.pth", progress=False)
