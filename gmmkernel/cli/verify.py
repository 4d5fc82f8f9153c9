"""`verify`: recompute the golden digests with every backend present."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tqdm.auto import tqdm

from gmmkernel import backends, golden
from gmmkernel.cli.figures import add_json_option, versions, write_json
from gmmkernel.cli.outputs import check_file
from gmmkernel.cli.progress import shows_progress


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "verify", help="check that every backend here gives the bits of the committed digests"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print which digests hold on which backend, write the file; 1 if any does not."""
    check_file("--json", arguments.json)
    expected = golden.expected_digests()
    cases = list(golden.cases())
    failures: list[str] = []
    hold: dict[str, int] = {}
    missing: dict[str, str] = {}
    hidden = not shows_progress()
    if {name for name, _ in cases} != set(expected):
        failures.append("the cases are not those of golden.json")
    for status in backends.available_backends():
        if not status.available:
            missing[status.name] = status.detail
            print(f"{status.name}: not here: {status.detail}")
            continue
        for label in _variants(status):
            wrong = [
                f"{label}: {name}"
                for name, case in tqdm(cases, desc=label, unit="case", leave=False, disable=hidden)
                if golden.digest(case(status.name, str(status.devices[0]))) != expected.get(name)
            ]
            hold[label] = len(cases) - len(wrong)
            print(f"{label}: {hold[label]} of {len(cases)} digests hold")
            failures += wrong
    for failure in failures:
        print(f"DIFFERS {failure}")
    print(f"{len(failures)} differences" if failures else "every bit as committed")
    known = {
        "figures": {"digests": len(cases), "hold": hold, "not_here": missing, "differences": failures},
        "versions": versions(),
    }
    write_json(arguments.json, known)
    return 1 if failures else 0


def _variants(status: backends.BackendStatus) -> Iterator[str]:
    """Yield a label for each way a backend can compute, while that way is chosen, for mixtures too."""
    with ExitStack() as context:
        if status.device_type == "cpu":
            context.enter_context(backends.use(status.name))
        if status.name != "cpu":
            yield status.name
            return
        from gmmkernel.backends import cpu

        for instruction_set in cpu.instruction_sets():
            with cpu.use_instruction_set(instruction_set):
                yield f"{status.name} {instruction_set}"
