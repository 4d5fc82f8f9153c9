"""Which devices the CUDA backends compute on: by their compute capability, each device for itself."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gmmkernel import backends, golden
from gmmkernel.backends.devices import capability_of, runs_code
from gmmkernel.cli import main

DEVICES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
FULL = "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_80 compute_120"
Machine = Callable[..., None]


@pytest.mark.parametrize(
    ("architectures", "running"),
    [
        (FULL, DEVICES[1:]),
        # What has PTX of the highest alone leaves a gap: no code of another major capability runs on sm_110.
        ("sm_80 sm_86 sm_90 sm_100 sm_120 compute_120", (80, 86, 87, 89, 90, 100, 103, 120, 121)),
        ("sm_80 sm_90", (80, 86, 87, 89, 90)),
        ("sm_86", (86, 87, 89)),
        ("sm_103", (103,)),
        ("sm_100", (100, 103)),
        ("sm_121", (121,)),
        ("sm_90 compute_90", (90, 100, 103, 110, 120, 121)),
        ("compute_110", (110, 120, 121)),
        ("sm_75 compute_75", DEVICES),
        ("", ()),
    ],
)
def test_code_runs_where_nvidias_rules_say(architectures: str, running: tuple[int, ...]) -> None:
    assert tuple(number for number in DEVICES if runs_code(divmod(number, 10), architectures)) == running


def compiled() -> Any:
    """Return the compiled backend: an extension that is there and does not load is an error, and no skip."""
    if importlib.util.find_spec("gmmkernel._cuda") is None:
        pytest.skip("the extension gmmkernel._cuda is missing: built without nvcc")
    return importlib.import_module("gmmkernel.backends.cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Give a function that puts CUDA devices of some capabilities into this machine, as far as PyTorch tells."""
    cuda = compiled()
    pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
    importlib.import_module("gmmkernel.backends.triton")
    monkeypatch.setattr("gmmkernel.backends.triton.availability.PTX", True)

    def put(*capabilities: int, architectures: str = FULL, current: int = 0) -> None:
        for name, value in {
            "is_available": lambda: len(capabilities) > 0,
            "device_count": lambda: len(capabilities),
            "current_device": lambda: current,
            "get_device_capability": lambda index: divmod(capabilities[index], 10),
            "get_device_name": lambda index: f"Device {index}",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(cuda._cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(cuda._cuda, "architectures", architectures)
        forget()

    def forget() -> None:
        capability_of.cache_clear()
        backends._preferred.clear()
        backends._refusals.clear()
        cuda._has_code.clear()

    yield put
    forget()


def test_the_tensors_device_decides(machine: Machine) -> None:
    machine(90, 75, 80, architectures="sm_90 compute_90", current=2)
    assert backends.resolve(torch.device("cuda", 0)) == "cuda"
    assert backends.resolve(torch.device("cuda", 2)) == "triton"  # which has no code compiled for others only
    assert backends.resolve("cuda") == "triton"  # the current device
    with pytest.raises(RuntimeError) as caught:
        backends.resolve(torch.device("cuda", 1))
    assert "no backend is available for 'cuda:1' tensors" in str(caught.value)
    assert "sm_75 runs none of the code that was compiled: sm_90 compute_90" in str(caught.value)
    assert "the kernels' instructions begin with sm_80, and this is sm_75" in str(caught.value)
    assert backends.resolve(torch.device("cuda", 0), "triton") == "triton"
    for name, index, reason in (("cuda", 1, "sm_75 runs"), ("cuda", 2, "sm_80 runs"), ("triton", 1, "sm_75")):
        with pytest.raises(
            RuntimeError, match=f"backend: '{name}' is not available for .* device: .*{reason}"
        ):
            backends.resolve(torch.device("cuda", index), name)
        with (
            backends.use(name),  # it can be used here, elsewhere
            pytest.raises(RuntimeError, match=f"backend: '{name}' is not available for"),
        ):
            backends.resolve(torch.device("cuda", index))


def test_the_current_device_is_looked_up_in_each_call(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(90, 80, architectures="sm_90 compute_90")
    assert backends.resolve("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert backends.resolve("cuda") == "triton"


def test_info_and_statuses_tell_of_each_device(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine(110, 75)
    found = {status.name: status for status in backends.available_backends()}
    for name in ("cuda", "triton"):
        assert found[name].available
        assert found[name].devices == (torch.device("cuda", 0),)
        assert "; cuda:0 Device 0 (sm_110); cuda:1 Device 1 (sm_75) cannot: " in found[name].detail
    assert f"code for {FULL}; " in found["cuda"].detail
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\ncpu tensors use: cpu\ncuda:0 tensors use: cuda\ncuda:1 tensors: no backend\n")

    machine(75)
    assert [status.name for status in backends.available_backends() if status.available] == [
        "cpu",
        "reference",
    ]
    with pytest.raises(
        RuntimeError, match=r"backend: 'triton' is not available here: .*sm_75.*begin with sm_80"
    ):
        backends.use("triton").__enter__()


def test_verify_takes_a_device_that_runs_the_code(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(75, 90)
    seen: list[tuple[str, str]] = []

    def case(backend: str, device: str) -> list[Any]:
        seen.append((backend, device))
        return []

    monkeypatch.setattr(golden, "cases", lambda: iter([("one", case)]))
    monkeypatch.setattr(golden, "expected_digests", lambda: {"one": golden.digest([])})
    assert main(["verify"]) == 0
    assert seen[-3:] == [("reference", "cpu"), ("cuda", "cuda:1"), ("triton", "cuda:1")]


def test_a_launch_on_a_device_without_code_says_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names its backend itself, as an exported program does, has not asked `resolve` here."""
    machine(90, 75)
    from gmmkernel.backends import cuda
    from gmmkernel.backends.triton import program

    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 5, raising=False)
    assert cuda._place(SimpleNamespace(get_device=lambda: 0)) == (0, 5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend: 'cuda' is not available for cuda:1: sm_75 runs none"):
        cuda._place(SimpleNamespace(get_device=lambda: 1))  # type: ignore[arg-type]

    target = SimpleNamespace(backend="cuda", arch=75)
    driver = SimpleNamespace(get_current_target=lambda: target)
    monkeypatch.setattr(program.triton.runtime.driver, "_active", driver)
    with pytest.raises(RuntimeError, match=r"backend: 'triton' .* begin with sm_80, and this is sm_75"):
        program.Program(program.triton.jit(launched)).launch((1, 1), 0, (), (), ())


def test_kernels_run_on_the_stream_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = compiled()
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 100 + device, raising=False)
    monkeypatch.setattr(cuda, "_has_code", {3})
    assert cuda._place(SimpleNamespace(get_device=lambda: 3)) == (3, 103)


def launched() -> None:
    raise AssertionError("nothing is compiled")


def test_traced_code_chooses_by_device_too() -> None:
    pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
    importlib.import_module("gmmkernel.backends.triton")

    @torch.compile(fullgraph=True, backend="eager")
    def chosen(x: torch.Tensor) -> tuple[torch.Tensor, str, str]:
        return x + 1, backends.resolve(x.device), backends.resolve(torch.device("cuda", 1), "triton")

    assert chosen(torch.zeros(1))[1:] == ("cpu", "triton")
