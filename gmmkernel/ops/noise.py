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
from gmmkernel.ops.vmap import Role, merge, rows_of


def standard_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    step: int | Tensor = 0,
    stream: Stream = Stream.INITIAL,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw standard normal noise, one sample a seed: the same bits on every backend, device and batch split.

    Philox4x32-10 keyed by the seed, Box-Muller in float32 (docs/exactness.md); |z| is at most 6.66.

    Args:
        seeds: int64 [B].
        shape: shape of one sample, without the batch.
        step: step of the noise counter: int, or int64 tensor [], [1] or [B].
        stream: purpose of the draw, so that equal seeds and steps give independent noise.
        dtype: float32, bfloat16 or float16 (rounded once), or float64 (the float32 values).
        out: tensor [B, *shape] of that dtype to write into.
        backend: a backend's name; None chooses by device.

    Returns:
        Tensor [B, *shape], or `out`.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit.
        IndexError: a step is out of range.
        RuntimeError: the backend asked for is not available, or `out` is given inside a transform of `torch.func`.
    """
    seeds = checks.check_seeds(seeds)
    if dtype not in checks.SAMPLE_DTYPES:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    sizes = checks.check_shape(shape)
    step, steps = checks.check_step(step, seeds.shape[0], seeds.device)
    purpose = int(check_stream(stream))
    name = backends.resolve(seeds.device, backend)
    if out is None:
        return new_noise(NormalOptions(sizes, dtype, step, purpose, name), seeds, steps)
    if torch._C._are_functorch_transforms_active():
        checks.refuse_out(out)
    checks.check_out(out, (seeds.shape[0], *sizes), dtype, seeds.device)
    check_overlap(out, in_place={}, tables={"seeds": seeds, "step": steps})
    library.standard_normal(out, seeds, step, purpose, name, steps)
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
    row, rows = checks.check_index(row, "row", batch, last, seeds.device)
    step, steps = (row, rows) if step is None else checks.check_step(step, batch, seeds.device)
    name = backends.resolve(seeds.device, backend)
    return new_components(ComponentOptions(row, step, name), seeds, cdf, rows, steps)


class NormalOptions(NamedTuple):
    """What noise takes besides tensors; `shape` is that of a sample."""

    shape: Sequence[int]
    dtype: torch.dtype
    step: int
    stream: int
    backend: str


class ComponentOptions(NamedTuple):
    """What components take besides tensors."""

    row: int
    step: int
    backend: str


def new_noise(options: NormalOptions, seeds: Tensor, steps: Tensor | None) -> Tensor:
    """Return the noise of arguments that have been checked, inside a transform of `torch.func` as well."""
    draw = _Normal.apply if torch._C._are_functorch_transforms_active() else _Normal.forward
    noise: Tensor = draw(options, seeds, steps)
    return noise


def new_components(
    options: ComponentOptions, seeds: Tensor, cdf: Tensor, rows: Tensor | None, steps: Tensor | None
) -> Tensor:
    """Return the components of such arguments."""
    draw = _Components.apply if torch._C._are_functorch_transforms_active() else _Components.forward
    components: Tensor = draw(options, seeds, cdf, rows, steps)
    return components


class _Draw(torch.autograd.Function):
    """A draw, which has no gradient: for the sake of `vmap`, whose mapped dimension joins the batch."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)


class _Normal(_Draw):
    @staticmethod
    def forward(options: NormalOptions, seeds: Tensor, steps: Tensor | None) -> Tensor:
        shape, dtype, step, stream, backend = options
        noise = torch.empty((seeds.shape[0], *shape), dtype=dtype, device=seeds.device)
        library.standard_normal(noise, seeds, step, stream, backend, steps)
        return noise

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: NormalOptions, *given: Any) -> tuple[Any, int]:
        size, dims, batch = info.batch_size, in_dims[1:], rows_of(given[0], in_dims[1])
        merged = merge(size, dims, given, (Role.BATCH, Role.STEPS), (False,) * 2, 1, batch, 0)
        noise = _Normal.apply(options, *merged.tensors)  # type: ignore[no-untyped-call]
        return merged.split(noise), 0


class _Components(_Draw):
    @staticmethod
    def forward(
        options: ComponentOptions,
        seeds: Tensor,
        cdf: Tensor,
        rows: Tensor | None,
        steps: Tensor | None,
    ) -> Tensor:
        components = torch.empty_like(seeds, memory_format=torch.contiguous_format)
        library.draw_components(
            components, seeds, cdf, options.row, options.step, options.backend, rows, steps
        )
        return components

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: ComponentOptions, *given: Any) -> tuple[Any, int]:
        size, dims = info.batch_size, in_dims[1:]
        batch, tables = (rows_of(given[i], dims[i]) for i in (0, 1))
        if tables == 1:  # which serves every row
            options, given = options._replace(row=0), (*given[:2], None, given[3])
        roles = (Role.BATCH, Role.TABLE, Role.ROWS, Role.STEPS)
        merged = merge(size, dims, given, roles, (False,) * 4, tables, batch, options.row)
        components = _Components.apply(options._replace(row=merged.row), *merged.tensors)  # type: ignore[no-untyped-call]
        return merged.split(components), 0


def check_stream(stream: object) -> Stream:
    """Return `stream` as a Stream."""
    stream = plain(stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream not in list(Stream):
        raise ValueError(f"stream: expected one of {[s.name for s in Stream]}, got {stream!r}")
    return Stream(stream)
