"""What an op's inputs are, said once: operators, autograd and `vmap` take from here what they need to know of them.

The named tuples of `gmmkernel.backends.protocol` are the inputs as backends take them. PyTorch's operators and
Functions take tensors one by one instead, and of an index either a number or a tensor: *numbers*, one for each index, 0
where a tensor says it; *flat*, the tensors in the order of the fields, None for an index that is a number, the history
last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gmmkernel.backends.protocol import LogProbInputs, LogRatioInputs, NoiseInputs, StepInputs, TrainingInputs
from gmmkernel.ops.checks import contiguous
from gmmkernel.ops.vmap import Merged, Role, merge, rows_of

Numbers: TypeAlias = tuple[int, ...]
Flat: TypeAlias = tuple[Tensor | None, ...]

_TABLES = (
    "coefficients",
    "offsets",
    "std",
    "weights",
    "cdf",
    "basis",
    "std_delta",
    "slopes",
    "shifts",
    "half_logdet",
)


class ResidualInputs(NamedTuple):
    """What the residual of a training loss is multiplied with."""

    coefficients: Tensor
    row: int | Tensor
    step: int | Tensor


class NormalInputs(NamedTuple):
    """What noise is drawn from."""

    seeds: Tensor
    step: int | Tensor
    first_element: int | Tensor = 0


class ComponentInputs(NamedTuple):
    """What components are drawn from."""

    seeds: Tensor
    cdf: Tensor
    row: int | Tensor
    step: int | Tensor


class Op:
    """An op's inputs.

    Args:
        inputs: the named tuple of them.
        differentiable: those that have a gradient, the history apart, which has one wherever it is.
    """

    def __init__(self, inputs: Any, *differentiable: str) -> None:
        kinds = {name: kind.__forward_arg__ for name, kind in inputs.__annotations__.items()}
        self._make = inputs._make
        self._history = inputs._fields.index("history") if "history" in kinds else None
        kinds.pop("history", None)
        self.names = tuple(kinds)
        self._indices = [at for at, name in enumerate(self.names) if kinds[name] == "int | Tensor"]
        self._differentiable = [self.names.index(name) for name in differentiable]
        self._fields = [inputs._fields.index(name) for name in differentiable]
        self._roles = [
            (Role.ROWS if name == "row" else Role.STEPS)
            if at in self._indices
            else (Role.TABLE if name in _TABLES else Role.BATCH)
            for at, name in enumerate(self.names)
        ]
        numbers = [f"SymInt {self.names[at]}" for at in self._indices]
        tensors = [
            f"Tensor {name}" if kinds[name] == "Tensor" else f"Tensor? {name}{'s' * (at in self._indices)}"
            for at, name in enumerate(self.names)
        ]
        self.schema = ", ".join([*numbers, *tensors, *["Tensor[]? history"] * (self._history is not None)])

    def split(self, inputs: Any) -> tuple[Numbers, Flat]:
        """Return numbers and flat tensors of inputs."""
        given, numbers = list(inputs), []
        history = () if self._history is None else given.pop(self._history)
        for at in self._indices:
            if isinstance(given[at], Tensor):
                numbers.append(0)
            else:
                numbers.append(given[at])
                given[at] = None
        return tuple(numbers), (*given, *history)

    def join(self, numbers: Sequence[int], flat: Sequence[Tensor | None]) -> Any:
        """Return inputs of numbers and flat tensors."""
        values = self._whole(flat[: len(self.names)])
        for at, number in zip(self._indices, numbers, strict=True):
            if values[at] is None:
                values[at] = number
        if self._history is not None:
            values.insert(self._history, list(flat[len(self.names) :]))
        return self._make(values)

    def spread(self, inputs: Any) -> tuple[Any, ...]:
        """Return what an operator takes for inputs."""
        numbers, flat = self.split(inputs)
        if self._history is None:
            return (*numbers, *flat)
        return (*numbers, *flat[: len(self.names)], list(flat[len(self.names) :]) or None)

    def read(self, operands: Sequence[Any]) -> Any:
        """Return inputs of what an operator was given: the reverse of `spread`."""
        count = len(self._indices)
        end = count + len(self.names)
        values = self._whole(operands[count:end])
        for at, number in zip(self._indices, operands, strict=False):
            if values[at] is None:
                values[at] = number
        if self._history is not None:
            values.insert(self._history, operands[end] or ())
        return self._make(values)

    def _whole(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """Return tensors as backends take them: only samples may have strides.

        Public functions see to that, but an exported program is given others, and `vmap` makes others. A compiler only
        traces: its program calls the operators.
        """
        if torch.compiler.is_compiling():
            return list(tensors)
        return [
            contiguous(tensor)
            if tensor is not None and (role is not Role.BATCH or tensor.dim() == 1)
            else tensor
            for role, tensor in zip(self._roles, tensors, strict=True)
        ]

    def primals(self, flat: Sequence[Any]) -> list[Any]:
        """Return what belongs to the tensors with a gradient, of what belongs to all."""
        return [*[flat[at] for at in self._differentiable], *flat[len(self.names) :]]

    def primals_of(self, inputs: Any) -> list[Any]:
        """Return the tensors with a gradient of inputs."""
        return [*[inputs[at] for at in self._fields], *(() if self._history is None else inputs.history)]

    def among_all(self, of_primals: Sequence[Any], nothing: Any = None) -> tuple[Any, ...]:
        """Return the reverse of `primals`: `nothing` for the tensors without a gradient."""
        made = [nothing] * len(self.names)
        for at, value in zip(self._differentiable, of_primals, strict=False):
            made[at] = value
        return *made, *of_primals[len(self._differentiable) :]

    def merge(
        self,
        size: int,
        dims: Sequence[int | None],
        flat: Sequence[Any],
        wanted: Sequence[bool],
        numbers: Sequence[int],
    ) -> Merged:
        """Merge a mapped dimension into the batch; see `ops.vmap.merge`. The numbers stay what they are."""
        roles = (*self._roles, *[Role.BATCH] * (len(flat) - len(self._roles)))
        batch = rows_of(flat[0], dims[0])
        table = next((at for at, role in enumerate(roles) if role is Role.TABLE), None)
        entries = 1 if table is None else rows_of(flat[table], dims[table])
        return merge(size, dims, flat, roles, wanted, entries, batch, numbers[0])


STEP = Op(
    StepInputs,
    "sample", "model_output", "model_output_uncond", "coefficients", "offsets", "std", "basis", "std_delta",
)  # fmt: skip
LOG_PROB = Op(
    LogProbInputs,
    "sample", "model_output", "model_output_uncond", "coefficients", "offsets", "std", "prev_sample", "weights",
    "basis", "slopes", "shifts", "half_logdet",
)  # fmt: skip
LOG_RATIO = Op(
    LogRatioInputs,
    "sample", "model_output", "old_model_output", "prev_sample", "model_output_uncond", "old_model_output_uncond",
)  # fmt: skip
NOISE = Op(NoiseInputs, "sample")
LOSS = Op(TrainingInputs, "model_output", "sample")
RESIDUAL = Op(ResidualInputs)
NORMAL = Op(NormalInputs)
COMPONENTS = Op(ComponentInputs)
