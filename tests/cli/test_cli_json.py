"""`--json`: the figures that a command prints, unrounded, and what they depend on."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmmkernel
from gmmkernel import backends, golden
from gmmkernel.cli import main
from gmmkernel.cli.figures import write_json
from gmmkernel.digits import digit_fid

CaptureText = pytest.CaptureFixture[str]
VERSIONS = {
    "gmmkernel": gmmkernel.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
}


def known(path: Path, words: str, status: int = 0) -> Any:
    """Run a command, and return what it has written to the file of `--json`."""
    file = path / "made" / "x.json"
    assert main([*words.split(), "--json", str(file)]) == status
    return json.loads(file.read_text("utf-8"))


def test_info(tmp_path: Path, capsys: CaptureText) -> None:
    found = known(tmp_path, "info")
    assert found["versions"] == VERSIONS
    assert [(b["name"], b["available"], b["detail"]) for b in found["backends"]] == [
        (status.name, status.available, status.detail) for status in backends.available_backends()
    ]
    assert found["tensors_use"]["cpu"] == "cpu"
    assert found["machine"] == platform.machine()
    out = capsys.readouterr().out
    for device, backend in found["tensors_use"].items():
        assert f"{device} tensors{': no backend' if backend is None else f' use: {backend}'}\n" in out


def test_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dict(list(golden.cases())[:2])
    monkeypatch.setattr(golden, "cases", lambda: iter(chosen.items()))
    digests = {name: golden.expected_digests()[name] for name in chosen}
    monkeypatch.setattr(golden, "expected_digests", lambda: digests)
    found = known(tmp_path, "verify")
    assert found["versions"] == VERSIONS
    assert found["figures"]["hold"]["reference"] == found["figures"]["digests"] == 2
    assert found["figures"]["differences"] == []
    assert {name.split()[0] for name in found["figures"]["hold"]} | {*found["figures"]["not_here"]} == {
        status.name for status in backends.available_backends()
    }
    changed = next(iter(chosen))
    digests[changed] = "0" * 64
    found = known(tmp_path, "verify", 1)["figures"]
    assert found["hold"]["reference"] == 1
    assert f"reference: {changed}" in found["differences"]


def test_sample(tmp_path: Path, capsys: CaptureText) -> None:
    words = f"sample --count 20 --steps 2 --sampler ddim --variant ortho --seed 5 --npz {tmp_path / 'x.npz'}"
    found = known(tmp_path, words)
    assert found["versions"] == VERSIONS
    assert found["seeds"] == {"first": 5, "last": 24}
    decided = {
        "batch_size": 20,
        "spacing": "quadratic",
        "scale": 0.72,
        "threads": 1,
        "npz": words.split()[-1],
    }
    assert {name: found["settings"][name] for name in decided} == decided
    assert not {"command", "json", "run"} & {*found["settings"]}
    figures = found["figures"]
    assert len(figures["moments"]["sigma"]) == 2
    assert figures["moments"]["verdict"] in (out := capsys.readouterr().out)
    assert f"20 samples in {figures['seconds']:.2f} s: {figures['samples_per_second']:.0f} samples/s" in out
    assert f"{figures['seconds_per_call']:.4f} s per call" in out
    with np.load(tmp_path / "x.npz") as arrays:
        samples = torch.from_numpy(arrays["samples"])
    assert figures["digit_fid"] == digit_fid(samples.clamp(-1, 1))  # to the last bit


def test_sample_into_shards(tmp_path: Path) -> None:
    words = f"sample --count 20 --steps 2 --batch-size 8 --shards {tmp_path / 'shards'}"
    first, again = known(tmp_path, words), known(tmp_path, words)
    for found, made in ((first, 3), (again, 0)):
        assert (found["figures"]["shards_made"], found["figures"]["shards_found"]) == (made, 3 - made)
        assert found["ranks"] == 1
    assert first["figures"]["digit_fid"] == again["figures"]["digit_fid"]


def test_compare(tmp_path: Path, capsys: CaptureText) -> None:
    words = f"compare --count 50 --steps 2 --eta 0 --batch-size 30 --output {tmp_path / 'x.png'}"
    found = known(tmp_path, words)
    assert found["versions"] == VERSIONS
    assert found["seeds"] == {"first": 0, "last": 49}
    assert (found["settings"]["batch_size"], found["settings"]["groups"]) == (30, 5)
    out = capsys.readouterr().out
    cells = found["figures"]
    assert [cell["method"] for cell in cells] == ["DDIM", "DDIM-GMM ortho", "DDIM + isotropic noise"]
    for cell in cells:
        groups = torch.tensor(cell["distance"]["groups"], dtype=torch.float64)
        mean, error = cell["distance"]["mean"], cell["distance"]["standard_error"]
        assert f"{cell['method']:22s}  {mean:8.2f} ± {error:5.2f}" in out
        assert mean == pytest.approx(float(groups.mean()), rel=1e-12)
        base = torch.tensor(cells[0]["distance"]["groups"], dtype=torch.float64)
        if cell["method"] == "DDIM":
            assert cell["difference"] is None
        else:
            assert cell["difference"]["mean"] == pytest.approx(float((groups - base).mean()), rel=1e-9)


def test_compare_where_moments_are_matched_exactly(tmp_path: Path) -> None:
    """The control has the scale that rho gives each step: none where the step draws no noise."""
    words = "compare --count 50 --steps 2 --eta 0 --variant exact --rho 0.5"
    cells = known(tmp_path, f"{words} --output {tmp_path / 'x.png'}")["figures"]
    assert {cell["distance"]["mean"] for cell in cells} == {cells[0]["distance"]["mean"]}


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": torch.tensor([1.5, -torch.inf]), "b": (float("nan"),)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, "-inf"], "b": ["nan"]}
    write_json(None, {})


@pytest.mark.parametrize("command", ["info", "verify", "sample", "compare"])
def test_the_file_is_tried_before_the_work(
    command: str, tmp_path: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert main([command, "--json", "taken/x.json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: --json: cannot write 'taken/x.json': ")
