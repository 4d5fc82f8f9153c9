"""A run on an accelerator: one size after another, the results written after each, so that a run cut off has some."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.cases import Case
from benchmarks.device_cases import device_backends
from benchmarks.device_targets import THREADS, device_targets
from benchmarks.device_workload import RotatingWorkload
from benchmarks.figures import Missing, Results
from benchmarks.plot import plot_available, write_plot
from benchmarks.runner import Plan, measure
from benchmarks.targets import judge

FULL = Plan(rounds=15, settle_seconds=0.002, block_seconds=0.01, most_calls=1000)
QUICK = Plan(rounds=5, settle_seconds=0.001, block_seconds=0.003, most_calls=100)


def run_on_device(
    cases: Sequence[Case],
    shapes: Sequence[tuple[int, ...]],
    plan: Plan,
    output: Path,
    device: torch.device,
    progress: Callable[[str], None],
    minutes: float | None = None,
) -> None:
    """Measure and write results.json and results.txt after each size, results.png at the end.

    Args:
        cases: what to measure; those with a largest size are left out of larger ones.
        shapes: shapes of the batch.
        plan: how long to measure.
        output: folder to write into.
        device: where to measure.
        progress: takes a line about progress.
        minutes: no further size is begun after this long, or None.
    """
    environment = machine.describe(device)
    environment["plan"] = vars(plan)
    results = Results([], [])
    start = time.monotonic()
    for shape in shapes:
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            skipped = f"not begun: the {minutes:g} minutes were over"
            results.missing.append(Missing("every case", shape, THREADS, skipped))
        else:
            _measure_one(cases, shape, plan, device, progress, results)
        environment["seconds"] = round(time.monotonic() - start, 1)
        _write(results, environment, output, device)
    problem = plot_available()
    if problem is None and results.figures:
        write_plot(results, _used(environment), output / "results.png")
    print((output / "results.txt").read_text(encoding="utf-8"))
    print(f"written: {output}/results.txt, results.json" + (f"; {problem}" if problem else ", results.png"))


def _measure_one(
    cases: Sequence[Case],
    shape: tuple[int, ...],
    plan: Plan,
    device: torch.device,
    progress: Callable[[str], None],
    results: Results,
) -> None:
    elements = torch.Size(shape).numel()
    chosen = [case for case in cases if case.largest is None or elements <= case.largest]
    torch.compiler.reset()  # one function compiled for too many sizes is an error
    made = measure(chosen, [shape], [THREADS], plan, progress, device, RotatingWorkload)
    results.figures.extend(made.figures)
    results.missing.extend(made.missing)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _used(environment: dict[str, Any]) -> str:
    gpu = environment.get("gpu")
    if gpu is None:
        return str(environment["cpu_model"])
    return (
        f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, L2 {gpu['l2_bytes'] / 1e6:.0f} MB, "
        f"CUDA {gpu['torch_cuda']}"
    )


def _write(results: Results, environment: dict[str, Any], output: Path, device: torch.device) -> None:
    targets = device_targets(device_backends(device.type))
    verdicts = judge(results, targets, THREADS)
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    sections = [f"{_used(environment)}\n{versions}", report.figures_text(results, share_of="copy/out")]
    sections += [report.host_cost_text(results), report.targets_text(verdicts, THREADS)]
    text = "\n\n".join(section for section in sections if section)
    (output / "results.txt").write_text(text + "\n", encoding="utf-8")
    data = report.as_json(results, environment, targets, THREADS)
    (output / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
