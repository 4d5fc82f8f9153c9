"""Which backend computes: the automatic choice, an explicit one, and the errors when it cannot be had."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import random_case

import gmmkernel
from gmmkernel import backends, standard_normal
from gmmkernel.backends import BackendStatus, SlowBackendWarning, constants, cpu
from gmmkernel.backends.constants import Column, Prediction, Stream

SEEDS = torch.tensor([1, 2])


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends that ran, in order."""
    names: list[str] = []
    load = backends.load

    def recording_load(name: str) -> object:
        names.append(name)
        return load(name)

    monkeypatch.setattr(backends, "load", recording_load)
    return names


def test_both_cpu_backends_are_here_and_say_what_they_are() -> None:
    found = {status.name: status for status in backends.available_backends()}
    assert list(found) == ["cpu", "reference", "cuda", "triton"]
    for name in ("cpu", "reference"):
        assert found[name].available
        assert found[name].device_type == "cpu"
    for name in ("cuda", "triton"):
        assert found[name].device_type == "cuda"
        assert found[name].detail
    assert all(name in found["cpu"].detail for name in cpu.instruction_sets())
    assert f"{torch.get_num_threads()} of " in found["cpu"].detail


def test_the_core_is_chosen_unless_another_backend_is_named(used: list[str]) -> None:
    standard_normal(SEEDS, (4,))
    standard_normal(SEEDS, (4,), backend="reference")
    with backends.use("reference"):
        standard_normal(SEEDS, (4,))
        standard_normal(SEEDS, (4,), backend="cpu")
        with backends.use("cpu"):
            random_case(0).run()
        random_case(0).run()
    gmmkernel.draw_components(SEEDS, torch.zeros(1, 1, dtype=torch.int64))
    gmmkernel.orthonormalize(torch.eye(2, dtype=torch.float64), backend="reference")
    step = ["reference"] * 2  # asked whether it does a step at once, which it does not
    assert used == ["cpu", "reference", "reference", "cpu", "cpu", *step, "cpu", "reference"]


def test_use_ends_with_its_block_whatever_happens_in_it(used: list[str]) -> None:
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    standard_normal(SEEDS, (4,))
    assert used == ["cpu"]


def test_a_backend_in_use_leaves_tensors_of_other_devices_alone(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = BackendStatus("cuda", "cuda", (torch.device("cuda", 0),), "")
    monkeypatch.setattr(backends, "_status", lambda name: there)
    with backends.use("cuda"):
        standard_normal(SEEDS, (4,))
    assert used == ["cpu"]
    if "cuda" not in backends._loaded:
        pytest.skip("the extension gmmkernel._cuda is missing: built without nvcc")
    with pytest.raises(ValueError, match="backend: 'cuda' computes on 'cuda' tensors, got 'cpu'"):
        standard_normal(SEEDS, (4,), backend="cuda")


def test_a_backend_that_finds_nothing_to_run_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "why_unusable", lambda device=None: "out of order")
    with pytest.raises(RuntimeError, match="backend: 'cpu' is not available here: out of order"):
        backends.use("cpu").__enter__()
    monkeypatch.setattr(backends, "_preferred", {})
    with pytest.warns(SlowBackendWarning, match="cannot be used: out of order. Where the reference"):
        assert backends.resolve("cpu") == "reference"


def test_a_backend_that_a_program_names_is_imported_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(backends._loaded, "reference")
    assert backends.load("reference").describe().startswith("the specification")
    monkeypatch.delitem(backends._loaded, "reference")
    monkeypatch.setitem(backends._missing, "reference", "no such library")
    with pytest.raises(RuntimeError, match="backend: 'reference' is not available here: no such library"):
        backends.load("reference")


@pytest.mark.parametrize("name", ["gpu", "CPU", "", 3])
def test_an_unknown_backend_is_named_with_those_there_are(name: object) -> None:
    message = re.escape(f"backend: expected one of ['cpu', 'reference', 'cuda', 'triton'], got {name!r}")
    with pytest.raises(ValueError, match=message):
        random_case(0).run(backend=name)
    with pytest.raises(
        ValueError,
        match=re.escape(f"name: expected one of ['cpu', 'reference', 'cuda', 'triton'], got {name!r}"),
    ):
        backends.use(name).__enter__()


def test_a_backend_that_is_missing_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(backends._loaded, "cpu")
    monkeypatch.setitem(backends._missing, "cpu", "ImportError: no such library")
    message = "backend: 'cpu' is not available here: ImportError: no such library"
    with pytest.raises(RuntimeError, match=message):
        standard_normal(SEEDS, (4,), backend="cpu")
    with pytest.raises(RuntimeError, match=message):
        backends.use("cpu").__enter__()
    status = backends.available_backends()[0]
    assert (status.name, status.available, status.detail) == ("cpu", False, "ImportError: no such library")


def test_without_the_compiled_core_the_reference_computes(tmp_path: Path) -> None:
    """It says so when it is first chosen, not when it is asked for, and once."""
    program = """
import sys, warnings
sys.modules["gmmkernel._core"] = None  # as where there is none
warnings.simplefilter("always")
caught = []
warnings.showwarning = lambda *said: caught.append(said[:2])
import torch, gmmkernel
from gmmkernel import backends
print([(s.name, s.available) for s in backends.available_backends()])
asked = [gmmkernel.standard_normal(torch.tensor([1]), (2,), backend="reference")]
with backends.use("reference"):
    asked.append(gmmkernel.standard_normal(torch.tensor([1]), (2,)))
try:
    gmmkernel.standard_normal(torch.tensor([1]), (2,), backend="cpu")
except RuntimeError as error:
    print(error)
print(len(caught))
noise = gmmkernel.standard_normal(torch.tensor([1]), (2,))
print(noise.tolist(), all(torch.equal(noise, other) for other in asked))
gmmkernel.draw_components(torch.tensor([1]), torch.zeros(1, 1, dtype=torch.int64))
print(backends.resolve("cpu"), backends.resolve(torch.device("cpu")))
ours = [(str(said), kind) for said, kind in caught if kind is backends.SlowBackendWarning]
print(len(ours), ours[0][0])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    status, error, before, noise, chosen, warned = result.stdout.splitlines()
    assert status.startswith("[('cpu', False), ('reference', True), ('cuda', False)")
    assert chosen == "reference reference"
    assert noise == f"{standard_normal(torch.tensor([1]), (2,)).tolist()} True"
    assert error.startswith("backend: 'cpu' is not available here: ")
    assert (
        "gmmkernel has no compiled core, _core; in a checkout `pip install --editable .` builds it" in error
    )
    assert before == "0"
    assert re.match(
        r"1 the NumPy reference computes .* hundred times slower .* cannot be used: .*_core", warned
    )


def test_without_the_core_compiled_code_has_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the poison of uninitialised memory, which the compiler cannot trace
    with monkeypatch.context() as without:
        without.delitem(backends._loaded, "cpu")
        without.setitem(backends._missing, "cpu", "ImportError: no such library")
        without.setattr(backends, "_preferred", {})
        torch._dynamo.reset()
        noise = torch.compile(standard_normal, fullgraph=True, backend="eager")
        with pytest.warns(SlowBackendWarning):
            made = noise(SEEDS, (2,))
        torch._dynamo.reset()
    assert torch.equal(made, standard_normal(SEEDS, (2,)))


def test_tensors_on_a_device_that_no_backend_serves_are_refused() -> None:
    case = random_case(0, components=0, per_sample=False).map_samples(lambda tensor: tensor.to("meta"))
    elsewhere = {"coefficients": case.coefficients.to("meta"), "seeds": case.seeds.to("meta")}
    with pytest.raises(
        ValueError, match=r"no backend computes on 'meta' tensors; devices supported: \['cpu', 'cuda'\]"
    ):
        case.run(row=0, step=0, **elsewhere)
    with pytest.raises(ValueError, match="backend: 'cpu' computes on 'cpu' tensors, got 'meta'"):
        case.run(row=0, step=0, backend="cpu", **elsewhere)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    assert cpu.instruction_sets()[0] == "portable"
    assert cpu.best_instruction_set() == cpu.instruction_sets()[-1]
    with pytest.raises(ValueError, match=r"name: expected one of \['portable'.*got 'neon9'"):
        cpu.use_instruction_set("neon9").__enter__()


def test_the_core_and_the_package_agree_on_every_number() -> None:
    from gmmkernel import _core

    assert {stream.name: stream.value for stream in Stream} == _core.STREAMS
    assert {kind.name: kind.value for kind in Prediction} == _core.PREDICTIONS
    shared = {column.name: column.value for column in Column if not column.name.startswith("HISTORY")}
    assert shared | {"HISTORY_0": int(Column.HISTORY_0)} == _core.COLUMNS
    header = (Path(__file__).parents[2] / "csrc/include/gmmkernel/gmmkernel.h").read_text()
    for name, value in {
        "GMM_MAX_COMPONENTS": constants.MAX_COMPONENTS,
        "GMM_MAX_HISTORY": constants.MAX_HISTORY,
        "GMM_ROW_COLUMNS": len(Column),
    }.items():
        assert f"#define {name} {value}\n" in header
