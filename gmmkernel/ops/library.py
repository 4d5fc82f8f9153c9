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
from gmmkernel.backends.protocol import LogProbGradients, StepGradients, StepInputs

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


def _new_gradients(
    wanted: Sequence[bool],
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    history: Sequence[Tensor] | None,
) -> StepGradients:
    """Return memory for the gradients that are wanted, of the tensors in this order."""
    inputs = [sample, model_output, model_output_uncond, coefficients, offsets, std, *(history or ())]
    made = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if asked and tensor is not None
        else None
        for asked, tensor in zip(wanted, inputs, strict=True)
    ]
    return _gradients_of_step(made[:6], made[6:])


def _gradients_of_step(made: Sequence[Tensor | None], history: Sequence[Tensor | None]) -> StepGradients:
    sample, model_output, model_output_uncond, coefficients, offsets, std = made
    return StepGradients(sample, model_output, model_output_uncond, coefficients, offsets, std, history)


def _those_wanted(gradients: StepGradients) -> list[Tensor]:
    return [tensor for tensor in (*gradients[:6], *gradients.history) if tensor is not None]


def _gmm_step_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    row: int,
    step: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    seeds: Tensor,
    rows: Tensor | None,
    steps: Tensor | None,
    thresholds: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    gradients = _new_gradients(
        wanted, sample, model_output, model_output_uncond, coefficients, offsets, std, history
    )
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
    backends.load(backend).gmm_step_backward(inputs, grad, grad_prediction, prediction_kind, gradients)
    return _those_wanted(gradients)


def _gmm_step_backward_fake(
    wanted: Sequence[bool],
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    row: int,
    step: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    seeds: Tensor,
    rows: Tensor | None,
    steps: Tensor | None,
    thresholds: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    return _those_wanted(
        _new_gradients(wanted, sample, model_output, model_output_uncond, coefficients, offsets, std, history)
    )


def _density_inputs(
    row: int,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    rows: Tensor | None,
    history: Sequence[Tensor] | None,
) -> StepInputs:
    return StepInputs(
        sample,
        model_output,
        coefficients,
        coefficients.new_empty(0, dtype=torch.int64),  # nothing is drawn
        row if rows is None else rows,
        0,
        model_output_uncond,
        history or (),
        None,
        offsets,
        std,
    )


def _new_densities(sample: Tensor, coefficients: Tensor, weights: Tensor | None) -> list[Tensor]:
    """Return memory for the log-densities and, where there is a mixture, its responsibilities."""
    batch = sample.shape[0]
    shapes = [(batch,)] if weights is None else [(batch,), (batch, weights.shape[1])]
    return [coefficients.new_empty(shape) for shape in shapes]


def _log_prob(
    row: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    prev_sample: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    made = _new_densities(sample, coefficients, weights)
    inputs = _density_inputs(
        row, sample, model_output, model_output_uncond, coefficients, offsets, std, rows, history
    )
    backends.load(backend).log_prob(inputs, prev_sample, weights, *made)
    return made


def _log_prob_fake(
    row: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    prev_sample: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    return _new_densities(sample, coefficients, weights)


def _log_prob_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    responsibilities: Tensor | None,
    row: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    prev_sample: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    gradients = _new_density_gradients(
        wanted,
        (sample, model_output, model_output_uncond, coefficients, offsets, std),
        (prev_sample, weights),
        history,
    )
    inputs = _density_inputs(
        row, sample, model_output, model_output_uncond, coefficients, offsets, std, rows, history
    )
    backends.load(backend).log_prob_backward(inputs, prev_sample, weights, responsibilities, grad, gradients)
    return _densities_wanted(gradients)


def _log_prob_backward_fake(
    wanted: Sequence[bool],
    grad: Tensor,
    responsibilities: Tensor | None,
    row: int,
    backend: str,
    sample: Tensor,
    model_output: Tensor,
    model_output_uncond: Tensor | None,
    coefficients: Tensor,
    offsets: Tensor | None,
    std: Tensor | None,
    prev_sample: Tensor,
    weights: Tensor | None,
    rows: Tensor | None,
    history: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    return _densities_wanted(
        _new_density_gradients(
            wanted,
            (sample, model_output, model_output_uncond, coefficients, offsets, std),
            (prev_sample, weights),
            history,
        )
    )


def _new_density_gradients(
    wanted: Sequence[bool],
    of_step: Sequence[Tensor | None],
    of_density: Sequence[Tensor | None],
    history: Sequence[Tensor] | None,
) -> LogProbGradients:
    made = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if asked and tensor is not None
        else None
        for asked, tensor in zip(wanted, (*of_step, *of_density, *(history or ())), strict=True)
    ]
    return LogProbGradients(made[6], made[7], _gradients_of_step(made[:6], made[8:]))


def _densities_wanted(gradients: LogProbGradients) -> list[Tensor]:
    of_step = gradients.step
    order = (*of_step[:6], gradients.prev_sample, gradients.weights, *of_step.history)
    return [tensor for tensor in order if tensor is not None]


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


for _schema, _implementation, _fake in (
    (
        "gmm_step(Tensor(a!) out, Tensor sample, Tensor model_output, Tensor coefficients, Tensor seeds, "
        "SymInt row, SymInt step, str backend, Tensor? rows=None, Tensor? steps=None, "
        "Tensor? model_output_uncond=None, Tensor[]? history=None, Tensor? thresholds=None, "
        "Tensor? offsets=None, Tensor? std=None, Tensor(b!)? prediction=None, "
        "Tensor(c!)? components=None, int prediction_kind=0) -> ()",
        _gmm_step,
        _write_nothing,
    ),
    (
        "gmm_step_backward(bool[] wanted, Tensor grad, Tensor? grad_prediction, int prediction_kind, SymInt row, "
        "SymInt step, str backend, Tensor sample, Tensor model_output, Tensor? model_output_uncond, "
        "Tensor coefficients, Tensor? offsets, Tensor? std, Tensor seeds, Tensor? rows, Tensor? steps, "
        "Tensor? thresholds, Tensor[]? history=None) -> Tensor[]",
        _gmm_step_backward,
        _gmm_step_backward_fake,
    ),
    (
        "gmm_step_log_prob(SymInt row, str backend, Tensor sample, Tensor model_output, Tensor? model_output_uncond, "
        "Tensor coefficients, Tensor? offsets, Tensor? std, Tensor prev_sample, Tensor? weights, Tensor? rows, "
        "Tensor[]? history=None) -> Tensor[]",
        _log_prob,
        _log_prob_fake,
    ),
    (
        "gmm_step_log_prob_backward(bool[] wanted, Tensor grad, Tensor? responsibilities, SymInt row, str backend, "
        "Tensor sample, Tensor model_output, Tensor? model_output_uncond, Tensor coefficients, Tensor? offsets, "
        "Tensor? std, Tensor prev_sample, Tensor? weights, Tensor? rows, Tensor[]? history=None) -> Tensor[]",
        _log_prob_backward,
        _log_prob_backward_fake,
    ),
    (
        "standard_normal(Tensor(a!) out, Tensor seeds, SymInt step, int stream, str backend, "
        "Tensor? steps=None) -> ()",
        _standard_normal,
        _write_nothing,
    ),
    (
        "draw_components(Tensor(a!) out, Tensor seeds, Tensor thresholds, SymInt row, SymInt step, str backend, "
        "Tensor? rows=None, Tensor? steps=None) -> ()",
        _draw_components,
        _write_nothing,
    ),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch_library.register_fake(f"gmmkernel::{_name}", _fake, lib=_library)

gmm_step = torch.ops.gmmkernel.gmm_step.default
gmm_step_backward = torch.ops.gmmkernel.gmm_step_backward.default
log_prob = torch.ops.gmmkernel.gmm_step_log_prob.default
log_prob_backward = torch.ops.gmmkernel.gmm_step_log_prob_backward.default
standard_normal = torch.ops.gmmkernel.standard_normal.default
draw_components = torch.ops.gmmkernel.draw_components.default
