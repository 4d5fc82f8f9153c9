"""The compiled C++ core on CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

if find_spec("gmmkernel._core") is None:
    raise ImportError(
        f"{Path(__file__).parents[1]} has no compiled core, _core; in a checkout `pip install --editable .` builds it, "
        "and a gmmkernel installed otherwise is found from other folders only"
    )
from gmmkernel import _core
from gmmkernel.backends.compiled import CompiledKernels

_BEST = 0

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


def _options(_: Tensor) -> tuple[int, ...]:
    """Return the caller's number of threads and the instruction set."""
    return torch.get_num_threads(), _instruction_set


_kernels = CompiledKernels(_core, _options)
gmm_step = _kernels.gmm_step
gmm_step_unchecked = _kernels.gmm_step_unchecked
density_room = _kernels.density_room
is_plain_step = _kernels.is_plain_step
gmm_step_backward = _kernels.gmm_step_backward
log_prob = _kernels.log_prob
log_prob_backward = _kernels.log_prob_backward
log_ratio = _kernels.log_ratio
log_ratio_backward = _kernels.log_ratio_backward
add_noise = _kernels.add_noise
skip_step_loss = _kernels.skip_step_loss
scale_residual = _kernels.scale_residual
skip_step_loss_backward = _kernels.skip_step_loss_backward
standard_normal = _kernels.standard_normal
draw_components = _kernels.draw_components
project = _kernels.project


def orthonormalize(rows: Tensor) -> None:
    """Make the rows of a contiguous float64 [K, D] tensor orthonormal in place."""
    _core.orthonormalize(
        rows.data_ptr(), rows.shape[0], rows.shape[1], torch.get_num_threads(), _instruction_set
    )


def why_unusable(device: int | None = None) -> None:
    """Return None: wherever the core was built, it runs."""


def describe() -> str:
    """Return one line on what the core runs on here."""
    return (
        f"version {_core.version}, instruction sets {', '.join(instruction_sets())} (using "
        f"{best_instruction_set()}), {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
