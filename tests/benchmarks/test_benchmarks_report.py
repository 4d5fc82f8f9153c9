"""The benchmarks' runner measures as it says, and reports what it measured. No timing is ever a test."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import machine, runner, targets, timers
from benchmarks.baselines import Unavailable
from benchmarks.cases import Case, Prepared, all_cases, select_cases
from benchmarks.figures import Figure, Results
from benchmarks.report import as_json, figures_text, host_cost_text, targets_text
from benchmarks.targets import HOST_SHAPE, LARGE_SHAPE, SMALL_SHAPE, TARGETS, judge
from benchmarks.workload import Workload
from gmmkernel.backends import cpu

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases()}


# How it is measured


class FakeTimer:
    """A clock on which every call takes a millisecond; it notes who calls what."""

    def __init__(self, log: list[tuple[str, int, bool, bool]]) -> None:
        self.log = log

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        chosen = list(indices)
        for index in chosen:
            if before is not None:
                before()
            name = str(call(index))
            self.log.append((name, index, len(chosen) > 1, gc.isenabled()))
        return [0.001] * len(chosen)


def counting_case(name: str, contexts: list[str]) -> Case:
    @contextmanager
    def context() -> Iterator[None]:
        contexts.append(name)
        yield
        contexts.append("left " + name)

    def build(_: Workload, __: torch.dtype) -> Prepared:
        return Prepared(lambda index: name, 5, context)  # type: ignore[arg-type, return-value]

    return Case(name, "counts", torch.float32, build)


def test_runner_interleaves_cases_in_blocks(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    log: list[tuple[str, int, bool, bool]] = []
    contexts: list[str] = []
    monkeypatch.setattr(runner, "timer_for", lambda _: FakeTimer(log))
    plan = runner.Plan(rounds=6, settle_seconds=0.0025, block_seconds=0.0045, most_calls=10)
    set_threads(1)

    def refuse(_: Workload, __: torch.dtype) -> Prepared:
        raise Unavailable("not here")

    cases = [counting_case(name, contexts) for name in "abc"]
    cases.append(Case("d", "cannot be had", torch.float32, refuse))
    lines: list[str] = []
    results = runner.measure(cases, [(2, 3)], [2], plan, lines.append, CPU)

    assert torch.get_num_threads() == 1
    assert gc.isenabled()
    assert len(lines) == 1
    assert [(m.case, m.threads, m.reason) for m in results.missing] == [("d", 2, "not here")]
    assert [figure.case for figure in results.figures] == ["a", "b", "c"]
    for figure in results.figures:
        assert figure.rounds == [[0.001] * 4] * 6  # 4 calls fit into 4.5 ms
        assert figure.threads == 2
        assert figure.bytes_per_element == 5 / 6

    rounds = log[9:]  # after three warm-up calls of each
    assert [entry[0] for entry in log[:9]] == list("aaabbbccc")
    assert not any(enabled for _, _, _, enabled in rounds)
    blocks = [rounds[i : i + 7] for i in range(0, len(rounds), 7)]  # 3 calls until 2.5 ms are over, then 4
    assert len(blocks) == 18
    orders = set()
    for r in range(6):
        turns = blocks[3 * r : 3 * r + 3]
        assert all(len({name for name, *_ in block}) == 1 for block in turns)
        orders.add(tuple(block[0][0] for block in turns))
        assert sorted(block[0][0] for block in turns) == list("abc")
        for block in turns:
            assert [timed for _, _, timed, _ in block] == [False] * 3 + [True] * 4
            # Timed calls of a round have the same steps of the noise counter in every case.
            assert [index for _, index, _, _ in block[3:]] == [10 * (r + 1) + i for i in range(4)]
    assert len(orders) > 1
    assert len(contexts) == 2 * (3 + 18)
    assert all(left == "left " + entered for entered, left in zip(contexts[::2], contexts[1::2], strict=True))


def test_runner_sets_the_number_of_threads_and_forbids_gradients(set_threads: Callable[[int], None]) -> None:
    seen = []

    def build(_: Workload, __: torch.dtype) -> Prepared:
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return Prepared(lambda _: torch.ones(1), 4)

    set_threads(1)
    plan = runner.Plan(rounds=1, settle_seconds=0, block_seconds=0, most_calls=2)
    case = Case("threads", "", torch.float32, build)
    results = runner.measure([case], [(1, 2), (2, 2)], [1, 2], plan, lambda _: None, CPU)
    assert seen == [(1, False), (2, False)] * 2
    assert [(f.shape, f.threads) for f in results.figures] == [
        ((1, 2), 1),
        ((1, 2), 2),
        ((2, 2), 1),
        ((2, 2), 2),
    ]
    assert all(len(f.rounds[0]) == 2 for f in results.figures)


def test_wall_clock_times_each_call_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def wait(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    monkeypatch.setattr(timers.time, "perf_counter_ns", lambda: now)
    seconds = timers.timer_for(CPU).durations(wait, [3, 50, 700], lambda: wait(10**6))
    assert seconds == pytest.approx([3e-9, 5e-8, 7e-7])
    assert timers.timer_for(CPU).durations(wait, [9], None) == pytest.approx([9e-9])
    with pytest.raises(ValueError, match=r"device: expected one of \['cpu', 'cuda'\], got 'meta'"):
        timers.timer_for(torch.device("meta"))


# What is reported


def figure(case: str, shape: tuple[int, ...], rounds: list[list[float]], threads: int = 2) -> Figure:
    return Figure(case, shape, threads, 1000, rounds)


def test_figure_takes_medians_and_percentiles_of_every_call() -> None:
    made = figure("x", (2, 5), [[1.0, 2.0, 3.0], [4.0, 5.0, 60.0]])
    assert made.median == 3.5
    assert (made.p20, made.p80) == (2.0, 5.0)
    assert made.round_medians == [2.0, 5.0]
    assert made.ns_per_element == pytest.approx(3.5e8)
    assert made.bytes_per_element == 100
    assert made.gigabytes_per_second == pytest.approx(1000 / 3.5 * 1e-9)


def test_targets_name_cases_that_exist() -> None:
    for target in TARGETS:
        for name in (target.numerator, target.denominator):
            known = name is None or name in CASES or "avx" in name
            assert known, name


@pytest.mark.parametrize(
    ("numerator", "outcomes"),
    [(0.0119, ["unmet", ""]), (0.01201, ["PASS", ""])],
)
def test_targets_are_judged_by_the_ratio_of_medians(numerator: float, outcomes: list[str]) -> None:
    results = Results(
        [
            figure("diffusers/K1/new/float32", LARGE_SHAPE, [[numerator] * 2, [numerator] * 2]),
            figure("gmm_step/K8/out/float32", LARGE_SHAPE, [[0.001, 0.001], [0.001, 0.002]]),
            figure("gmm_step/K8/new/float32", LARGE_SHAPE, [[0.001], [0.001]]),
            figure("gmm_step/K8/out/float32", SMALL_SHAPE, [[0.001]], threads=1),
        ],
        [],
    )
    verdicts = judge(results)
    assert [v.outcome for v in verdicts[:2]] == outcomes
    assert verdicts[0].value == pytest.approx(numerator / 0.001)
    assert (verdicts[0].low, verdicts[0].high) == pytest.approx(
        (numerator / 0.0015 + 0.2 * (numerator / 0.001 - numerator / 0.0015),
         numerator / 0.0015 + 0.8 * (numerator / 0.001 - numerator / 0.0015))
    )  # fmt: skip
    assert {v.outcome for v in verdicts[2:]} == {"not measured"}
    assert outcomes[0] in targets_text(verdicts)


def test_upper_bounds_and_microseconds() -> None:
    host = figure("gmm_step/K8/new/float32", HOST_SHAPE, [[9e-6, 10e-6, 11e-6]])
    slow = replace(host, rounds=[[11e-6]])
    for made, outcome, value in ((host, "PASS", 10.0), (slow, "unmet", 11.0)):
        verdict = judge(Results([made], []))[-1]
        assert (verdict.outcome, verdict.value) == (outcome, pytest.approx(value))
        assert verdict.bound == "<= 10"
    assert "10.00" in host_cost_text(Results([host], []))
    assert figures_text(Results([host], [])) == ""


def test_what_is_added_is_a_difference() -> None:
    made = [
        figure("scheduler/K8/new/float32", SMALL_SHAPE, [[50e-6, 60e-6], [90e-6, 90e-6]]),
        figure("gmm_step/K8/new/float32", SMALL_SHAPE, [[40e-6, 40e-6], [70e-6, 70e-6]]),
    ]
    (verdict,) = (v for v in judge(Results(made, [])) if v.target.added)
    assert verdict.value == pytest.approx(75 - 55)
    assert (verdict.low, verdict.high) == pytest.approx((16, 19))
    assert (verdict.bound, verdict.outcome) == ("<= 25", "PASS")


def test_machine_is_described() -> None:
    described = machine.describe(CPU)
    assert described["instruction_sets"] == cpu.instruction_sets()
    assert described["cpu_model"]
    assert described["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert len(machine.load_average()) == 3


def test_command_writes_table_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command, "QUICK", runner.Plan(rounds=2, settle_seconds=0, block_seconds=0, most_calls=2)
    )
    where = tmp_path / "deep" / "out"
    arguments = [
        "--quick",
        "--cases",
        "gmm_step/K[18]/*",
        "copy/*",
        "--sizes",
        "1x4x1x1",
        "2x3x5",
        "--threads",
        "1",
    ]
    assert command.main([*arguments, "--output", str(where)]) == 0
    printed = capsys.readouterr()
    assert "2x3x5, 1 thread\n" in printed.out
    assert "cost of one call (1x4x1x1)" in printed.out
    assert "not measured" in printed.out
    assert (where / "results.txt").read_text() in printed.out + "\n"
    assert (where / "results.png").read_bytes().startswith(b"\x89PNG\r\n")
    data = json.loads((where / "results.json").read_text())
    assert data["environment"]["plan"]["rounds"] == 2
    assert len(data["environment"]["load_before"]) == len(data["environment"]["load_after"]) == 3
    assert len(data["figures"]) == 2 * len(select_cases(["gmm_step/K[18]/*", "copy/*"]))
    for measured in data["figures"]:
        assert measured["case"] in CASES
        assert 0 < measured["least_s"] <= measured["p20_s"] <= measured["median_s"] <= measured["p80_s"]
        assert len(measured["round_medians_s"]) == 2
    assert [t["label"] for t in data["targets"]] == [target.label for target in targets.TARGETS]


def test_command_tries_its_folder_before_and_keeps_its_figures_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no fonts")

    (tmp_path / "taken").touch()
    words = ["--quick", "--cases", "copy/out/float32", "--sizes", "2x3x5", "--threads", "1", "--output"]
    with monkeypatch.context() as context:
        context.setattr(command, "measure", fail)
        with pytest.raises(SystemExit):
            command.main([*words, str(tmp_path / "taken" / "out")])
    assert "--output: cannot write in " in capsys.readouterr().err
    monkeypatch.setattr(command, "QUICK", runner.Plan(1, 0, 0, 1))
    monkeypatch.setattr(command, "write_plot", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        command.main([*words, str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("results.*")) == ["results.json", "results.txt"]
    assert (tmp_path / "results.txt").read_text(encoding="utf-8") in capsys.readouterr().out


def test_json_keeps_what_could_not_be_measured() -> None:
    missing = runner.Missing("diffusers/K1/new/float32", (1, 2), 1, "not installed")
    results = Results([], [missing])
    assert as_json(results, {})["missing"][0]["reason"] == "not installed"
    assert "not installed" in figures_text(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nothing"], "no case matches 'nothing'"),
        (["--sizes", "16"], "expected B x further sizes, like 16x3x256x256, got '16'"),
        (["--sizes", "0x4"], "got '0x4'"),
        (["--threads", "0"], "the processors here, got '0'"),
        (["--threads", "100000"], "the processors here, got '100000'"),
    ],
)
def test_command_refuses_what_it_cannot_do(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main([*arguments, "--output", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)
