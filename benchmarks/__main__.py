"""Command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.cases import Case, all_cases, select_cases
from benchmarks.device_cases import device_cases
from benchmarks.device_run import FULL as DEVICE_FULL
from benchmarks.device_run import QUICK as DEVICE_QUICK
from benchmarks.device_run import run_on_device
from benchmarks.device_targets import SHAPES as DEVICE_SHAPES
from benchmarks.plot import plot_available, write_plot
from benchmarks.runner import FULL, QUICK, measure
from benchmarks.targets import (
    HOST_SHAPE,
    LARGE_SHAPE,
    MEDIUM_SHAPE,
    ROLLOUT_SHAPE,
    SMALL_ROLLOUT_SHAPE,
    SMALL_SHAPE,
    TRAINING_SHAPE,
    judge,
)
from gmmkernel.cli.outputs import check_folder, lasting_output

_OUTPUT = Path(__file__).parent / "out"
_BUSY = 0.5
_SIZES = (
    HOST_SHAPE,
    SMALL_SHAPE,
    SMALL_ROLLOUT_SHAPE,
    MEDIUM_SHAPE,
    TRAINING_SHAPE,
    ROLLOUT_SHAPE,
    LARGE_SHAPE,
)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape written as 16x3x256x256.

    Raises:
        argparse.ArgumentTypeError: it is not two or more positive numbers.
    """
    parts = text.split("x")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected B x further sizes, like 16x3x256x256, got {text!r}")
    return tuple(int(part) for part in parts)


def parse_threads(text: str) -> int:
    """Return a number of threads that this machine can run at once.

    Raises:
        argparse.ArgumentTypeError: it is not a number from 1 to the processors there are.
    """
    most = os.cpu_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected 1 to {most}, the processors here, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the package and its baselines side by side on the CPU or a CUDA device.",
    )
    counts = sorted({1, min(2, os.cpu_count() or 1)})
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure (default: cpu)")
    add("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names or shell patterns (default: all)")
    add("--sizes", nargs="+", type=parse_shape, default=None, metavar="BxCxHxW",
        help=f"shapes of the batch (default: {' '.join(map(report.shape_name, _SIZES))}; "
        f"on cuda {' '.join(map(report.shape_name, DEVICE_SHAPES))})")  # fmt: skip
    add("--threads", nargs="+", type=parse_threads, default=counts, metavar="N",
        help=f"threads, each a pass of its own; cpu only (default: {' '.join(map(str, counts))})")  # fmt: skip
    add("--minutes", type=float, metavar="M", help="cuda only: begin no further size after this long")
    add("--quick", action="store_true", help="few and short rounds: to see that it works, not to quote")
    add(
        "--output", type=Path, default=_OUTPUT, metavar="DIR", help="where to write (default: benchmarks/out)"
    )
    add("--list", action="store_true", help="list the cases and stop")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 whatever the targets say, since timings are no tests."""
    parser = _parser()
    options = parser.parse_args(arguments)
    known = all_cases() if options.device == "cpu" else device_cases(options.device)
    if options.list:
        width = max(len(case.name) for case in known)
        print("\n".join(f"{case.name:{width}}  {case.measures}" for case in known))
        return 0
    try:
        cases = select_cases(options.cases, known)
    except ValueError as error:
        parser.error(str(error))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA device here")
    threads = list(dict.fromkeys(options.threads))
    try:
        check_folder("--output", options.output)
    except OSError as error:
        parser.error(str(error))
    with lasting_output():
        if options.device == "cuda":
            shapes = list(dict.fromkeys(options.sizes or DEVICE_SHAPES))
            plan = DEVICE_QUICK if options.quick else DEVICE_FULL
            device = torch.device("cuda", torch.cuda.current_device())
            run_on_device(cases, shapes, plan, options.output, device, _progress, options.minutes)
        else:
            _run_on_cpu(cases, list(dict.fromkeys(options.sizes or _SIZES)), threads, options)
    return 0


def _run_on_cpu(
    cases: list[Case], shapes: list[tuple[int, ...]], threads: list[int], options: argparse.Namespace
) -> None:
    device = torch.device("cpu")
    environment = machine.describe(device)
    environment["plan"] = {"quick": options.quick, **vars(QUICK if options.quick else FULL)}
    environment["load_before"] = machine.load_average()
    results = measure(cases, shapes, threads, QUICK if options.quick else FULL, _progress, device)
    environment["load_after"] = machine.load_average()

    used = f"{environment['cpu_model']}, {environment['cpu_count']} processors, {environment['instruction_set_used']}"
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    load = f"load {environment['load_before'][0]} before, {environment['load_after'][0]} after"
    sections = [f"{used}\n{versions}\n{load}", report.figures_text(results), report.host_cost_text(results)]
    sections.append(report.targets_text(judge(results)))
    notes = []
    if environment["load_before"][0] > _BUSY:
        notes.append(f"the machine was busy before the run ({load}): do not quote these figures")
    if options.quick:
        notes.append("a quick run: do not quote these figures")

    table, data, picture = (options.output / f"results.{ending}" for ending in ("txt", "json", "png"))
    written = [table, data]
    problem = plot_available()
    if problem is not None:
        notes.append(problem)
    text = "\n\n".join(section for section in [*sections, "\n".join(notes)] if section)
    table.write_text(text + "\n", encoding="utf-8")
    data.write_text(json.dumps(report.as_json(results, environment), indent=1) + "\n", encoding="utf-8")
    print(text)
    if problem is None:  # last, so that nothing is lost with it
        write_plot(results, f"{used}; {load}", picture)
        written.append(picture)
    print("\nwritten: " + ", ".join(map(str, written)))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
