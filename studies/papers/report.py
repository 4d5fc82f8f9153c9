"""The report: what came out, what was published beside it, and how both differ from DDIM and from the controls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmmkernel._files import write_whole
from gmmkernel.recipes import read_recipe
from studies.folder import write_json
from studies.papers.experiments import (
    COMPONENTS,
    METHODS,
    MODELS,
    SCALED,
    SIMPLE,
    SKIP,
    VARIANTS,
    Cell,
    Experiment,
    Figure,
)

Results = dict[str, dict[str, Any]]
"""By the names of cells: what is kept of each."""

TABLE_FILE, JSON_FILE = "report.md", "report.json"
FID, SCORE = "frechet_inception_distance", "inception_score_mean"

_MODEL_WORDS = {
    SIMPLE: "simple loss",
    SKIP: "skip-step loss",
    SCALED: "simple loss, output scaled to the skip-step loss's optimum",
}


def write_report(
    folder: Path,
    experiment: Experiment,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    cells: Sequence[Cell],
    results: Results,
) -> str:
    """Write the report as Markdown and as JSON, of the cells that are done; return the first."""
    done = {cell: results[cell.name] for cell in cells if cell.name in results}
    size = full_size(experiment, options, settings)
    lines = [f"# {experiment.title}", "", *_beginning(experiment, settings, cells, done, size), ""]
    rows: list[dict[str, Any]] = []
    if experiment.recipe is None:
        for steps in options["steps"]:
            of_steps = mixture_rows(experiment, steps, done, settings["elements"])
            rows += of_steps
            lines += _mixture_table(experiment, steps, of_steps)
        lines += _scales_table(options, done)
    else:
        rows = training_rows(done)
        lines += _training_tables(options["steps"], rows)
    lines += _end(experiment, settings, done)
    text = "\n".join(lines) + "\n"
    write_whole(folder / TABLE_FILE, text.encode())
    write_json(
        folder / JSON_FILE,
        {
            "experiment": experiment.name,
            "full_size": not size,
            "not_full_size": size,
            "cells": {"done": len(done), "of": len(cells)},
            "settings": settings,
            "source": experiment.source,
            "claims": experiment.claims,
            "rows": rows,
            "results": {cell.name: found for cell, found in done.items()},
        },
    )
    return text


def full_size(experiment: Experiment, options: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return in what a run has not the full size, as words; nothing where it has."""
    found = []
    for name, words in (
        ("count", "images of each cell"),
        ("steps", "steps"),
        ("eta", "eta"),
        ("scales", "scales"),
    ):
        given, full = options[name], getattr(experiment, name)
        if (set(given) != set(full)) if isinstance(full, tuple) else (given != full):
            found.append(f"{words} {_list(given)} and not {_list(full)}")
    if experiment.recipe is not None:
        full = read_recipe(experiment.recipe)
        given = settings["training"]["settings"]
        other = sorted(
            name
            for name, value in full.items()
            if name not in ("loss", "steps") and _plain(given.get(name)) != _plain(value)
        )
        if given["steps"] != full["steps"]:
            found.append(f"{given['steps']:,} training steps and not {full['steps']:,}")
        if other:
            found.append(
                f"other settings of the training than the recipe {experiment.recipe}'s: {', '.join(other)}"
            )
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _list(value: Any) -> str:
    return ", ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:,}"


def best(done: Mapping[Cell, dict[str, Any]], wanted: Sequence[Cell]) -> Cell | None:
    """Return the cell with the lowest FID of those that are done, or None."""
    there = [cell for cell in wanted if cell in done]
    return min(there, key=lambda cell: float(done[cell]["figures"][FID]), default=None)


def mixture_rows(
    experiment: Experiment, steps: int, done: Mapping[Cell, dict[str, Any]], elements: int
) -> list[dict[str, Any]]:
    """Return the lines of a table of DDIM-GMM: of each mixture that with the best scale, and its control."""
    published = experiment.published or {}
    rows = []
    plain: Cell | None = None

    def add(line: str, cell: Cell | None, control: Cell | None = None) -> None:
        if cell is None or cell not in done:
            return
        figures, eta = done[cell]["figures"], cell.eta if cell.method == "ddim" else None
        base = None if plain is None or cell.method != "ddim" else done[plain]["figures"][FID]
        key = line if cell.method == "ddim" else "DPM-Solver"
        figure = published.get((steps, eta, key))
        ddim = published.get((steps, eta, "DDIM"))
        rows.append(
            {
                "steps": steps,
                "eta": eta,
                "line": line,
                "cell": cell.name,
                "same_as": done[cell].get("same_as"),
                "calls": cell.calls,
                "scale": cell.scale,
                "scale_over_root_d": None if cell.scale is None else cell.scale / math.sqrt(elements),
                "fid": figures[FID],
                "from_ddim": None if base is None or cell == plain else figures[FID] - base,
                "from_control": None
                if control is None or control not in done
                else figures[FID] - done[control]["figures"][FID],
                "precision": figures.get("precision"),
                "recall": figures.get("recall"),
                "score": figures.get(SCORE),
                "published": None if figure is None else _published(figure, ddim),
            }
        )

    cells = [cell for cell in done if cell.steps == steps]
    for eta in dict.fromkeys(cell.eta for cell in cells if cell.method == "ddim"):
        plain = Cell(steps, eta=eta) if Cell(steps, eta=eta) in done else None
        add("DDIM", plain)
        for variant in VARIANTS:
            of_variant = [cell for cell in cells if cell.eta == eta and cell.variant == variant]
            chosen = best(done, [cell for cell in of_variant if not cell.control])
            if chosen is None:
                continue
            control = Cell(steps, eta=eta, variant=variant, scale=chosen.scale, control=True)
            add(variant, chosen, control)
            add(f"control of {variant}", control)
        add("best control", best(done, [cell for cell in cells if cell.eta == eta and cell.control]))
    add(METHODS["dpm-solver"], Cell(steps, "dpm-solver"))
    return rows


def _published(figure: Figure, ddim: Figure | None) -> dict[str, Any]:
    found = {name: value for name, value in figure._asdict().items() if value is not None}
    if ddim is not None and figure is not ddim:
        found["from_ddim"] = figure.fid - ddim.fid
    return found


def training_rows(done: Mapping[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of S2-DM's tables, with the difference from the simple loss in per cent."""
    rows = []
    for cell, found in done.items():
        base = done.get(Cell(cell.steps, cell.method, model=SIMPLE))
        fid = found["figures"][FID]
        reference = None if base is None or cell.model == SIMPLE else float(base["figures"][FID])
        rows.append(
            {
                "steps": cell.steps,
                "method": METHODS[cell.method],
                "model": cell.model,
                "cell": cell.name,
                "calls": cell.calls,
                "fid": fid,
                "from_simple": None if reference is None else fid - reference,
                "from_simple_per_cent": None if not reference else 100 * (fid / reference - 1),
                "precision": found["figures"].get("precision"),
                "recall": found["figures"].get("recall"),
                "published": None,
            }
        )
    return rows


def _beginning(
    experiment: Experiment,
    settings: Mapping[str, Any],
    cells: Sequence[Cell],
    done: Mapping[Cell, dict[str, Any]],
    size: Sequence[str],
) -> list[str]:
    state = f"{len(done)} of {len(cells)} cells are done."
    if size:
        state += f" **This is not the full size: {'; '.join(size)}.**"
        if settings["count"] != experiment.count or any("training" in words for words in size):
            state += " The figures must not be compared with published ones."
    elif len(done) == len(cells):
        state += " This is the full size."
    lines = [
        state,
        "",
        f"FID of {settings['count']:,} images from the same seeds in every cell; lower is better. Published figures: "
        f"{experiment.source}. An empty cell: nothing was published, or it is not done.",
        "",
    ]
    if experiment.recipe is None:
        lines.append(
            f"Of each mixture (K = {COMPONENTS}) stands the scale s with the lowest FID, chosen by the FID that is "
            "shown, as in the paper, which flatters it beside DDIM. Its control is plain DDIM with isotropic noise of "
            "the variance per element that the mixture's step has, at the same s; the best control is that with the "
            "lowest FID of all variants and scales, chosen as the mixtures are. A mixture helps by its shape where it "
            f"is better than its control. D = {settings['elements']:,} elements."
        )
    else:
        lines.append(
            "In brackets: difference from the model of the simple loss, with the same sampler and seeds. The third "
            "model is that of the simple loss with its output scaled, timestep by timestep, to the optimum of the "
            "skip-step loss: what that loss amounts to without training. No figure of a single cell of the paper is "
            "known here."
        )
    return lines + [line for claim in experiment.claims for line in ("", claim)]


def _mixture_table(experiment: Experiment, steps: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    scores = experiment.classes
    head = ["eta", "method", "s", "s/sqrt(D)", "FID", "- DDIM", "- control", "precision", "recall"]
    head += [*(["IS"] if scores else []), "published FID", "- DDIM", "s", *(["IS"] if scores else [])]
    lines = [f"## {steps} steps", "", _row(head), "|" + "---|" * len(head)]
    for row in rows:
        published = row["published"] or {}
        line = row["line"] + (f" (the sampler of {row['same_as']})" if row["same_as"] else "")
        texts = [
            _text(row["eta"], "g"),
            line,
            _text(row["scale"], "g"),
            _text(row["scale_over_root_d"], ".2g"),
            _text(row["fid"], ".2f"),
            _text(row["from_ddim"], "+.2f"),
            _text(row["from_control"], "+.2f"),
            _text(row["precision"], ".3f"),
            _text(row["recall"], ".3f"),
            *([_text(row["score"], ".2f")] if scores else []),
            _text(published.get("fid"), ".2f"),
            _text(published.get("from_ddim"), "+.2f"),
            _text(published.get("scale"), "g"),
            *([_text(published.get("score"), ".2f")] if scores else []),
        ]
        lines.append(_row(texts))
    return [*lines, ""]


def _scales_table(options: Mapping[str, Any], done: Mapping[Cell, dict[str, Any]]) -> list[str]:
    """Return FID at every scale, the control's in brackets."""
    head = ["steps", "eta", "method", *(f"s = {scale:g}" for scale in options["scales"])]
    lines = [
        "## Every scale",
        "",
        "FID, in brackets the control's.",
        "",
        _row(head),
        "|" + "---|" * len(head),
    ]
    for steps in options["steps"]:
        for eta in options["eta"]:
            for variant in VARIANTS:
                texts = []
                for scale in options["scales"]:
                    pair = [
                        done.get(Cell(steps, eta=eta, variant=variant, scale=scale, control=control))
                        for control in (False, True)
                    ]
                    fids = [_text(None if found is None else found["figures"][FID], ".2f") for found in pair]
                    texts.append(f"{fids[0]} ({fids[1]})" if any(fids) else "")
                if any(texts):
                    lines.append(_row([str(steps), f"{eta:g}", variant, *texts]))
    return [*lines, ""]


def _training_tables(steps: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for method in METHODS.values():
        for title, show in (("FID", _distance), ("precision / recall", _pair)):
            head = [title, *(f"{count} steps" for count in steps)]
            lines += [f"## {method}", ""] if title == "FID" else []
            lines += [_row(head), "|" + "---|" * len(head)]
            for model in MODELS:
                found = {
                    row["steps"]: show(row)
                    for row in rows
                    if (row["method"], row["model"]) == (method, model)
                }
                lines.append(_row([_MODEL_WORDS[model], *(found.get(count, "") for count in steps)]))
            lines.append("")
    return lines


def _distance(row: Mapping[str, Any]) -> str:
    change = _text(row["from_simple_per_cent"], "+.2f")
    return f"{row['fid']:.2f}" + (f" ({change}%)" if change else "")


def _pair(row: Mapping[str, Any]) -> str:
    return " / ".join(filter(None, (_text(row[name], ".3f") for name in ("precision", "recall"))))


def _end(
    experiment: Experiment, settings: Mapping[str, Any], done: Mapping[Cell, dict[str, Any]]
) -> list[str]:
    lines = ["## What differs from the paper", "", *(f"- {sentence}" for sentence in experiment.differs), ""]
    warnings = dict.fromkeys(warning for found in done.values() for warning in found["warnings"])
    if warnings:
        lines += ["## Warnings of the evaluation", "", *(f"- {warning}" for warning in warnings), ""]
    environments = [found["environment"] for found in done.values()]
    evaluations = [found["evaluation"] for found in done.values()]
    versions = {
        name: sorted({each[name] for each in environments})
        for name in (environments[0] if environments else ())
    }
    versions |= {
        name: sorted({each["versions"][name] for each in evaluations})
        for name in (evaluations[0]["versions"] if evaluations else ())
        if name not in versions
    }
    lines += ["## Settings", "", *(f"- {name}: {', '.join(found)}" for name, found in versions.items())]
    lines += [f"- {name}: {json.dumps(value)}" for name, value in settings.items()]
    return lines


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _text(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
