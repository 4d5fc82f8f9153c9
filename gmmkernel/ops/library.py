"""The raw operators, registered with PyTorch: schemas and implementations; fake tensors have nothing to do.

They take the tensors to write, the name of a resolved backend, and inputs that the public functions have checked, as
`gmmkernel.ops.op` describes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import library as torch_library
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from gmmkernel import backends
from gmmkernel.backends.constants import Stream
from gmmkernel.backends.protocol import LogProbGradients, StepGradients, StepInputs, TrainingGradients
from gmmkernel.ops import low_rank
from gmmkernel.ops.checks import is_eager
from gmmkernel.ops.op import COMPONENTS, LOG_PROB, LOSS, NOISE, NORMAL, RESIDUAL, STEP, Op

_library = torch_library.Library("gmmkernel", "DEF")
_implementations: dict[str, Callable[..., Any]] = {}
_NUMBERS = (type(None), int, bool, str)


def _gmm_step(
    out: Tensor,
    prediction: Tensor | None,
    components: Tensor | None,
    prediction_kind: int,
    backend: str,
    *operands: Any,
) -> None:
    inputs = STEP.read(operands)
    do = (
        backends.load(backend).gmm_step
        if inputs.basis is None
        else partial(low_rank.step, backends.load(backend))
    )
    do(inputs, out, prediction, prediction_kind, components)


def _new_gradients(wanted: Sequence[bool], op: Op, operands: Sequence[Any]) -> list[Tensor | None]:
    """Return memory for the gradients that are wanted, of the tensors that can have one."""
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if asked and tensor is not None
        else None
        for asked, tensor in zip(wanted, op.primals(op.flat(operands)), strict=True)
    ]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _gmm_step_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    backend: str,
    *operands: Any,
) -> list[Tensor]:
    inputs, made = STEP.read(operands), _new_gradients(wanted, STEP, operands)
    of = STEP.gradients(made)
    of_basis, of_std_delta = of.pop("basis"), of.pop("std_delta")
    if inputs.basis is not None:
        targets = of["offsets"], of_basis, of_std_delta
        _low_rank_gradients(targets, inputs, grad, backend)
        of["offsets"] = None  # all others are those of a step without
    gradients = StepGradients(**of, history=made[len(made) - len(inputs.history) :])
    backends.load(backend).gmm_step_backward(inputs, grad, grad_prediction, prediction_kind, gradients)
    return _present(made)


def _low_rank_gradients(
    targets: Sequence[Tensor | None], inputs: StepInputs, grad: Tensor, backend: str
) -> None:
    """Write the gradients of offsets, basis and std_delta of exactly matched moments, those that are wanted."""
    if all(table is None for table in targets):
        return
    assert inputs.cdf is not None
    assert inputs.offsets is not None
    assert inputs.basis is not None
    assert inputs.std_delta is not None
    kernels, batch = backends.load(backend), grad.shape[0]
    noise = inputs.coefficients.new_empty(batch, math.prod(grad.shape[1:]))
    kernels.standard_normal(noise, inputs.seeds, inputs.step, Stream.TRANSITION)
    components = torch.empty_like(inputs.seeds)
    kernels.draw_components(components, inputs.seeds, inputs.cdf, inputs.row, inputs.step)
    found = low_rank.step_gradients(
        grad.reshape(noise.shape),
        noise,
        components,
        inputs.coefficients,
        low_rank.row_of_each(inputs.row, inputs.seeds),
        low_rank.StepTables(inputs.offsets, inputs.basis, inputs.std_delta),
    )
    for target, gradient in zip(targets, found, strict=True):
        if target is not None:
            target.copy_(gradient)


def _gmm_step_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, STEP, arguments[4:]))


def _log_prob_fake(backend: str, *operands: Any) -> list[Tensor]:
    """Return memory for the log-densities and, where there is a mixture, its responsibilities.

    Where moments are matched exactly, for the energies as well.
    """
    inputs = LOG_PROB.read(operands)
    shapes = [inputs.sample.shape[:1]]
    if inputs.weights is not None:
        of_components = (inputs.sample.shape[0], inputs.weights.shape[1])
        shapes += [of_components] * (1 if inputs.basis is None else 2)
    return [inputs.coefficients.new_empty(shape) for shape in shapes]


def _log_prob(backend: str, *operands: Any) -> list[Tensor]:
    inputs, made = LOG_PROB.read(operands), _log_prob_fake(backend, *operands)
    kernels = backends.load(backend)
    result, responsibilities, energies = (*made, None, None)[:3]
    assert result is not None
    penalties = None
    if energies is not None:
        kernels.log_prob(inputs, result, None, energies)
        penalties = low_rank.penalties(kernels, energies, inputs)
    kernels.log_prob(inputs, result, responsibilities, None, penalties)
    return made


def _log_prob_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    responsibilities: Tensor | None,
    energies: Tensor | None,
    backend: str,
    *operands: Any,
) -> list[Tensor]:
    inputs, made = LOG_PROB.read(operands), _new_gradients(wanted, LOG_PROB, operands)
    of = LOG_PROB.gradients(made)
    of_prev_sample, of_weights = of.pop("prev_sample"), of.pop("weights")
    targets = of_weights, *(of.pop(name) for name in ("basis", "slopes", "shifts", "half_logdet"))
    if energies is not None:
        assert responsibilities is not None
        responsibilities, found = low_rank.density_gradients(grad, responsibilities, energies, inputs)
        for target, gradient in zip(targets, found, strict=True):
            if target is not None:
                target.copy_(gradient)
        of_weights = None  # the kernels would divide what stands for the shares
    of_step = StepGradients(**of, history=made[len(made) - len(inputs.history) :])
    gradients = LogProbGradients(of_prev_sample, of_weights, of_step)
    backends.load(backend).log_prob_backward(inputs, responsibilities, grad, gradients)
    return _present(made)


def _log_prob_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOG_PROB, arguments[4:]))


def _add_noise(out: Tensor, noise: Tensor | None, backend: str, *operands: Any) -> None:
    backends.load(backend).add_noise(NOISE.read(operands), out, noise)


def _skip_step_loss_fake(residual: bool, backend: str, *operands: Any) -> list[Tensor]:
    """Return memory for the losses and, on request, for the residual of their elements."""
    inputs = LOSS.read(operands)
    made = [inputs.coefficients.new_empty(inputs.model_output.shape[0])]
    return [*made, inputs.coefficients.new_empty(inputs.model_output.shape)] if residual else made


def _skip_step_loss(residual: bool, backend: str, *operands: Any) -> list[Tensor]:
    made = _skip_step_loss_fake(residual, backend, *operands)
    backends.load(backend).skip_step_loss(LOSS.read(operands), *made)
    return made


def _scale_residual(residual: Tensor, grad: Tensor, backend: str, *operands: Any) -> None:
    coefficients, row, step = RESIDUAL.read(operands)
    backends.load(backend).scale_residual(residual, coefficients, row, step, grad)


def _skip_step_loss_backward(
    wanted: Sequence[bool], grad: Tensor, backend: str, *operands: Any
) -> list[Tensor]:
    inputs, made = LOSS.read(operands), _new_gradients(wanted, LOSS, operands)
    backends.load(backend).skip_step_loss_backward(inputs, grad, TrainingGradients(*made))
    return _present(made)


def _skip_step_loss_backward_fake(wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOSS, arguments[2:]))


def _standard_normal(out: Tensor, stream: int, backend: str, *operands: Any) -> None:
    seeds, step = NORMAL.read(operands)
    backends.load(backend).standard_normal(out, seeds, step, stream)


def _draw_components(out: Tensor, backend: str, *operands: Any) -> None:
    backends.load(backend).draw_components(out, *COMPONENTS.read(operands))


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
        "gmm_step(Tensor(a!) out, Tensor(b!)? prediction, Tensor(c!)? components, int prediction_kind, str backend, "
        f"{STEP.schema}) -> ()",
        _gmm_step,
        _write_nothing,
    ),
    (
        "gmm_step_backward(bool[] wanted, Tensor grad, Tensor? grad_prediction, int prediction_kind, str backend, "
        f"{STEP.schema}) -> Tensor[]",
        _gmm_step_backward,
        _gmm_step_backward_fake,
    ),
    (f"gmm_step_log_prob(str backend, {LOG_PROB.schema}) -> Tensor[]", _log_prob, _log_prob_fake),
    (
        "gmm_step_log_prob_backward(bool[] wanted, Tensor grad, Tensor? responsibilities, Tensor? energies, "
        f"str backend, {LOG_PROB.schema}) -> Tensor[]",
        _log_prob_backward,
        _log_prob_backward_fake,
    ),
    (
        f"add_noise(Tensor(a!) out, Tensor(b!)? noise, str backend, {NOISE.schema}) -> ()",
        _add_noise,
        _write_nothing,
    ),
    (
        f"skip_step_loss(bool residual, str backend, {LOSS.schema}) -> Tensor[]",
        _skip_step_loss,
        _skip_step_loss_fake,
    ),
    (
        f"scale_residual(Tensor(a!) residual, Tensor grad, str backend, {RESIDUAL.schema}) -> ()",
        _scale_residual,
        _write_nothing,
    ),
    (
        f"skip_step_loss_backward(bool[] wanted, Tensor grad, str backend, {LOSS.schema}) -> Tensor[]",
        _skip_step_loss_backward,
        _skip_step_loss_backward_fake,
    ),
    (
        f"standard_normal(Tensor(a!) out, int stream, str backend, {NORMAL.schema}) -> ()",
        _standard_normal,
        _write_nothing,
    ),
    (
        f"draw_components(Tensor(a!) out, str backend, {COMPONENTS.schema}) -> ()",
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
