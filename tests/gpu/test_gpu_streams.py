"""A call is one launch on the current stream: it can be captured, waits for nothing and allocates nothing needless."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import StepCase, assert_same_bits, assert_same_output, random_case
from layouts import DEVICE, moved

from gmmkernel import backends, draw_components, standard_normal
from gmmkernel.ops import GMMStepOutput

pytestmark = pytest.mark.gpu

_LONG = 50_000_000  # cycles of a device, some 30 ms


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one backend, then the other, for tensors on the device."""
    if request.param == "triton" and find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with backends.use(request.param):
        yield


def captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Return a graph of the work and what the work returned."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_case(seed: int, **options: Any) -> StepCase:
    case = random_case(
        seed, **({"batch": 4, "shape": (1000,), "components": 8, "per_sample": True} | options)
    )
    return replace(case, step=torch.tensor([1, 2, 3, 4]))


def on_cpu(output: GMMStepOutput) -> GMMStepOutput:
    return GMMStepOutput(*(None if tensor is None else tensor.cpu() for tensor in output))


@pytest.mark.parametrize("given_out", [True, False])
@pytest.mark.parametrize("everything", [True, False])
def test_graph_replays_with_what_its_tensors_hold_then(everything: bool, given_out: bool) -> None:
    options = {"guidance": everything, "history": 3 if everything else 0}
    options["prediction"] = "x0" if everything else None
    case = a_case(1, **options)
    own = moved(case)
    out = torch.empty_like(own.sample) if given_out else None
    graph, result = captured(lambda: own.run(out=out))
    assert out is None or result.prev_sample is out
    for seed in range(4):
        other = a_case(10 + seed, **options)
        # The same tensors with other values: model and sampler write them between two replays.
        case = replace(
            case, sample=other.sample.to(case.sample.dtype), row=other.row, step=other.step, seeds=other.seeds
        )
        for name in ("sample", "row", "step", "seeds"):
            getattr(own, name).copy_(getattr(case, name))
        graph.replay()
        assert_same_output(on_cpu(result), case.run())


def test_graph_of_a_loop_in_place() -> None:
    case = a_case(2, guidance=False, history=0, prediction=None, dtype=torch.float32)
    own = moved(case)
    start = own.sample.clone()
    step = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def loop() -> torch.Tensor:
        for _ in range(5):
            own.run(out=own.sample, step=step)
            step.add_(1)
        return own.sample

    graph, result = captured(loop)
    own.sample.copy_(start)
    step.fill_(100)
    graph.replay()
    expected = case.sample
    for index in range(100, 105):
        expected = case.run(sample=expected, step=index).prev_sample
    assert_same_bits(result.cpu(), expected)


def test_graph_of_noise_and_components() -> None:
    seeds = torch.arange(5, device=DEVICE)
    step = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    cdf = torch.tensor([[2**30, 2**31]])
    on_device = cdf.to(DEVICE)

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        return standard_normal(seeds, (3, 77), step=step), draw_components(seeds, on_device, step=step, row=0)

    graph, (noise, components) = captured(work)
    for number in (3, 2**32 - 1):
        seeds.add_(number)
        step.fill_(number)
        graph.replay()
        assert_same_bits(noise.cpu(), standard_normal(seeds.cpu(), (3, 77), step=number))
        assert_same_bits(components.cpu(), draw_components(seeds.cpu(), cdf, step=number, row=0))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_no_call_waits_for_the_device(as_tensor: bool) -> None:
    own = moved(a_case(3, guidance=True, history=2, prediction="x0"))
    row: Any = own.row if as_tensor else 1
    step: Any = own.step if as_tensor else 2
    tables = own.mixture
    assert tables is not None
    out = torch.empty_like(own.sample)
    with no_synchronisation():
        own.run(row=row, step=step)
        own.run(row=row, step=step, out=out)
        standard_normal(own.seeds, (100,), step=step)
        draw_components(own.seeds, tables.cdf, row=0, step=step)


def test_a_call_returns_before_the_device_is_done() -> None:
    own = moved(a_case(4))
    out = torch.empty_like(own.sample)

    def work() -> None:
        own.run(out=out)
        standard_normal(own.seeds, (100,))

    work()  # a kernel's first launch loads it, which may wait
    behind = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(_LONG)
    work()
    behind.record()
    assert not behind.query()


def test_a_step_with_out_allocates_nothing() -> None:
    own = moved(a_case(5, prediction=None))
    out = torch.empty_like(own.sample)

    def allocations_of_three_calls() -> int:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        own.run(out=out, return_components=False)
        own.run(out=own.sample, return_components=False)
        standard_normal(own.seeds, own.sample.shape[1:], dtype=out.dtype, out=out)
        return int(torch.cuda.memory_stats()["allocation.all.allocated"] - before)

    assert allocations_of_three_calls() == 0
    _, captured_allocations = captured(allocations_of_three_calls)
    assert captured_allocations == 0


def test_work_is_on_the_current_stream() -> None:
    """The input is written late on the stream: a step anywhere else would read what was there before."""
    case = a_case(6)
    expected = case.run()
    own = moved(case)
    late = own.sample.clone()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for stream in streams:
        own.sample.fill_(3)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(_LONG)
            own.sample.copy_(late)
            result = own.run()
        stream.synchronize()
        assert_same_output(on_cpu(result), expected)


def test_two_streams_at_once() -> None:
    cases = [a_case(seed, shape=(20000,)) for seed in (7, 8)]
    owns = [moved(case) for case in cases]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results: list[list[GMMStepOutput]] = [[], []]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, own, kept in zip(streams, owns, results, strict=True):
            with torch.cuda.stream(stream):
                kept.append(own.run())
    torch.cuda.synchronize()
    for case, kept in zip(cases, results, strict=True):
        expected = case.run()
        for result in kept:
            assert_same_output(on_cpu(result), expected)


def test_two_threads_at_once() -> None:
    cases = [a_case(seed) for seed in (9, 10)]
    expected = [case.run() for case in cases]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            own = moved(cases[number])
            with torch.cuda.stream(torch.cuda.Stream()):
                # What the stream computes on was written on the default one.
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                for _ in range(50):
                    assert_same_output(on_cpu(own.run()), expected[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
