"""The compiled C++ core on CPU tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gmmkernel import _core
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs

_DTYPES = {getattr(torch, name): code for name, code in _core.DTYPES.items()}
_BEST = 0
_ABSENT = (0, 0, 0)

_instruction_set = _BEST


def instruction_sets() -> list[str]:
    """Return the instruction sets that this processor and build have, slowest first."""
    return [name for name, code in _core.INSTRUCTION_SETS.items() if _core.has_instruction_set(code)]


def best_instruction_set() -> str:
    """Return the instruction set used unless another is asked for."""
    codes = {code: name for name, code in _core.INSTRUCTION_SETS.items()}
    return codes[_core.best_instruction_set()]


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the core with another instruction set, for tests and measurements: the bits are the same.

    Args:
        name: one of `instruction_sets()`.

    Raises:
        ValueError: the processor or build does not have it.
    """
    global _instruction_set
    if name not in instruction_sets():
        raise ValueError(f"name: expected one of {instruction_sets()}, got {name!r}")
    before, _instruction_set = _instruction_set, _core.INSTRUCTION_SETS[name]
    try:
        yield
    finally:
        _instruction_set = before


def _by_sample(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it, such that each sample is contiguous."""
    if tensor.is_contiguous():
        return tensor
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _describe(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), _DTYPES[tensor.dtype]


def _index(index: int | Tensor) -> tuple[int, int, int]:
    if isinstance(index, Tensor):
        return index.data_ptr(), 0 if index.numel() == 1 else 1, 0
    return 0, 0, index


def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction and the components drawn; see `Backend`."""
    sample, model_output = _by_sample(inputs.sample), _by_sample(inputs.model_output)
    uncond = None if inputs.model_output_uncond is None else _by_sample(inputs.model_output_uncond)
    history = [_by_sample(stored) for stored in inputs.history]
    target = _by_sample(result)
    batch = sample.shape[0]
    mixture: tuple[Any, ...] = ()
    if inputs.thresholds is not None and inputs.offsets is not None and inputs.std is not None:
        mixture = (
            inputs.offsets.shape[1],
            inputs.thresholds.data_ptr(),
            inputs.thresholds.shape[0],
            inputs.offsets.data_ptr(),
            inputs.offsets.shape[0],
            inputs.std.data_ptr(),
            *inputs.std.shape,
        )
    _core.step(
        batch,
        sample.numel() // batch if batch else math.prod(sample.shape[1:]),
        _describe(sample),
        _describe(model_output),
        _ABSENT if uncond is None else _describe(uncond),
        [_describe(stored) for stored in history],
        _describe(target),
        _ABSENT if prediction is None else _describe(prediction),
        prediction_kind,
        0 if components is None else components.data_ptr(),
        inputs.coefficients.data_ptr(),
        inputs.coefficients.shape[0],
        _index(inputs.row),
        _index(inputs.step),
        inputs.seeds.data_ptr(),
        mixture,
        torch.get_num_threads(),
        _instruction_set,
    )
    if target is not result:
        result.copy_(target)


def standard_normal(result: Tensor, seeds: Tensor, step: int | Tensor, stream: int) -> None:
    """Fill `result` [B, ...] with each sample's noise."""
    batch = result.shape[0]
    target = _by_sample(result)
    elements = target.numel() // max(batch, 1)
    threads = torch.get_num_threads()
    _core.standard_normal(
        batch, elements, _describe(target), seeds.data_ptr(), _index(step), stream, threads, _instruction_set
    )
    if target is not result:
        result.copy_(target)


def draw_components(
    result: Tensor, seeds: Tensor, thresholds: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    _core.draw_components(
        result.shape[0],
        result.data_ptr(),
        seeds.data_ptr(),
        _index(row),
        _index(step),
        thresholds.shape[1] + 1,
        thresholds.data_ptr(),
        thresholds.shape[0],
    )


def orthonormalize(rows: Tensor) -> None:
    """Make the rows of a contiguous float64 [K, D] tensor orthonormal in place."""
    _core.orthonormalize(
        rows.data_ptr(), rows.shape[0], rows.shape[1], torch.get_num_threads(), _instruction_set
    )


def describe() -> str:
    """Return one line on what the core runs on here."""
    return (
        f"version {_core.version}, instruction sets {', '.join(instruction_sets())} (using "
        f"{best_instruction_set()}), {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
