"""The raw operators, registered with PyTorch: schemas and implementations; fake tensors have nothing to do.

They take arguments that the public functions have checked, the name of a resolved backend, and the tensors to write.
An index is an int for all samples (`row`, `step`), unless a tensor comes with one for each (`rows`, `steps`).
What is not needed comes last and is left out of a call, since every argument costs time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import library as torch_library

from gmmkernel import backends
from gmmkernel.backends.protocol import StepInputs

_library = torch_library.Library("gmmkernel", "DEF")


def _gmm_step(
    out: Tensor,
    sample: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    row: int,
    step: int,
    backend: str,
    rows: Tensor | None = None,
    steps: Tensor | None = None,
    model_output_uncond: Tensor | None = None,
    history: Sequence[Tensor] | None = None,
    thresholds: Tensor | None = None,
    offsets: Tensor | None = None,
    std: Tensor | None = None,
    prediction: Tensor | None = None,
    components: Tensor | None = None,
    prediction_kind: int = 0,
) -> None:
    inputs = StepInputs(
        sample,
        model_output,
        coefficients,
        seeds,
        row if rows is None else rows,
        step if steps is None else steps,
        model_output_uncond,
        history or (),
        thresholds,
        offsets,
        std,
    )
    backends.load(backend).gmm_step(inputs, out, prediction, prediction_kind, components)


def _standard_normal(
    out: Tensor, seeds: Tensor, step: int, stream: int, backend: str, steps: Tensor | None = None
) -> None:
    backends.load(backend).standard_normal(out, seeds, step if steps is None else steps, stream)


def _draw_components(
    out: Tensor,
    seeds: Tensor,
    thresholds: Tensor,
    row: int,
    step: int,
    backend: str,
    rows: Tensor | None = None,
    steps: Tensor | None = None,
) -> None:
    backends.load(backend).draw_components(
        out, seeds, thresholds, row if rows is None else rows, step if steps is None else steps
    )


def _write_nothing(*arguments: object, **named: object) -> None:
    return None


for _schema, _implementation in (
    (
        "gmm_step(Tensor(a!) out, Tensor sample, Tensor model_output, Tensor coefficients, Tensor seeds, "
        "SymInt row, SymInt step, str backend, Tensor? rows=None, Tensor? steps=None, "
        "Tensor? model_output_uncond=None, Tensor[]? history=None, Tensor? thresholds=None, "
        "Tensor? offsets=None, Tensor? std=None, Tensor(b!)? prediction=None, "
        "Tensor(c!)? components=None, int prediction_kind=0) -> ()",
        _gmm_step,
    ),
    (
        "standard_normal(Tensor(a!) out, Tensor seeds, SymInt step, int stream, str backend, "
        "Tensor? steps=None) -> ()",
        _standard_normal,
    ),
    (
        "draw_components(Tensor(a!) out, Tensor seeds, Tensor thresholds, SymInt row, SymInt step, str backend, "
        "Tensor? rows=None, Tensor? steps=None) -> ()",
        _draw_components,
    ),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch_library.register_fake(f"gmmkernel::{_name}", _write_nothing, lib=_library)

gmm_step = torch.ops.gmmkernel.gmm_step.default
standard_normal = torch.ops.gmmkernel.standard_normal.default
draw_components = torch.ops.gmmkernel.draw_components.default
