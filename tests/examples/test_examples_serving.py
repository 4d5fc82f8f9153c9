"""examples/continuous_batching.py: every request has its own bits, no slot waits for another, no tick for the host."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from examples import continuous_batching
from examples.continuous_batching import Engine, Network, Request, elementwise, make_kinds, make_requests
from gmmkernel import DDIMSampler, MixtureTables
from gmmkernel.digits import IMAGE_SHAPE, NULL_CLASS, load_unet
from gmmkernel.samplers import StackedSamplers


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def alone(sampler: DDIMSampler, request: Request) -> Tensor:
    def model(sample: Tensor, timestep: Tensor) -> Any:
        output, uncond = (
            elementwise(sample, timestep, torch.tensor([n])) for n in (request.label, NULL_CLASS)
        )
        return (uncond, output) if sampler.guided else output

    return sampler.sample(model, torch.tensor([request.seed]), IMAGE_SHAPE, progress=False).sample[0]


def steps_of(samplers: list[DDIMSampler], requests: list[Request]) -> list[int]:
    return [len(samplers[request.kind].timesteps) for request in requests]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 8, 40])
def test_every_sample_has_the_bits_of_its_request_alone(slots: int, guided: bool) -> None:
    samplers = make_kinds("cpu", guided=guided)
    requests = make_requests(25, len(samplers), seed=slots)
    assert {request.kind for request in requests} == set(range(len(samplers)))
    engine = Engine(elementwise, samplers, slots)
    for static in (False, True, False):  # again with what the slots had before
        served = engine.serve(requests, static=static)
        for request, sample in zip(requests, served.samples, strict=True):
            assert_same_bits(sample, alone(samplers[request.kind], request))
        assert served.use * served.ticks * slots == pytest.approx(sum(steps_of(samplers, requests)))


def test_a_free_slot_is_taken_at_once_or_by_all_together() -> None:
    samplers = make_kinds("cpu", guided=False)
    requests = [Request(kind, 0, seed) for seed, kind in enumerate((2, 0, 0, 0, 0, 1, 0))]
    engine = Engine(elementwise, samplers, 2)
    assert steps_of(samplers, requests) == [20, 5, 5, 5, 5, 10, 5]
    assert engine.serve(requests).ticks == 30  # 20 + 10, and 5 + 5 + 5 + 5 + 5 beside them
    assert engine.serve(requests, static=True).ticks == 20 + 5 + 10 + 5


class NothingIsReadBack(TorchDispatchMode):
    """Fails on what makes a host wait for its device: a value, or a size that depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        namespace, name = function.name().split("::")
        self.seen.add(f"{namespace}::{name.split('.')[0]}")
        assert name.split(".")[0] not in self.FORBIDDEN, f"{name} reads a value back"
        device = (options or {}).get("device")
        assert device is None or torch.device(device).type == "cpu"
        return function(*given, **(options or {}))


NETWORKS: dict[str, Callable[[], Network]] = {"elementwise": lambda: elementwise, "digits": load_unet}


def reading(sample: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    return elementwise(sample, timesteps, labels) * float(labels[0])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_tick_reads_nothing_back(name: str, guided: bool) -> None:
    engine = Engine(NETWORKS[name](), make_kinds("cpu", guided=guided), 3)
    for slot in range(2):
        engine.admit(slot, Request(slot, slot, slot))
    with NothingIsReadBack() as watched:
        engine.tick()
        engine.admit(2, Request(1, 3, 5))
    assert {"gmmkernel::gmm_step", "aten::index_select", "gmmkernel::standard_normal"} <= watched.seen


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("network", [elementwise, reading])
def test_a_tick_works_on_tensors_without_values(network: Network, guided: bool) -> None:
    """The network that reads one is found out, by this and by the test above."""
    engine = Engine(network, make_kinds("cpu", guided=guided), 3)
    if network is reading:
        with (
            pytest.raises(AssertionError, match="_local_scalar_dense reads a value back"),
            NothingIsReadBack(),
        ):
            engine.tick()
    with FakeTensorMode() as fake:

        def without_values(value: Any) -> Any:
            if isinstance(value, MixtureTables):
                return MixtureTables(*map(without_values, value))
            return fake.from_tensor(value) if isinstance(value, Tensor) else value

        stack = {field: without_values(value) for field, value in vars(engine.stack).items()}
        engine.__dict__.update({name: without_values(value) for name, value in vars(engine).items()})
        engine.stack = StackedSamplers(**stack)
        expected = (
            pytest.raises(DataDependentOutputException) if network is reading else contextlib.nullcontext()
        )
        with expected:
            engine.tick()


def test_all_state_stays_where_a_graph_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured tick is a list of addresses; this one is "captured" by stand-ins for CUDA's graphs."""
    engine: Engine

    class Graph:
        def replay(self) -> None:
            replayed.append(1)
            engine.tick()

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    replayed: list[int] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    samplers = make_kinds("cpu")
    engine = Engine(elementwise, samplers, 3, graph=True)
    assert (engine.rows == engine.stack.idle_row).all()
    assert (engine.samples == 0).all()  # what warmed up the tick was harmless

    def addresses() -> dict[str, int]:
        return {name: value.data_ptr() for name, value in vars(engine).items() if isinstance(value, Tensor)}

    before = addresses()
    requests = make_requests(7, 4, seed=2)
    served = engine.serve(requests)
    assert len(replayed) == served.ticks
    assert addresses() == before
    for request, sample in zip(requests, served.samples, strict=True):
        assert_same_bits(sample, alone(samplers[request.kind], request))


def test_the_table_says_which_bits_agree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--requests", "24", "--slots", "4", "--repeats", "1", "--network"]
    row = re.compile(r"^(\w[\w ]*?) +(\d+) +([\d.]+)% +([\d.]+) +(\d+)/24 +(\S+)$", re.MULTILINE)
    for network in ("elementwise", "digits"):
        continuous_batching.main([*words, network])
        rows = {name: figures for name, *figures in row.findall(capsys.readouterr().out)}
        assert list(rows) == ["one by one", "by kind", "static slots", "continuous"]
        samplers = make_kinds("cpu")
        total = sum(steps_of(samplers, make_requests(24, 4, 0)))
        assert int(rows["one by one"][0]) == total
        assert int(rows["continuous"][0]) < int(rows["static slots"][0]) < total
        for ticks, use, _, same, difference in rows.values():
            assert float(use) <= 100
            assert float(difference) < 1e-3
            if network == "elementwise":
                assert (same, float(difference)) == ("24", 0)
            assert int(ticks) >= total / 4


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        continuous_batching.main(["--slots", "0"])
    assert "--slots: expected at least 1, got 0" in capsys.readouterr().err
