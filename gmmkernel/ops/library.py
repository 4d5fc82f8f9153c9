"""The raw operators, registered with PyTorch: schemas and implementations; fake tensors have nothing to do.

They take the tensors to write, the name of a resolved backend, and inputs that the public functions have checked, as
`gmmkernel.ops.op` describes them.
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
from gmmkernel.backends.constants import SUM_TILE, Stream
from gmmkernel.backends.protocol import (
    LogProbGradients,
    LogProbInputs,
    LogRatioGradients,
    LogRatioInputs,
    NoiseInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)
from gmmkernel.ops import exact
from gmmkernel.ops.checks import is_eager
from gmmkernel.ops.op import (
    COMPONENTS,
    LOG_PROB,
    LOG_RATIO,
    LOSS,
    NOISE,
    NORMAL,
    RESIDUAL,
    STEP,
    ComponentInputs,
    NormalInputs,
    Op,
    ResidualInputs,
)

_library = torch_library.Library("gmmkernel", "DEF")
_NUMBERS = frozenset((type(None), int, bool, str))


def _gmm_step(
    out: Tensor,
    prediction: Tensor | None,
    components: Tensor | None,
    log_prob: Tensor | None,
    prediction_kind: int,
    backend: str,
    inputs: StepInputs,
) -> None:
    kernels, outputs = backends.load(backend), (out, prediction, prediction_kind, components)
    if inputs.basis is None:
        kernels.gmm_step(inputs, *outputs, log_prob)
    else:
        exact.step(kernels, inputs, *outputs)


def _new_gradients(wanted: Sequence[bool], op: Op, inputs: Any) -> list[Tensor | None]:
    """Return memory for the gradients that are wanted, of the tensors that can have one."""
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if asked and tensor is not None
        else None
        for asked, tensor in zip(wanted, op.primals_of(inputs), strict=True)
    ]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _step_gradients(made: Sequence[Tensor | None], history: Sequence[Tensor | None]) -> StepGradients:
    sample, model_output, model_output_uncond, coefficients, offsets, std = made[:6]
    return StepGradients(sample, model_output, model_output_uncond, coefficients, offsets, std, history)


def _gmm_step_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    backend: str,
    inputs: StepInputs,
) -> list[Tensor]:
    made = _new_gradients(wanted, STEP, inputs)
    gradients = _step_gradients(made, made[8:])
    if inputs.basis is not None:
        _exact_gradients((made[4], *made[6:8]), inputs, grad, backend)
        gradients = gradients._replace(offsets=None)  # all others are those of a step without
    backends.load(backend).gmm_step_backward(inputs, grad, grad_prediction, prediction_kind, gradients)
    return _present(made)


def _exact_gradients(
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
    found = exact.step_gradients(
        grad.reshape(noise.shape),
        noise,
        components,
        inputs.coefficients,
        exact.row_of_each(inputs.row, inputs.seeds),
        exact.StepTables(inputs.offsets, inputs.basis, inputs.std_delta),
    )
    for target, gradient in zip(targets, found, strict=True):
        if target is not None:
            target.copy_(gradient)


def _gmm_step_backward_fake(wanted: Sequence[bool], *given: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, STEP, given[-1]))


def _tiles(sample: Tensor) -> int:
    return -(-math.prod(sample.shape[1:]) // SUM_TILE)


def _log_prob_fake(tiles: bool, backend: str, inputs: LogProbInputs) -> list[Tensor]:
    """Return memory for the log-densities and, where there is a mixture, its responsibilities.

    Where moments are matched exactly, for the energies as well.
    """
    batch = inputs.sample.shape[0]
    shapes: list[tuple[int, ...]] = [(batch, _tiles(inputs.sample)) if tiles else (batch,)]
    if inputs.weights is not None:
        of_components = (batch, inputs.weights.shape[1])
        shapes += [of_components] * (1 if inputs.basis is None else 2)
    return [inputs.coefficients.new_empty(shape) for shape in shapes]


def _log_prob(tiles: bool, backend: str, inputs: LogProbInputs) -> list[Tensor]:
    made = _log_prob_fake(tiles, backend, inputs)
    if made[0].numel() == 0:
        return made
    kernels = backends.load(backend)
    result, responsibilities, energies = (*made, None, None)[:3]
    assert result is not None
    penalties = None
    if energies is not None:
        kernels.log_prob(inputs, result, None, energies)
        penalties = exact.penalties(kernels, energies, inputs)
    kernels.log_prob(inputs, result, responsibilities, None, penalties)
    return made


def _log_prob_backward(
    wanted: Sequence[bool],
    grad: Tensor,
    responsibilities: Tensor | None,
    energies: Tensor | None,
    backend: str,
    inputs: LogProbInputs,
) -> list[Tensor]:
    made = _new_gradients(wanted, LOG_PROB, inputs)
    of_step = _step_gradients(made, made[12:])
    of_prev_sample, of_weights, targets = made[6], made[7], made[7:12]
    if energies is not None:
        assert responsibilities is not None
        responsibilities, found = exact.density_gradients(grad, responsibilities, energies, inputs)
        for target, gradient in zip(targets, found, strict=True):
            if target is not None:
                target.copy_(gradient)
        of_weights = None  # the kernels would divide what stands for the shares
    gradients = LogProbGradients(of_prev_sample, of_weights, of_step)
    backends.load(backend).log_prob_backward(inputs, responsibilities, grad, gradients)
    return _present(made)


def _log_prob_backward_fake(wanted: Sequence[bool], *given: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOG_PROB, given[-1]))


def _log_ratio_fake(tiles: bool, backend: str, inputs: LogRatioInputs) -> Tensor:
    batch = inputs.sample.shape[0]
    return inputs.coefficients.new_empty((batch, _tiles(inputs.sample), 2) if tiles else (batch, 2))


def _log_ratio(tiles: bool, backend: str, inputs: LogRatioInputs) -> Tensor:
    made = _log_ratio_fake(tiles, backend, inputs)
    if made.numel() > 0:
        backends.load(backend).log_ratio(inputs, made)
    return made


def _log_ratio_backward(
    wanted: Sequence[bool], grad: Tensor, backend: str, inputs: LogRatioInputs
) -> list[Tensor]:
    made = _new_gradients(wanted, LOG_RATIO, inputs)
    sample, output, old_output, prev_sample, uncond, old_uncond, *history = made
    gradients = LogRatioGradients(sample, output, old_output, prev_sample, uncond, old_uncond, history)
    backends.load(backend).log_ratio_backward(inputs, grad, gradients)
    return _present(made)


def _log_ratio_backward_fake(wanted: Sequence[bool], *given: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOG_RATIO, given[-1]))


def _add_noise(out: Tensor, noise: Tensor | None, backend: str, inputs: NoiseInputs) -> None:
    backends.load(backend).add_noise(inputs, out, noise)


def _skip_step_loss_fake(residual: bool, backend: str, inputs: TrainingInputs) -> list[Tensor]:
    """Return memory for the losses and, on request, for the residual of their elements."""
    made = [inputs.coefficients.new_empty(inputs.model_output.shape[0])]
    return [*made, inputs.coefficients.new_empty(inputs.model_output.shape)] if residual else made


def _skip_step_loss(residual: bool, backend: str, inputs: TrainingInputs) -> list[Tensor]:
    made = _skip_step_loss_fake(residual, backend, inputs)
    backends.load(backend).skip_step_loss(inputs, *made)
    return made


def _scale_residual(residual: Tensor, grad: Tensor, backend: str, inputs: ResidualInputs) -> None:
    backends.load(backend).scale_residual(residual, inputs.coefficients, inputs.row, inputs.step, grad)


def _skip_step_loss_backward(
    wanted: Sequence[bool], grad: Tensor, backend: str, inputs: TrainingInputs
) -> list[Tensor]:
    made = _new_gradients(wanted, LOSS, inputs)
    backends.load(backend).skip_step_loss_backward(inputs, grad, TrainingGradients(*made))
    return _present(made)


def _skip_step_loss_backward_fake(wanted: Sequence[bool], *given: Any) -> list[Tensor]:
    return _present(_new_gradients(wanted, LOSS, given[-1]))


def _standard_normal(out: Tensor, stream: int, backend: str, inputs: NormalInputs) -> None:
    kernels = backends.load(backend)
    kernels.standard_normal(out, inputs.seeds, inputs.step, stream, inputs.first_element)


def _draw_components(out: Tensor, backend: str, inputs: ComponentInputs) -> None:
    backends.load(backend).draw_components(out, *inputs)


def _write_nothing(*arguments: object, **named: object) -> None:
    return None


def _counting_versions(operator: Any, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an implementation that lets autograd know what it writes into: whatever the schema says.

    As an operator of PyTorch's own does, so that a tensor saved for a backward pass and overwritten since is an error
    there. A kernel writes past PyTorch, which counts by itself only for operators that return what they wrote.
    """
    arguments = operator._schema.arguments
    written = [
        i for i, argument in enumerate(arguments) if argument.alias_info and argument.alias_info.is_write
    ]
    if not written:
        return implementation

    def counted(*given: Any) -> Any:
        made = implementation(*given)
        for i in written:
            if given[i] is not None:
                increment_version(given[i])
        return made

    return counted


def _is_plain(values: Sequence[Any]) -> bool:
    """Return whether tensors are what their memory holds, and nothing but tensors."""
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.is_neg() or value._is_zerotensor():
                return False
        elif kind is list or kind is tuple:
            if not _is_plain(value):
                return False
        elif kind not in _NUMBERS:
            return False
    return True


def _without_subclass(value: Any) -> Any:
    """Return a tensor, or a list of them, as PyTorch's own class: extensions take no other."""
    if isinstance(value, list):
        return [_without_subclass(entry) for entry in value]
    if isinstance(value, Tensor) and type(value) not in (Tensor, Parameter):
        return value.as_subclass(Tensor)
    return value


class Operator:
    """An operator registered with PyTorch; calls go past its dispatcher, which takes longer than a small kernel.

    Registered, it takes what its schema says, then an op's inputs one by one; here it takes the inputs as they are.

    Args:
        schema: without the inputs.
        op: the inputs.
        returns: what it returns, in the schema's words.
        implementation: what it does.
        fake: the same of tensors without memory.
    """

    def __init__(
        self, schema: str, op: Op, returns: str, implementation: Callable[..., Any], fake: Callable[..., Any]
    ) -> None:
        self.name = schema.partition("(")[0]
        first = schema.count(", ") + 1  # of the inputs
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        _library.define(f"{schema}, {op.schema}) -> {returns}", tags=tags)
        self._op, self._operator = op, getattr(torch.ops.gmmkernel, self.name).default
        self.of_plain = _counting_versions(self._operator, implementation)

        def of_operands(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *given: function(*given[:first], op.read(given[first:]))

        def of_subclasses(*given: Any) -> Any:
            return of_operands(self.of_plain)(*map(_without_subclass, given))

        _library.impl(self.name, of_subclasses, "CompositeExplicitAutograd")
        torch_library.register_fake(f"gmmkernel::{self.name}", of_operands(fake), lib=_library)

    def __call__(self, *given: Any) -> Any:
        """Do what the implementation does; `of_plain` does it unasked."""
        *before, inputs = given
        if is_eager() and _is_plain(before) and _is_plain(inputs):
            return self.of_plain(*given)
        return self._operator(*before, *self._op.spread(inputs))


gmm_step = Operator(
    "gmm_step(Tensor(a!) out, Tensor(b!)? prediction, Tensor(c!)? components, Tensor(d!)? log_prob, "
    "int prediction_kind, str backend",
    STEP,
    "()",
    _gmm_step,
    _write_nothing,
)
gmm_step_backward = Operator(
    "gmm_step_backward(bool[] wanted, Tensor grad, Tensor? grad_prediction, int prediction_kind, str backend",
    STEP,
    "Tensor[]",
    _gmm_step_backward,
    _gmm_step_backward_fake,
)
log_prob = Operator(
    "gmm_step_log_prob(bool tiles, str backend", LOG_PROB, "Tensor[]", _log_prob, _log_prob_fake
)
log_prob_backward = Operator(
    "gmm_step_log_prob_backward(bool[] wanted, Tensor grad, Tensor? responsibilities, Tensor? energies, str backend",
    LOG_PROB,
    "Tensor[]",
    _log_prob_backward,
    _log_prob_backward_fake,
)
log_ratio = Operator(
    "gmm_step_log_ratio(bool tiles, str backend", LOG_RATIO, "Tensor", _log_ratio, _log_ratio_fake
)
log_ratio_backward = Operator(
    "gmm_step_log_ratio_backward(bool[] wanted, Tensor grad, str backend",
    LOG_RATIO,
    "Tensor[]",
    _log_ratio_backward,
    _log_ratio_backward_fake,
)
add_noise = Operator(
    "add_noise(Tensor(a!) out, Tensor(b!)? noise, str backend", NOISE, "()", _add_noise, _write_nothing
)
skip_step_loss = Operator(
    "skip_step_loss(bool residual, str backend", LOSS, "Tensor[]", _skip_step_loss, _skip_step_loss_fake
)
scale_residual = Operator(
    "scale_residual(Tensor(a!) residual, Tensor grad, str backend",
    RESIDUAL,
    "()",
    _scale_residual,
    _write_nothing,
)
skip_step_loss_backward = Operator(
    "skip_step_loss_backward(bool[] wanted, Tensor grad, str backend",
    LOSS,
    "Tensor[]",
    _skip_step_loss_backward,
    _skip_step_loss_backward_fake,
)
standard_normal = Operator(
    "standard_normal(Tensor(a!) out, int stream, str backend", NORMAL, "()", _standard_normal, _write_nothing
)
draw_components = Operator(
    "draw_components(Tensor(a!) out, str backend", COMPONENTS, "()", _draw_components, _write_nothing
)
