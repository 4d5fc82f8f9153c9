"""Checks of the ops' arguments: each error names the argument, what came and what is allowed.

They look at types, shapes and devices, never at the values of a tensor, so they trace under torch.compile and cost no
device synchronisation; the values of indices are checked by the backends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gmmkernel._checks import plain, type_name
from gmmkernel.backends.constants import (
    MAX_COMPONENTS,
    MAX_ELEMENT,
    MAX_HISTORY,
    MAX_STEP,
    Column,
    TrainingColumn,
)
from gmmkernel.backends.protocol import LogProbInputs, LogRatioInputs, StepInputs
from gmmkernel.ops.tables import MixtureTables

SAMPLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

DTYPES_BESIDE = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float16: (torch.float16, torch.float32),
    torch.float64: (torch.float64, torch.float32),
}
"""Types of model output and history allowed beside a sample of each type, and of x_t beside a loss's model output."""


_COLUMNS = len(Column)
_TRAINING_COLUMNS = len(TrainingColumn)


def check_sample_dtype(dtype: object) -> None:
    """Check that samples can have a dtype."""
    if dtype not in SAMPLE_DTYPES:
        expected = ", ".join(map(str, SAMPLE_DTYPES[:-1]))
        raise TypeError(f"dtype: expected {expected} or {SAMPLE_DTYPES[-1]}, got {dtype!r}")


def check_tensor(value: object, name: str) -> Tensor:
    """Return `value` if it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def wants_gradient(function: str, inputs: Sequence[Tensor | None]) -> bool:
    """Return whether a call must go through autograd: for a gradient, or for a transform of `torch.func`.

    Raises:
        RuntimeError: an input of `function` has a forward-mode tangent.
    """
    if forward_ad._current_level >= 0:
        for tensor in inputs:
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                raise RuntimeError(f"{function}: an input has a forward-mode tangent, which is not supported")
    if torch._C._are_functorch_transforms_active():
        return True
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in inputs)


def is_eager() -> bool:
    """Whether a call may go to the kernels past PyTorch: nothing traces, transforms, records or overrides operators."""
    return not (
        _hides_values()
        or torch._C._len_torch_function_stack()
        or forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
    )


def _hides_values() -> bool:
    """Whether tensors may have no values to look at: a compiler, a transform or a dispatch mode is at work."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
    )


def contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself where it is contiguous: asking is cheaper than `Tensor.contiguous`."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def is_integer(value: object) -> bool:
    """Return whether a value is an int, or one that is traced."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def check_device(tensor: Tensor, name: str, device: torch.device, other: str) -> None:
    """Check that a tensor is where the others are."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} like {other}, got one on {tensor.device}")


def check_sample(sample: Tensor, name: str = "sample") -> None:
    """Check the tensor that fixes shape, type and device of a step."""
    check_tensor(sample, name)
    if sample.dtype not in SAMPLE_DTYPES:
        raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {sample.dtype}")
    if sample.dim() < 1:
        raise ValueError(f"{name}: expected at least one dimension (the batch), got a scalar")


def check_prev_sample(prev_sample: Tensor, sample: Tensor) -> None:
    """Check the sample that a transition led to: shape, type and device of the one it started from."""
    check_tensor(prev_sample, "prev_sample")
    if prev_sample.shape != sample.shape:
        raise ValueError(
            f"prev_sample: expected the sample's shape {tuple(sample.shape)}, got {tuple(prev_sample.shape)}"
        )
    if prev_sample.dtype != sample.dtype:
        raise TypeError(f"prev_sample: expected the sample's dtype {sample.dtype}, got {prev_sample.dtype}")
    check_device(prev_sample, "prev_sample", sample.device, "sample")


def check_like_sample(tensor: Tensor, name: str, sample: Tensor, other: str = "sample") -> None:
    """Check a model output or stored prediction: shape and device of the tensor named `other`, an allowed type."""
    check_tensor(tensor, name)
    if tensor.shape != sample.shape:
        raise ValueError(
            f"{name}: expected the {other}'s shape {tuple(sample.shape)}, got {tuple(tensor.shape)}"
        )
    allowed = DTYPES_BESIDE[sample.dtype]
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype) for dtype in allowed)
        raise TypeError(f"{name}: expected {names} beside a {sample.dtype} {other}, got {tensor.dtype}")
    check_device(tensor, name, sample.device, other)


def check_history(history: Sequence[Tensor], sample: Tensor) -> list[Tensor]:
    """Check the stored predictions of a multistep sampler."""
    if isinstance(history, Tensor) or not isinstance(history, Sequence):
        got = "one tensor" if isinstance(history, Tensor) else type(history).__name__
        raise TypeError(f"history: expected a sequence of tensors, got {got}")
    if len(history) > MAX_HISTORY:
        raise ValueError(f"history: expected at most {MAX_HISTORY} tensors, got {len(history)}")
    for j, stored in enumerate(history):
        check_like_sample(stored, f"history[{j}]", sample)
    return list(history)


def check_terms(inputs: StepInputs | LogProbInputs | LogRatioInputs) -> None:
    """Refuse rows with a term whose tensor is missing: those of another sampler, or guidance that would be left out.

    Only values on the CPU are read, and none that a derivative is taken of: differences move every column. Rows that
    are not finite, or out of range, are the backends' to deal with.
    """
    coefficients, row, stored = inputs.coefficients, inputs.row, len(inputs.history)
    if _hides_values() or coefficients.requires_grad or inputs.sample.numel() == 0:
        return
    if any(isinstance(read, Tensor) and read.device.type != "cpu" for read in (coefficients, row)):
        return
    taken = torch.as_tensor(row, device="cpu").reshape(-1)
    found = coefficients[taken.clamp(0, len(coefficients) - 1)]
    read = found.isfinite() & (found != 0)
    missing = read[:, Column.HISTORY_0 + stored : Column.HISTORY_3 + 1]
    if bool(missing.any()):
        sample, j = missing.nonzero()[0].tolist()
        count = f"{stored + j + 1} tensor{'s' if stored + j else ''}"
        raise ValueError(
            f"history: expected at least {count}, which row {int(taken[sample])} reads, got {stored}; "
            "a multistep solver's rows need its stored predictions (the samplers' `step` keeps them)"
        )
    scale = found[:, Column.GUIDANCE]
    unused = read[:, Column.GUIDANCE] & (scale != 1)
    if inputs.model_output_uncond is None and bool(unused.any()):
        raise ValueError(
            f"model_output_uncond: expected the unconditional output, for the GUIDANCE of {float(scale[unused][0]):g} "
            f"in row {int(taken[unused][0])}, got None"
        )


def arithmetic_dtype(sample: Tensor) -> torch.dtype:
    """Return the type a step computes in: float64 for float64 samples, float32 for all others."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32


def check_coefficients(
    coefficients: Tensor, sample: Tensor, columns: int = _COLUMNS, other: str = "sample"
) -> Tensor:
    """Check a table of coefficient rows beside the tensor named `other`; returns it contiguous."""
    check_tensor(coefficients, "coefficients")
    shape = coefficients.shape
    if len(shape) != 2 or shape[1] != columns or shape[0] < 1:
        raise ValueError(f"coefficients: expected shape [S, {columns}] with S >= 1, got {tuple(shape)}")
    expected = arithmetic_dtype(sample)
    if coefficients.dtype != expected:
        raise TypeError(
            f"coefficients: expected {expected} beside a {sample.dtype} {other}, got {coefficients.dtype}"
        )
    check_device(coefficients, "coefficients", sample.device, other)
    return contiguous(coefficients)


def check_training_rows(coefficients: Tensor, sample: Tensor, other: str = "sample") -> Tensor:
    """Check a table of training rows beside the tensor named `other`; returns it contiguous."""
    if isinstance(coefficients, Tensor) and coefficients.shape[1:] == (_COLUMNS,):
        raise ValueError(
            f"coefficients: expected shape [T, {_TRAINING_COLUMNS}], which training_coefficients makes, got a "
            f"sampler's rows {tuple(coefficients.shape)}; Sampler.add_noise noises samples for a late start"
        )
    coefficients = check_coefficients(coefficients, sample, _TRAINING_COLUMNS, other)
    refuse_gradient(coefficients, "coefficients")
    return coefficients


def refuse_gradient(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that requires a gradient which nothing would give it."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name}: expected a tensor that requires no gradient; it would not get one")


def check_seeds(seeds: Tensor) -> Tensor:
    """Check seeds int64 [B]; returns them contiguous."""
    if not isinstance(seeds, Tensor):
        numbers = "[seeds]" if isinstance(plain(seeds), int) else "seeds"
        raise TypeError(
            f"seeds: expected a torch.Tensor, got {type(seeds).__name__}; "
            f"make one of ints by torch.tensor({numbers})"
        )
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds: expected int64, got {seeds.dtype}")
    if seeds.dim() != 1:
        raise ValueError(f"seeds: expected shape [B], got {tuple(seeds.shape)}")
    return contiguous(seeds)


def check_batch_of_seeds(seeds: Tensor, batch: int, device: torch.device, other: str = "sample") -> Tensor:
    """Check that there is one seed for each sample, beside the samples."""
    seeds = check_seeds(seeds)
    if seeds.shape[0] != batch:
        raise ValueError(f"seeds: expected one for each of {batch} samples, got {seeds.shape[0]}")
    check_device(seeds, "seeds", device, other)
    return seeds


def check_index(
    index: int | Tensor, name: str, batch: int, last: int, device: torch.device, other: str = "sample"
) -> int | Tensor:
    """Return an index as an int within its range, or as a contiguous int64 tensor with 1 or B entries."""
    if isinstance(index, Tensor):
        if index.dtype != torch.int64:
            raise TypeError(f"{name}: expected an int or an int64 tensor, got {index.dtype}")
        if index.dim() > 1 or index.numel() not in (1, batch):
            raise ValueError(f"{name}: expected shape [], [1] or [{batch}], got {tuple(index.shape)}")
        check_device(index, name, device, other)
        return contiguous(index if index.dim() == 1 else index.reshape(1))
    if type(index) is not int and not is_integer(index := plain(index)):
        raise TypeError(f"{name}: expected an int or an int64 tensor, got {type_name(index)}")
    if not 0 <= index <= last:
        raise IndexError(f"{name}: expected 0 to {last}, got {index}")
    return index


def check_step(step: int | Tensor, batch: int, device: torch.device, other: str = "sample") -> int | Tensor:
    """Return the noise counter's step in the forms of `check_index`."""
    return check_index(step, "step", batch, MAX_STEP, device, other)


def check_first_element(
    first_element: int | Tensor, batch: int, device: torch.device, other: str = "sample"
) -> int | Tensor:
    """Return the first element of shards in the forms of `check_index`."""
    return check_index(first_element, "first_element", batch, MAX_ELEMENT, device, other)


def check_shape(shape: Sequence[int]) -> list[int]:
    """Return the shape of a sample as a list."""
    if not isinstance(shape, (tuple, list, Sequence, np.ndarray)) or isinstance(shape, str):
        raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
    sizes = [size if type(size) is int else plain(size) for size in shape]
    for size in sizes:
        if type(size) is not int and not is_integer(size):
            raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
        if size < 0:
            raise ValueError(f"shape: expected sizes of at least 0, got {tuple(sizes)}")
    return sizes


def check_cdf(cdf: Tensor, name: str = "cdf") -> Tensor:
    """Check a table of cdf; returns it contiguous."""
    check_tensor(cdf, name)
    if cdf.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64, got {cdf.dtype}")
    if cdf.dim() != 2 or cdf.shape[0] < 1:
        raise ValueError(f"{name}: expected shape [S or 1, K - 1], got {tuple(cdf.shape)}")
    if cdf.shape[1] + 1 > MAX_COMPONENTS:
        raise ValueError(f"{name}: expected at most {MAX_COMPONENTS} components, got {cdf.shape[1] + 1}")
    return contiguous(cdf)


def check_mixture(mixture: MixtureTables, coefficients: Tensor, sample: Tensor) -> MixtureTables:
    """Check a mixture's tables against the coefficient rows and the sample; returns them contiguous."""
    if not isinstance(mixture, MixtureTables):
        raise TypeError(f"mixture: expected MixtureTables or None, got {type(mixture).__name__}")
    cdf = check_cdf(mixture.cdf, "mixture.cdf")
    offsets = _check_table(mixture.offsets, "mixture.offsets", coefficients)
    std = _check_table(mixture.std, "mixture.std", coefficients)
    components, rows = cdf.shape[1] + 1, coefficients.shape[0]
    elements = math.prod(sample.shape[1:])
    for table, name in (
        (cdf, "mixture.cdf"),
        (offsets, "mixture.offsets"),
        (std, "mixture.std"),
    ):
        check_device(table, name, sample.device, "sample")
        if table.shape[0] not in (1, rows):
            raise ValueError(
                f"{name}: expected 1 entry or one for each of {rows} coefficient rows, got {table.shape[0]}"
            )
    if offsets.shape[1] != components:
        raise ValueError(f"mixture.offsets: expected K = {components} components, got {offsets.shape[1]}")
    if offsets.shape[2] != elements:
        raise ValueError(
            f"mixture: made for D = {offsets.shape[2]} elements, but a sample of shape "
            f"{tuple(sample.shape[1:])} has D = {elements}"
        )
    if std.shape[1] not in (1, components):
        raise ValueError(f"mixture.std: expected 1 or K = {components} components, got {std.shape[1]}")
    if std.shape[2] > elements:
        raise ValueError(f"mixture.std: expected R <= D = {elements} elements, got {std.shape[2]}")
    if mixture.basis is None:
        return MixtureTables(cdf, offsets, std, mixture.weights)
    if std.shape[2]:
        raise ValueError(
            f"mixture.std: expected R = 0 elements with a basis, which removes variance otherwise, got {std.shape[2]}"
        )
    return MixtureTables(
        cdf, offsets, std, mixture.weights, *_check_exact_tables(mixture, coefficients, sample, components)
    )


def _check_exact_tables(
    mixture: MixtureTables, coefficients: Tensor, sample: Tensor, components: int
) -> list[Tensor]:
    """Check the tables of exactly matched moments; returns them contiguous."""
    assert mixture.basis is not None
    directions = mixture.basis.shape[1] if mixture.basis.dim() == 3 else 0
    rows, tables = coefficients.shape[0], []
    if not 1 <= directions <= components:
        raise ValueError(
            f"mixture.basis: expected shape [1 or {rows}, R, {components}] with R from 1 to {components}, "
            f"got {tuple(mixture.basis.shape)}"
        )
    for name, middle, last in (
        ("basis", (directions,), (components,)),
        ("std_delta", (1, components), (directions,)),
        ("slopes", (1, components), (directions,)),
        ("shifts", (components,), (directions,)),
        ("half_logdet", (1, components), ()),
    ):
        table, name = getattr(mixture, name), f"mixture.{name}"
        check_tensor(table, name)
        if table.dtype != coefficients.dtype:
            raise TypeError(f"{name}: expected {coefficients.dtype}, got {table.dtype}")
        check_device(table, name, sample.device, "sample")
        shape = tuple(table.shape)
        if (
            len(shape) != 2 + len(last)
            or shape[0] not in (1, rows)
            or shape[1] not in middle
            or shape[2:] != last
        ):
            sizes = [f"1 or {rows}", " or ".join(map(str, sorted(set(middle)))), *map(str, last)]
            raise ValueError(f"{name}: expected shape [{', '.join(sizes)}], got {shape}")
        tables.append(contiguous(table))
    return tables


def check_weights(mixture: MixtureTables, coefficients: Tensor) -> Tensor:
    """Check the weights of a mixture that has been checked, and must have them; returns them contiguous."""
    weights = mixture.weights
    if weights is None:
        raise ValueError("mixture.weights: expected a tensor [S or 1, K], which log-densities need, got None")
    check_tensor(weights, "mixture.weights")
    if weights.dtype != coefficients.dtype:
        raise TypeError(f"mixture.weights: expected {coefficients.dtype}, got {weights.dtype}")
    check_device(weights, "mixture.weights", coefficients.device, "sample")
    rows, components = coefficients.shape[0], mixture.offsets.shape[1]
    if weights.dim() != 2 or weights.shape[0] not in (1, rows) or weights.shape[1] != components:
        raise ValueError(
            f"mixture.weights: expected shape [1 or {rows}, {components}], got {tuple(weights.shape)}"
        )
    return contiguous(weights)


def _check_table(table: Tensor, name: str, coefficients: Tensor) -> Tensor:
    check_tensor(table, name)
    if table.dtype != coefficients.dtype:
        raise TypeError(f"{name}: expected {coefficients.dtype}, got {table.dtype}")
    if table.dim() != 3:
        raise ValueError(f"{name}: expected three dimensions, got shape {tuple(table.shape)}")
    return contiguous(table)


def refuse_out(out: Tensor | None) -> None:
    """Refuse a tensor to write into, where `wants_gradient` or a transform asks for a new result."""
    if out is None:
        return
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "out: expected None in a function that torch.func transforms (vmap, grad, ...); leave it out"
        )
    raise RuntimeError(
        "out: expected None where an input requires a gradient; detach the inputs or leave it out"
    )


def check_out(out: Tensor, expected_shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor to write into."""
    check_tensor(out, "out")
    if tuple(out.shape) != tuple(expected_shape):
        raise ValueError(f"out: expected shape {tuple(expected_shape)}, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out: expected {dtype}, got {out.dtype}")
    check_device(out, "out", device, "the inputs")
    if _shares_elements(out):
        raise ValueError(
            f"out: expected a tensor whose elements are distinct in memory, got strides {out.stride()}"
        )
    refuse_gradient(out, "out")


def _shares_elements(tensor: Tensor) -> bool:
    """Whether two indices may lead to one place: each stride must clear all that the smaller ones reach."""
    if tensor.is_contiguous():
        return False
    reached = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reached:
                return True
            reached += (size - 1) * stride
    return False
