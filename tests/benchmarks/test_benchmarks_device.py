"""The benchmarks of an accelerator, rehearsed on the CPU: what is measured, how, and what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import device_cases as device_module
from benchmarks import device_run, device_workload, runner, targets, timers
from benchmarks.baselines import Unavailable
from benchmarks.cases import Case, Prepared, select_cases
from benchmarks.device_cases import device_backends, device_cases
from benchmarks.device_targets import device_targets
from benchmarks.figures import Figure, Results
from benchmarks.report import figures_text
from benchmarks.targets import judge
from gmmkernel import gmm_step

CPU = torch.device("cpu")


def device_case(name: str) -> Case:
    (found,) = (case for case in device_cases("cpu") if case.name == name)
    return found


def test_device_cases_are_of_every_backend_and_type() -> None:
    names = [case.name for case in device_cases("cuda")]
    assert len(set(names)) == len(names)
    for backend in device_backends("cuda"):
        for type_name in ("float32", "bfloat16", "float16"):
            for variant in (
                "K1-*/out",
                "K8-*/out",
                "K8-*/new",
                "K1024-*/out",
                "K8-*-host/out",
                "K8-*-graph/out",
            ):
                assert f"gmm_step/{variant.replace('*', backend)}/{type_name}" in names
    for target in device_targets(device_backends("cuda")):
        for name in (target.numerator, target.denominator):
            assert name is None or name in names


def test_rotating_workload_fills_the_cache_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_workload, "l2_bytes", lambda _: 10_000)
    workload = device_workload.RotatingWorkload((2, 3, 8, 8), CPU)
    sets = workload.sets(torch.float32)
    assert sum(tensor.nbytes for one in sets for tensor in one) > 20_000
    assert len({tensor.data_ptr() for one in sets for tensor in one}) == 3 * len(sets)
    for sample, model_output, _ in sets:
        assert torch.equal(sample, workload.inputs(torch.float32)[0])
        assert torch.equal(model_output, workload.inputs(torch.float32)[1])
    assert len(workload.sets(torch.float64)) >= 2
    monkeypatch.setattr(device_workload, "_LARGEST_TABLE", 4 * 8 * 192)
    workload.mixture(8)
    with pytest.raises(Unavailable, match="offsets of 9 components"):
        workload.mixture(9)


def test_device_steps_are_the_step_they_say() -> None:
    workload = device_workload.RotatingWorkload((3, 1, 7, 9), CPU)
    for name, components in (
        ("K1-cpu/out", 0),
        ("K8-cpu/out", 8),
        ("K8-cpu/new", 8),
        ("K8-cpu-guided/out", 8),
    ):
        for type_name in ("float32", "bfloat16"):
            case = device_case(f"gmm_step/{name}/{type_name}")
            sample, model_output = workload.inputs(case.dtype)
            expected = gmm_step(
                sample, model_output, workload.coefficients, row=0, step=5, seeds=workload.seeds,
                mixture=workload.mixture(components) if components else None,
                model_output_uncond=model_output if "guided" in name else None,
            ).prev_sample  # fmt: skip
            ready = case.build(workload, case.dtype)
            assert torch.equal(ready.call(5), expected)
            tensors = 4 if "guided" in name else 3
            rows = 8 * (1 - (7 / 8) ** 3) + 1 if components else 0  # those that 3 samples draw, and the std
            assert ready.bytes == int(tensors * 3 * 63 * case.dtype.itemsize + int(rows * 63 * 4))


def test_device_launches_are_those_of_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = device_workload.RotatingWorkload((3, 1, 7, 9), CPU)
    calls: list[tuple[Any, ...]] = []

    def step(sample: torch.Tensor, model_output: torch.Tensor, *rest: Any, **named: Any) -> Any:
        history = [stored.dtype for stored in named["history"]]
        calls.append((sample.dtype, model_output.dtype, history, named["prediction"]))
        return gmm_step(sample, model_output, *rest, **named)

    monkeypatch.setattr(device_module, "gmm_step", step)
    single, half = torch.float32, torch.bfloat16
    for name, expected, elements in (
        ("x0/out/bfloat16", (half, half, [], "x0"), 4 * 2),
        ("mixed/out/float32", (single, half, [], None), 2 * 4 + 2),
        ("mixed/out/bfloat16", (half, single, [], None), 2 * 2 + 4),
        ("stored2-x0/out/float32", (single, single, [single] * 2, "x0"), 6 * 4),
    ):
        case = device_case(f"gmm_step/K1-cpu-{name}")
        ready = case.build(workload, case.dtype)
        ready.call(1)
        assert calls[-1] == expected
        assert ready.bytes == 3 * 63 * elements


def test_device_case_that_fails_is_missing_with_the_reason() -> None:
    workload = device_workload.RotatingWorkload((1, 4), CPU)
    case = device_case("gmm_step/K8-cpu-graph/out/float32")
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        case.build(workload, case.dtype)
    workload.seeds = torch.arange(2)
    case = device_case("gmm_step/K8-cpu/out/float32")
    with pytest.raises(Unavailable, match="ValueError: seeds: expected one for each of 1 samples"):
        case.build(workload, case.dtype)


def test_rates_are_compared_by_bytes_per_second() -> None:
    results = Results(
        [
            Figure("a", (2, 5), 1, 3000, [[0.002, 0.002]]),
            Figure("b", (2, 5), 1, 2000, [[0.001, 0.001]]),
        ],
        [],
    )
    verdict = judge(results, [targets.Target("", (2, 5), "a", "b", at_least=0.75, rates=True)], 1)[0]
    assert (verdict.value, verdict.low, verdict.high) == pytest.approx((0.75, 0.75, 0.75))
    assert "75.0%" in figures_text(
        Results([replace(f, case=f"{f.case}/float32") for f in results.figures], []), share_of="b"
    )


def test_cuda_events_time_a_block_behind_an_untimed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.when = len(calls)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return float(other.when - self.when)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = timers.timer_for(torch.device("cuda"))
    assert timer.durations(calls.append, [4, 5, 6], None) == pytest.approx([1e-3] * 3)
    assert calls == [4, 4, 5, 6]
    assert timer.durations(calls.append, [7], None) == pytest.approx([1e-3])
    assert calls[4:] == [7]


def test_host_clock_waits_between_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def wait(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    monkeypatch.setattr(timers.time, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: wait(10**6))
    assert timers.HostClock().durations(wait, [5] * 70, None) == pytest.approx([5e-9] * 70)
    assert now == 350 + 4 * 10**6


def test_figures_of_repeated_work_are_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Milliseconds:
        def durations(self, call: object, indices: Sequence[int], before: object) -> list[float]:
            return [0.001 for _ in indices]

    monkeypatch.setattr(runner, "timer_for", lambda _: Milliseconds())
    case = Case("a", "", torch.float32, lambda *_: Prepared(lambda _: torch.ones(1), 4, repeats=4))
    plan = runner.Plan(rounds=1, settle_seconds=0, block_seconds=0, most_calls=2)
    (made,) = runner.measure([case], [(1, 2)], [1], plan, lambda _: None, CPU).figures
    assert made.rounds == [[0.00025, 0.00025]]


def test_device_run_writes_after_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = runner.Plan(rounds=2, settle_seconds=0, block_seconds=0, most_calls=2)
    cases = select_cases(["gmm_step/K8-cpu/*/float16", "copy/*/float16"], device_cases("cpu"))
    cases.append(replace(cases[0], name="gmm_step/short/float16", largest=10))
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        assert len(lines) == 1 or (tmp_path / "results.json").exists()

    device_run.run_on_device(cases, [(2, 3, 5), (1, 5), (1, 4)], plan, tmp_path, CPU, progress)
    data = json.loads((tmp_path / "results.json").read_text())
    assert [tuple(made["shape"]) for made in data["figures"]] == [(2, 3, 5)] * 3 + [(1, 5)] * 4 + [(1, 4)] * 4
    assert "of copy/out" in capsys.readouterr().out
    assert (tmp_path / "results.png").exists()
    device_run.run_on_device(cases, [(1, 5)], plan, tmp_path, CPU, progress, minutes=-1)
    assert "not begun" in (tmp_path / "results.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_command_says_that_there_is_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda", "--output", str(tmp_path / "out")])
    assert "torch finds no CUDA device here" in capsys.readouterr().err
    assert command.main(["--device", "cuda", "--list"]) == 0
    assert "randn/out/float16" in capsys.readouterr().out
