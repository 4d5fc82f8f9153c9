"""Measure cases side by side: rounds of short blocks, one block a case, in an order that changes every round.

A figure must be the case's own, and the figures of one pass comparable. Threads of PyTorch's OpenMP runtime spin for
up to about 10 ms after an operation and take a core from whoever comes next, and each case leaves its data in the
caches. So a block begins with calls that are not timed, until `settle_seconds` have passed, and only then come the
timed ones. Whatever slows the machine for a while slows all cases of a round.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.baselines import Unavailable
from benchmarks.cases import Case, Prepared
from benchmarks.figures import Figure, Missing, Results
from benchmarks.timers import Timer, timer_for
from benchmarks.workload import Workload

_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: how often each case has its turn.
        settle_seconds: each block begins with untimed calls for this long, at least one.
        block_seconds: each block has as many timed calls as fit into this time, at least two.
        most_calls: and at most this many.
    """

    rounds: int
    settle_seconds: float
    block_seconds: float
    most_calls: int


FULL = Plan(rounds=25, settle_seconds=0.015, block_seconds=0.015, most_calls=50)
QUICK = Plan(rounds=5, settle_seconds=0.015, block_seconds=0.005, most_calls=20)


class _Turn:
    """A case in a pass: its calls so far and its timed durations."""

    def __init__(self, case: Case, prepared: Prepared, timer: Timer) -> None:
        self.case = case
        self.prepared = prepared
        self.rounds: list[list[float]] = []
        self._timer = timer
        self._next = 0

    def run(self, calls: int) -> list[float]:
        indices = range(self._next, self._next + calls)
        self._next += calls
        return self._timer.durations(self.prepared.call, indices, self.prepared.before)

    def warm_up(self, plan: Plan) -> None:
        with self.prepared.context():
            duration = min(self.run(_WARM_UP_CALLS)[1:])
        self.calls = max(2, min(plan.most_calls, int(plan.block_seconds / duration)))

    def block(self, plan: Plan) -> None:
        with self.prepared.context():
            spent = sum(self.run(1))
            while spent < plan.settle_seconds:
                spent += sum(self.run(1))
            # The n-th timed call of a round has the same inputs for all cases.
            self._next = (len(self.rounds) + 1) * plan.most_calls
            self.rounds.append(self.run(self.calls))


def measure(
    cases: Sequence[Case],
    shapes: Sequence[tuple[int, ...]],
    thread_counts: Sequence[int],
    plan: Plan,
    report: Callable[[str], None],
    device: torch.device,
    make_workload: Callable[[tuple[int, ...], torch.device], Workload] = Workload,
) -> Results:
    """Measure every case at every size with every number of threads.

    Each size with each number of threads is a pass of its own; the cases of a pass share their inputs and take turns.

    Args:
        cases: what to measure.
        shapes: shapes of the batch.
        thread_counts: numbers of threads for torch and the package.
        plan: how long to measure.
        report: takes a line about progress; called between passes only.
        device: where to measure.
        make_workload: makes the inputs of a size.

    Returns:
        The figures, in the order measured.
    """
    results = Results([], [])
    before = torch.get_num_threads()
    try:
        for shape in shapes:
            workload = make_workload(shape, device)
            for threads in thread_counts:
                report(
                    f"{'x'.join(map(str, shape))}, {threads} thread{'s' * (threads > 1)}: {len(cases)} cases"
                )
                torch.set_num_threads(threads)
                with torch.no_grad():
                    _measure_pass(cases, workload, threads, plan, results)
    finally:
        torch.set_num_threads(before)
    return results


def _measure_pass(
    cases: Sequence[Case], workload: Workload, threads: int, plan: Plan, results: Results
) -> None:
    timer = timer_for(workload.device)
    turns = []
    for case in cases:
        try:
            prepared = case.build(workload, case.dtype)
            turns.append(_Turn(case, prepared, prepared.timer or timer))
        except Unavailable as reason:
            results.missing.append(Missing(case.name, workload.shape, threads, str(reason)))
    for turn in turns:
        turn.warm_up(plan)
    order = random.Random(0)
    shuffled = list(turns)
    with _no_garbage_collection():
        for _ in range(plan.rounds):
            order.shuffle(shuffled)
            for turn in shuffled:
                turn.block(plan)
    for turn in turns:
        moved, repeats = turn.prepared.bytes, turn.prepared.repeats
        rounds = [[seconds / repeats for seconds in block] for block in turn.rounds]
        results.figures.append(Figure(turn.case.name, workload.shape, threads, moved, rounds))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the block ends."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
