"""The package's own random numbers as ops: standard normal noise and component draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel import backends
from gmmkernel._checks import plain
from gmmkernel.backends.constants import MAX_STEP, Stream
from gmmkernel.ops import checks, library
from gmmkernel.ops.memory import check_overlap
from gmmkernel.ops.op import COMPONENTS, NORMAL, ComponentInputs, NormalInputs, Numbers
from gmmkernel.ops.vmap import rows_of


def standard_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    step: int | Tensor = 0,
    stream: Stream = Stream.INITIAL,
    first_element: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw standard normal noise for each seed, of `shape`, the shape of one sample, without the batch.

    The same bits on every backend, device and batch split: Philox4x32-10 keyed by the seed, Box-Muller in float32
    (docs/exactness.md); |z| is at most 6.66.

    Args:
        seeds: int64 [B].
        shape: shape of one sample, without the batch.
        step: step of the noise counter: int, or int64 tensor [], [1] or [B].
        stream: purpose of the draw, so that equal seeds and steps give independent noise.
        first_element: which element of a sample's noise is the first one, in the forms of `step`: a shard of a larger
            sample gets its own part of that sample's noise.
        dtype: float32, bfloat16 or float16 (rounded once), or float64 (the float32 values).
        out: tensor [B, *shape] of that dtype to write into.
        backend: a backend's name; None chooses by device.

    Returns:
        Tensor [B, *shape], or `out`.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit.
        IndexError: a step or first element is out of range.
        RuntimeError: the backend asked for is not available, or `out` is given inside a transform of `torch.func`.
    """
    seeds = checks.check_seeds(seeds)
    checks.check_sample_dtype(dtype)
    sizes = checks.check_shape(shape)
    step = checks.check_step(step, seeds.shape[0], seeds.device)
    first_element = checks.check_first_element(first_element, seeds.shape[0], seeds.device, "seeds")
    purpose = int(check_stream(stream))
    name = backends.resolve(seeds.device, backend)
    if out is None:
        return new_noise(sizes, dtype, purpose, name, NormalInputs(seeds, step, first_element))
    if torch._C._are_functorch_transforms_active():
        checks.refuse_out(out)
    checks.check_out(out, (seeds.shape[0], *sizes), dtype, seeds.device)
    inputs = NormalInputs(seeds, step, first_element)
    check_overlap(out, in_place={}, tables=inputs._asdict())
    library.standard_normal(out, purpose, name, inputs)
    return out


def draw_components(
    seeds: Tensor,
    cdf: Tensor,
    *,
    row: int | Tensor = 0,
    step: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw the mixture component that `gmm_step` would draw for each seed.

    One 32-bit random word is compared with the integers floor(2^32 cdf): k is the number of these that it
    reaches.

    Args:
        seeds: int64 [B].
        cdf: int64 [S or 1, K - 1] (`MixtureTables.cdf`).
        row: which entry of `cdf` each sample takes: int, or int64 tensor [], [1] or [B].
        step: step of the noise counter in the same forms; None: the same as `row`.
        backend: a backend's name; None chooses by device.

    Returns:
        int64 [B], values 0 to K - 1.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit.
        IndexError: a row or step is out of range.
        RuntimeError: the backend asked for is not available.
    """
    seeds = checks.check_seeds(seeds)
    cdf = checks.check_cdf(cdf)
    checks.check_device(cdf, "cdf", seeds.device, "seeds")
    batch = seeds.shape[0]
    last = cdf.shape[0] - 1 if cdf.shape[0] > 1 else MAX_STEP
    row = checks.check_index(row, "row", batch, last, seeds.device)
    step = row if step is None else checks.check_step(step, batch, seeds.device)
    return new_components(backends.resolve(seeds.device, backend), seeds, cdf, row, step)


class NormalOptions(NamedTuple):
    """What noise takes besides tensors; `shape` is that of a sample."""

    numbers: Numbers
    shape: Sequence[int]
    dtype: torch.dtype
    stream: int
    backend: str


class ComponentOptions(NamedTuple):
    """What components take besides tensors."""

    numbers: Numbers
    backend: str


def new_noise(
    shape: Sequence[int],
    dtype: torch.dtype,
    stream: int,
    backend: str,
    inputs: NormalInputs,
) -> Tensor:
    """Return the noise of arguments that have been checked, inside a transform of `torch.func` as well."""
    draw = _Normal.apply if torch._C._are_functorch_transforms_active() else _Normal.forward
    numbers, flat = NORMAL.split(inputs)
    noise: Tensor = draw(NormalOptions(numbers, shape, dtype, int(stream), backend), *flat)
    return noise


def new_components(backend: str, seeds: Tensor, cdf: Tensor, row: int | Tensor, step: int | Tensor) -> Tensor:
    """Return the components of such arguments."""
    draw = _Components.apply if torch._C._are_functorch_transforms_active() else _Components.forward
    numbers, flat = COMPONENTS.split(ComponentInputs(seeds, cdf, row, step))
    components: Tensor = draw(ComponentOptions(numbers, backend), *flat)
    return components


class _Draw(torch.autograd.Function):
    """A draw, which has no gradient: for the sake of `vmap`, whose mapped dimension joins the batch."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)


class _Normal(_Draw):
    @staticmethod
    def forward(options: NormalOptions, *flat: Any) -> Tensor:
        seeds = flat[0]
        noise = torch.empty((seeds.shape[0], *options.shape), dtype=options.dtype, device=seeds.device)
        library.standard_normal(noise, options.stream, options.backend, NORMAL.join(options.numbers, flat))
        return noise

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: NormalOptions, *flat: Any) -> tuple[Any, int]:
        merged = NORMAL.merge(info.batch_size, in_dims[1:], flat, (False,) * len(flat), options.numbers)
        noise = _Normal.apply(options, *merged.tensors)  # type: ignore[no-untyped-call]
        return merged.split(noise), 0


class _Components(_Draw):
    @staticmethod
    def forward(options: ComponentOptions, *flat: Any) -> Tensor:
        components = torch.empty_like(flat[0], memory_format=torch.contiguous_format)
        library.draw_components(components, options.backend, COMPONENTS.join(options.numbers, flat))
        return components

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: ComponentOptions, *flat: Any) -> tuple[Any, int]:
        dims, numbers = in_dims[1:], options.numbers
        if rows_of(flat[1], dims[1]) == 1:  # which serves every row
            numbers, flat = (0, numbers[1]), (*flat[:2], None, flat[3])
        merged = COMPONENTS.merge(info.batch_size, dims, flat, (False,) * len(flat), numbers)
        components = _Components.apply(options._replace(numbers=numbers), *merged.tensors)  # type: ignore[no-untyped-call]
        return merged.split(components), 0


def check_stream(stream: object) -> Stream:
    """Return `stream` as a Stream."""
    stream = plain(stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream not in list(Stream):
        names = ", ".join(f"gmmkernel.Stream.{known.name}" for known in Stream)
        raise ValueError(f"stream: expected one of {names}, got {stream!r}")
    return Stream(stream)
