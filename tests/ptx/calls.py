"""What ops ask of the CPU core, taken down, and asked again of another backend: all memory must end up the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import bits
from torch import Tensor

from gmmkernel.backends import cpu

FUNCTIONS = (
    "gmm_step",
    "gmm_step_backward",
    "log_prob",
    "log_prob_backward",
    "log_ratio",
    "log_ratio_backward",
    "add_noise",
    "skip_step_loss",
    "scale_residual",
    "skip_step_loss_backward",
    "standard_normal",
    "draw_components",
    "project",
)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return arguments with every tensor in them replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: mapped(entry, change) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [mapped(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


class Memory:
    """Copies of tensors that share memory as the originals do."""

    def __init__(self) -> None:
        self.storages: dict[int, Tensor] = {}  # of each storage all bytes, as the first tensor's type

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy with the same layout."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return tensor
        if storage.data_ptr() not in self.storages:
            whole = torch.tensor([], dtype=tensor.dtype).set_(storage.clone())
            self.storages[storage.data_ptr()] = whole
        memory = self.storages[storage.data_ptr()].untyped_storage()
        like = torch.tensor([], dtype=tensor.dtype)
        return like.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


@dataclass(frozen=True, eq=False)
class Call:
    """A call of the CPU core: its arguments as they were before, and what the memory of each held afterwards."""

    function: str
    arguments: Any
    expected: Sequence[Tensor]

    def repeat(self, backend: Any) -> list[Tensor]:
        """Ask another backend the same of copies; return all memory."""
        memory = Memory()
        positional, named = mapped(self.arguments, memory.copy)
        getattr(backend, self.function)(*positional, **named)
        return list(memory.storages.values())

    def differences(self, made: Sequence[Tensor]) -> list[str]:
        """Return a line for each tensor's memory that is not as the CPU core left it."""
        lines = []
        for number, (actual, expected) in enumerate(zip(made, self.expected, strict=True)):
            different = (bits(actual) != bits(expected)).nonzero()
            if len(different):
                first = int(different[0])
                lines.append(
                    f"{self.function}: {len(different)} of {actual.numel()} {actual.dtype} of tensor {number}, "
                    f"at {first} {actual[first].item()!r} instead of {expected[first].item()!r}"
                )
        return lines


def recorded(run: Callable[[], object]) -> list[Call]:
    """Return the calls of the CPU core that ops make while a function runs."""
    calls: list[Call] = []

    def recording(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*positional: Any, **named: Any) -> None:
            before, after = Memory(), Memory()
            with torch.no_grad():
                arguments = mapped((positional, named), before.copy)
                original(*positional, **named)
                mapped((positional, named), after.copy)
            calls.append(Call(name, arguments, list(after.storages.values())))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in FUNCTIONS:
            patch.setattr(cpu, name, recording(name, getattr(cpu, name)))
        patch.setattr(cpu, "gmm_step_unchecked", lambda *arguments, **named: False)
        run()
    return calls
