"""The raw operators, registered with PyTorch: schemas and implementations; fake tensors have nothing to do.

They take arguments that the public functions have checked, the name of a resolved backend, and the tensors to write.
An index is an int for all samples (`row`, `step`), unless a tensor comes with one for each (`rows`, `steps`).
What is not needed comes last and is left out of a call, since every argument costs time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import library as torch_library
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from gmmkernel import backends
from gmmkernel.backends.constants import Stream
from gmmkernel.backends.protocol import (
    LogProbGradients,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)
from gmmkernel.ops import low_rank
from gmmkernel.ops.checks import is_eager
from gmmkernel.ops.tensors import DENSITY, LOSS, STEP, Layout, LogProbTensors, LossTensors, StepTensors

_library = torch_library.Library("gmmkernel", "DEF")
_implementations: dict[str, Callable[..., Any]] = {}
_NUMBERS = (type(None), int, bool, str)


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
    cdf: Tensor | None = None,
    offsets: Tensor | None = None,
    std: Tensor | None = None,
    basis: Tensor | None = None,
    std_delta: Tensor | None = None,
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
        cdf,
        offsets,
        std,
    )
    kernels, outputs = backends.load(backend), (out, prediction, prediction_kind, components)
    if basis is None or std_delta is None:
        kernels.gmm_step(inputs, *outputs)
    else:
        low_rank.step(kernels, inputs, basis, std_delta, *outputs)


def _new_gradients(
    wanted: Sequence[bool], layout: Layout, given: Sequence[Any], history: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """Return memory for the gradients that are wanted, of the tensors that can have one."""
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if asked and tensor is not None
        else None
        for asked, tensor in zip(wanted, layout.primals((*given, *(history or ()))), strict=True)
    ]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _gradients_of_step(made: Sequence[Tensor | None], history: Sequence[Tensor | None]) -> StepGradients:
    sample, model_output, model_output_uncond, coefficients, offsets, std = made
    return StepGradients(sample, model_output, model_output_uncond, coefficients, offsets, std, history)


def _gmm_step_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    row: int,
    step: int,
    backend: str,
    *given: Any,
) -> list[Tensor]:
    t, history = StepTensors(*given[:-1]), given[-1]
    made = _new_gradients(wanted, STEP, t, history)
    inputs = StepInputs(
        t.sample,
        t.model_output,
        t.coefficients,
        t.seeds,
        row if t.rows is None else t.rows,
        step if t.steps is None else t.steps,
        t.model_output_uncond,
        history or (),
        t.cdf,
        t.offsets,
        t.std,
    )
    offsets = made[4]
    if t.basis is not None and t.std_delta is not None:
        _low_rank_gradients(made, inputs, t.basis, t.std_delta, grad, backend)
        offsets = None  # all others are those of a step without
    gradients = _gradients_of_step((*made[:4], offsets, made[5]), made[8:])
    backends.load(backend).gmm_step_backward(inputs, grad, grad_prediction, prediction_kind, gradients)
    return _present(made)


def _low_rank_gradients(
    made: Sequence[Tensor | None],
    inputs: StepInputs,
    basis: Tensor,
    std_delta: Tensor,
    grad: Tensor,
    backend: str,
) -> None:
    """Write the gradients of the tables of exactly matched moments, those that are wanted."""
    of_offsets, of_basis, of_std_delta = made[4], made[6], made[7]
    wanted = (of_offsets, of_basis, of_std_delta)
    if all(table is None for table in wanted):
        return
    assert inputs.cdf is not None
    assert inputs.offsets is not None
    kernels, batch = backends.load(backend), grad.shape[0]
    noise = inputs.coefficients.new_empty(batch, math.prod(grad.shape[1:]))
    kernels.standard_normal(noise, inputs.seeds, inputs.step, Stream.TRANSITION)
    components = torch.empty_like(inputs.seeds)
    kernels.draw_components(components, inputs.seeds, inputs.cdf, inputs.row, inputs.step)
    tables = low_rank.StepTables(inputs.offsets, basis, std_delta)
    found = low_rank.step_gradients(
        grad.reshape(noise.shape),
        noise,
        components,
        inputs.coefficients,
        low_rank.row_of_each(inputs.row, inputs.seeds),
        tables,
    )
    for target, gradient in zip(wanted, found, strict=True):
        if target is not None:
            target.copy_(gradient)


def _gmm_step_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    *given, history = arguments[6:]
    return _present(_new_gradients(wanted, STEP, given, history))


def _density_inputs(row: int, t: LogProbTensors, history: Sequence[Tensor] | None) -> StepInputs:
    return StepInputs(
        t.sample,
        t.model_output,
        t.coefficients,
        t.coefficients.new_empty(0, dtype=torch.int64),  # nothing is drawn
        row if t.rows is None else t.rows,
        0,
        t.model_output_uncond,
        history or (),
        None,
        t.offsets,
        t.std,
    )


def _log_prob_fake(row: int, backend: str, *given: Any) -> list[Tensor]:
    """Return memory for the log-densities and, where there is a mixture, its responsibilities.

    Where moments are matched exactly, for the energies as well.
    """
    t = LogProbTensors(*given[:-1])
    batch = t.sample.shape[0]
    shapes: list[tuple[int, ...]] = (
        [(batch,)] if t.weights is None else [(batch,), (batch, t.weights.shape[1])]
    )
    if t.basis is not None:
        shapes.append(shapes[1])
    return [t.coefficients.new_empty(shape) for shape in shapes]


def _log_prob(row: int, backend: str, *given: Any) -> list[Tensor]:
    made = _log_prob_fake(row, backend, *given)
    t, history = LogProbTensors(*given[:-1]), given[-1]
    result, responsibilities, energies = (*made, None, None)[:3]
    assert result is not None
    kernels, inputs, tables = backends.load(backend), _density_inputs(row, t, history), _density_tables(t)
    penalties = None
    if tables is not None and energies is not None:
        kernels.log_prob(inputs, t.prev_sample, t.weights, result, None, energies)
        penalties = low_rank.penalties(kernels, energies, inputs, tables)
    kernels.log_prob(inputs, t.prev_sample, t.weights, result, responsibilities, None, penalties)
    return made


def _density_tables(t: LogProbTensors) -> low_rank.DensityTables | None:
    tables = t.weights, t.basis, t.slopes, t.shifts, t.half_logdet
    return None if t.basis is None else low_rank.DensityTables(*tables)  # type: ignore[arg-type]


def _log_prob_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    responsibilities: Tensor | None,
    energies: Tensor | None,
    row: int,
    backend: str,
    *given: Any,
) -> list[Tensor]:
    t, history = LogProbTensors(*given[:-1]), given[-1]
    made = _new_gradients(wanted, DENSITY, t, history)
    of_weights = made[7]
    tables = _density_tables(t)
    if tables is not None:
        assert responsibilities is not None
        assert energies is not None
        rows = low_rank.row_of_each(row if t.rows is None else t.rows, responsibilities)
        responsibilities, found = low_rank.density_gradients(
            grad, responsibilities, energies, t.coefficients, rows, tables
        )
        for target, gradient in zip(made[7:12], found, strict=True):
            if target is not None:
                target.copy_(gradient)
        of_weights = None  # the kernels would divide what stands for the shares
    gradients = LogProbGradients(made[6], of_weights, _gradients_of_step(made[:6], made[12:]))
    inputs = _density_inputs(row, t, history)
    backends.load(backend).log_prob_backward(
        inputs, t.prev_sample, t.weights, responsibilities, grad, gradients
    )
    return _present(made)


def _log_prob_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    *given, history = arguments[5:]
    return _present(_new_gradients(wanted, DENSITY, given, history))


def _add_noise(
    out: Tensor,
    sample: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    row: int,
    step: int,
    backend: str,
    rows: Tensor | None = None,
    steps: Tensor | None = None,
    noise: Tensor | None = None,
) -> None:
    indices = row if rows is None else rows, step if steps is None else steps
    backends.load(backend).add_noise(sample, coefficients, seeds, *indices, out, noise)


def _training_inputs(row: int, step: int, t: LossTensors) -> TrainingInputs:
    return TrainingInputs(
        t.model_output,
        t.sample,
        t.coefficients,
        t.seeds,
        row if t.rows is None else t.rows,
        step if t.steps is None else t.steps,
    )


def _skip_step_loss_fake(residual: bool, row: int, step: int, backend: str, *given: Any) -> list[Tensor]:
    """Return memory for the losses and, on request, for the residual of their elements."""
    t = LossTensors(*given)
    made = [t.coefficients.new_empty(t.model_output.shape[0])]
    return [*made, t.coefficients.new_empty(t.model_output.shape)] if residual else made


def _skip_step_loss(residual: bool, row: int, step: int, backend: str, *given: Any) -> list[Tensor]:
    made = _skip_step_loss_fake(residual, row, step, backend, *given)
    backends.load(backend).skip_step_loss(_training_inputs(row, step, LossTensors(*given)), *made)
    return made


def _scale_residual(
    residual: Tensor,
    grad: Tensor,
    row: int,
    step: int,
    backend: str,
    coefficients: Tensor,
    rows: Tensor | None,
    steps: Tensor | None,
) -> None:
    indices = row if rows is None else rows, step if steps is None else steps
    backends.load(backend).scale_residual(residual, coefficients, *indices, grad)


def _skip_step_loss_backward(
    wanted: Sequence[bool], grad: Tensor, row: int, step: int, backend: str, *given: Any
) -> list[Tensor]:
    made = _new_gradients(wanted, LOSS, given, None)
    inputs = _training_inputs(row, step, LossTensors(*given))
    backends.load(backend).skip_step_loss_backward(inputs, grad, TrainingGradients(*made))
    return _present(made)


def _skip_step_loss_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOSS, arguments[4:], None))


def _standard_normal(
    out: Tensor, seeds: Tensor, step: int, stream: int, backend: str, steps: Tensor | None = None
) -> None:
    backends.load(backend).standard_normal(out, seeds, step if steps is None else steps, stream)


def _draw_components(
    out: Tensor,
    seeds: Tensor,
    cdf: Tensor,
    row: int,
    step: int,
    backend: str,
    rows: Tensor | None = None,
    steps: Tensor | None = None,
) -> None:
    backends.load(backend).draw_components(
        out, seeds, cdf, row if rows is None else rows, step if steps is None else steps
    )


def _write_nothing(*arguments: object, **named: object) -> None:
    return None


def _counting_versions(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an implementation that lets autograd know what it writes into: whatever the schema says.

    As an operator of PyTorch's own does, so that a tensor saved for a backward pass and overwritten since is an error
    there. A kernel writes past PyTorch, which counts by itself only for operators that return what they wrote.
    """
    arguments = getattr(torch.ops.gmmkernel, name).default._schema.arguments
    written = [
        i for i, argument in enumerate(arguments) if argument.alias_info and argument.alias_info.is_write
    ]
    if not written:
        return implementation

    def counted(*given: Any) -> Any:
        made = implementation(*given)
        for i in written:
            if i < len(given) and given[i] is not None:  # the last ones may be left out
                increment_version(given[i])
        return made

    return counted


for _schema, _implementation, _fake in (
    (
        "gmm_step(Tensor(a!) out, Tensor sample, Tensor model_output, Tensor coefficients, Tensor seeds, "
        "SymInt row, SymInt step, str backend, Tensor? rows=None, Tensor? steps=None, "
        "Tensor? model_output_uncond=None, Tensor[]? history=None, Tensor? cdf=None, "
        "Tensor? offsets=None, Tensor? std=None, Tensor? basis=None, Tensor? std_delta=None, "
        "Tensor(b!)? prediction=None, "
        "Tensor(c!)? components=None, int prediction_kind=0) -> ()",
        _gmm_step,
        _write_nothing,
    ),
    (
        "gmm_step_backward(bool[] wanted, Tensor grad, Tensor? grad_prediction, int prediction_kind, SymInt row, "
        "SymInt step, str backend, Tensor sample, Tensor model_output, Tensor? model_output_uncond, "
        "Tensor coefficients, Tensor? offsets, Tensor? std, Tensor? basis, Tensor? std_delta, Tensor seeds, "
        "Tensor? rows, Tensor? steps, "
        "Tensor? cdf, Tensor[]? history) -> Tensor[]",
        _gmm_step_backward,
        _gmm_step_backward_fake,
    ),
    (
        "gmm_step_log_prob(SymInt row, str backend, Tensor sample, Tensor model_output, Tensor? model_output_uncond, "
        "Tensor coefficients, Tensor? offsets, Tensor? std, Tensor prev_sample, Tensor? weights, Tensor? basis, "
        "Tensor? slopes, Tensor? shifts, Tensor? half_logdet, Tensor? rows, "
        "Tensor[]? history) -> Tensor[]",
        _log_prob,
        _log_prob_fake,
    ),
    (
        "gmm_step_log_prob_backward(bool[] wanted, Tensor grad, Tensor? responsibilities, Tensor? energies, "
        "SymInt row, str backend, "
        "Tensor sample, Tensor model_output, Tensor? model_output_uncond, Tensor coefficients, Tensor? offsets, "
        "Tensor? std, Tensor prev_sample, Tensor? weights, Tensor? basis, Tensor? slopes, Tensor? shifts, "
        "Tensor? half_logdet, Tensor? rows, Tensor[]? history) -> Tensor[]",
        _log_prob_backward,
        _log_prob_backward_fake,
    ),
    (
        "add_noise(Tensor(a!) out, Tensor sample, Tensor coefficients, Tensor seeds, SymInt row, SymInt step, "
        "str backend, Tensor? rows=None, Tensor? steps=None, Tensor(b!)? noise=None) -> ()",
        _add_noise,
        _write_nothing,
    ),
    (
        "skip_step_loss(bool residual, SymInt row, SymInt step, str backend, Tensor model_output, Tensor? sample, "
        "Tensor coefficients, Tensor seeds, Tensor? rows, Tensor? steps) -> Tensor[]",
        _skip_step_loss,
        _skip_step_loss_fake,
    ),
    (
        "scale_residual(Tensor(a!) residual, Tensor grad, SymInt row, SymInt step, str backend, Tensor coefficients, "
        "Tensor? rows, Tensor? steps) -> ()",
        _scale_residual,
        _write_nothing,
    ),
    (
        "skip_step_loss_backward(bool[] wanted, Tensor grad, SymInt row, SymInt step, str backend, "
        "Tensor model_output, Tensor? sample, Tensor coefficients, Tensor seeds, Tensor? rows, Tensor? steps) "
        "-> Tensor[]",
        _skip_step_loss_backward,
        _skip_step_loss_backward_fake,
    ),
    (
        "standard_normal(Tensor(a!) out, Tensor seeds, SymInt step, int stream, str backend, "
        "Tensor? steps=None) -> ()",
        _standard_normal,
        _write_nothing,
    ),
    (
        "draw_components(Tensor(a!) out, Tensor seeds, Tensor cdf, SymInt row, SymInt step, str backend, "
        "Tensor? rows=None, Tensor? steps=None) -> ()",
        _draw_components,
        _write_nothing,
    ),
):
    _name = _schema.partition("(")[0]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _implementations[_name] = _counting_versions(_name, _implementation)
    _library.impl(_name, _implementations[_name], "CompositeExplicitAutograd")
    torch_library.register_fake(f"gmmkernel::{_name}", _fake, lib=_library)


def _is_plain(values: Sequence[Any]) -> bool:
    """Return whether tensors are what their memory holds, and nothing but tensors."""
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.is_neg() or value._is_zerotensor():
                return False
        elif kind is list:
            if not _is_plain(value):
                return False
        elif kind not in _NUMBERS:
            return False
    return True


def _short(name: str) -> Callable[..., Any]:
    """Return an operator that goes past PyTorch's dispatcher, which takes longer than a small kernel, where it can."""
    operator, implementation = getattr(torch.ops.gmmkernel, name).default, _implementations[name]

    def call(*given: Any) -> Any:
        return implementation(*given) if is_eager() and _is_plain(given) else operator(*given)

    return call


gmm_step = _short("gmm_step")
gmm_step_backward = _short("gmm_step_backward")
log_prob = _short("gmm_step_log_prob")
log_prob_backward = _short("gmm_step_log_prob_backward")
add_noise = _short("add_noise")
skip_step_loss = _short("skip_step_loss")
scale_residual = _short("scale_residual")
skip_step_loss_backward = _short("skip_step_loss_backward")
standard_normal = _short("standard_normal")
draw_components = _short("draw_components")
