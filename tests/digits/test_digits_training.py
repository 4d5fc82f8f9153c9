"""A few steps of the training script: it runs, writes loadable files, and gives the same bytes again."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gmmkernel import digits

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "train_digits.py"


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run the script in this process and restore torch's settings; returns what it printed."""
    monkeypatch.setattr("gmmkernel.digits.training._COMPARED", 20)  # images in the mean losses, for speed
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def run(*options: str, evaluate: bool = True) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        if not evaluate:
            monkeypatch.setattr(script, "evaluate", lambda *_: None)
        script.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def measured(printed: str) -> list[str]:
    """Return the lines that do not tell of training."""
    return [line for line in printed.splitlines() if not line.startswith(("step ", "trained in"))]


SHORT = ("--steps", "5", "--classifier-steps", "5", "--samples", "10")


def test_five_steps_twice(train: Callable[..., str], tmp_path: Path) -> None:
    printed = train("--output", str(tmp_path / "first"), *SHORT)
    assert "held-out accuracy" in printed
    assert "digit-FID" in printed
    again = train(
        "--output", str(tmp_path / "first"), *SHORT, "--keep-classifier", "--keep-unet", "--keep-flow-unet"
    )
    assert measured(again) == measured(printed)
    torch.manual_seed(123)  # The script's own seed decides, not the state it finds.
    train("--output", str(tmp_path / "second"), *SHORT, evaluate=False)
    train("--output", str(tmp_path / "other"), *SHORT, "--seed", "1", evaluate=False)
    names = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert names == [f"{name}.safetensors" for name in ("classifier", "flow_unet", "statistics", "unet")]
    for name in names:
        first = (tmp_path / "first" / name).read_bytes()
        assert first == (tmp_path / "second" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()

    kept = {name: (tmp_path / "second" / name).stat().st_mtime_ns for name in names}
    train("--output", str(tmp_path / "second"), *SHORT, "--keep-classifier", "--seed", "1", evaluate=False)
    second = {name: (tmp_path / "second" / name).stat().st_mtime_ns for name in names}
    unets = ["flow_unet.safetensors", "unet.safetensors"]
    assert [name for name in names if second[name] != kept[name]] == unets
    for name in unets:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        unet = digits.DigitsUNet()
        unet.load_state_dict(load_file(tmp_path / "first" / name))
        assert bool(unet.conv_out.weight.any())
        with safe_open(tmp_path / "first" / name, "pt") as file:
            training = json.loads(file.metadata()["training"])
        assert training["seed"] == 0
        assert training["torch"] == torch.__version__
        assert "--steps 5 " in training["command"]


@pytest.mark.parametrize("options", [("--steps", "0"), ("--samples", "12"), ("--threads", "-1")])
def test_bad_options(
    train: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit):
        train("--output", str(tmp_path / "none"), *options)
    assert f"{options[0]}: expected" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["unet", "flow_unet", "classifier", "statistics"])
def test_shipped_files_say_how_they_were_made(name: str) -> None:
    file = Path(digits.__file__).parent / "weights" / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        training = json.loads(opened.metadata()["training"])
    assert training["command"].startswith("python tools/train_digits.py --steps ")
    assert set(training) == {"command", "seed", "torch"}
