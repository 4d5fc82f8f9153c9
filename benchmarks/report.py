"""The tables that a person reads and the JSON that a program reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.figures import Figure, Results
from benchmarks.targets import HOST_SHAPE, TARGETS, THREADS, Target, Verdict, judge


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns, the first row as head, the first column to the left, others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def shape_name(shape: tuple[int, ...]) -> str:
    """Return a shape as it is written on the command line."""
    return "x".join(map(str, shape))


def figures_text(results: Results, share_of: str | None = None) -> str:
    """Return one table for each size and number of threads, but for the size of `host_cost_text`.

    Args:
        results: what was measured.
        share_of: a case's name without its type; a last column then has GB/s over those of that case.
    """
    sections = []
    shown = [figure for figure in results.figures if figure.shape != HOST_SHAPE]
    for (shape, threads), group in groupby(shown, key=lambda figure: (figure.shape, figure.threads)):
        title = f"{shape_name(shape)}, {threads} thread{'s' * (threads > 1)}"
        rows = [["case", "us/call", "20%", "80%", "ns/element", "bytes/element", "GB/s"]]
        members = list(group)
        rows += [_row(figure) for figure in members]
        if share_of is not None:
            rows[0].append(f"of {share_of}")
            for row, figure in zip(rows[1:], members, strict=True):
                row.append(_share(results, figure, share_of))
        sections.append(f"{title}\n{table(rows)}")
    for absent in results.missing:
        where = f"{shape_name(absent.shape)}, {absent.threads} threads"
        sections.append(f"not measured: {absent.case} ({where}): {absent.reason}")
    return "\n\n".join(sections)


def _row(figure: Figure) -> list[str]:
    times = [f"{1e6 * seconds:.1f}" for seconds in (figure.median, figure.p20, figure.p80)]
    rate = [
        f"{figure.ns_per_element:.3f}",
        f"{figure.bytes_per_element:.1f}",
        f"{figure.gigabytes_per_second:.2f}",
    ]
    return [figure.case, *times, *rate]


def _share(results: Results, figure: Figure, share_of: str) -> str:
    type_name = figure.case.rsplit("/", 1)[1]
    whole = results.find(f"{share_of}/{type_name}", figure.shape, figure.threads)
    return "-" if whole is None else f"{figure.gigabytes_per_second / whole.gigabytes_per_second:.1%}"


def host_cost_text(results: Results) -> str:
    """Return what a call costs when there is next to nothing to compute, or nothing if that was not measured."""
    rows = [["case", "threads", "us/call", "20%", "80%"]]
    for figure in results.figures:
        if figure.shape == HOST_SHAPE:
            times = [f"{1e6 * seconds:.2f}" for seconds in (figure.median, figure.p20, figure.p80)]
            rows.append([figure.case, str(figure.threads), *times])
    if len(rows) == 1:
        return ""
    return f"cost of one call ({shape_name(HOST_SHAPE)})\n{table(rows)}"


def targets_text(verdicts: Sequence[Verdict], threads: int = THREADS) -> str:
    """Return what became of every target."""
    rows = [["target", "size", "value", "20% of rounds", "80%", "bound", ""]]
    for verdict in verdicts:
        numbers = (verdict.value, verdict.low, verdict.high)
        values = ["-" if number is None else f"{number:.2f}" for number in numbers]
        target = verdict.target
        rows.append([target.label, shape_name(target.shape), *values, verdict.bound, verdict.outcome])
    counted = f"{threads} thread{'s' * (threads > 1)}"
    return f"targets (medians of interleaved runs, {counted})\n{table(rows)}"


def as_json(
    results: Results,
    environment: dict[str, Any],
    targets: Sequence[Target] = TARGETS,
    threads: int = THREADS,
) -> dict[str, Any]:
    """Return everything about a run in plain types; times in seconds."""
    return {
        "environment": environment,
        "figures": [
            {
                "case": figure.case,
                "shape": list(figure.shape),
                "threads": figure.threads,
                "median_s": figure.median,
                "p20_s": figure.p20,
                "p80_s": figure.p80,
                "least_s": min(min(calls) for calls in figure.rounds),
                "ns_per_element": figure.ns_per_element,
                "bytes_per_element": figure.bytes_per_element,
                "gigabytes_per_second": figure.gigabytes_per_second,
                "calls_per_round": len(figure.rounds[0]),
                "round_medians_s": figure.round_medians,
            }
            for figure in results.figures
        ],
        "missing": [
            {"case": m.case, "shape": list(m.shape), "threads": m.threads, "reason": m.reason}
            for m in results.missing
        ],
        "targets": [
            {
                "label": verdict.target.label,
                "shape": list(verdict.target.shape),
                "threads": threads,
                "numerator": verdict.target.numerator,
                "denominator": verdict.target.denominator,
                "bound": verdict.bound,
                "value": verdict.value,
                "p20_of_rounds": verdict.low,
                "p80_of_rounds": verdict.high,
                "outcome": verdict.outcome,
            }
            for verdict in judge(results, targets, threads)
        ],
    }
