"""`add_noise`: a training sample from data, its noise drawn on the way."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from gmmkernel import backends
from gmmkernel.backends.protocol import NoiseInputs
from gmmkernel.ops import checks, library
from gmmkernel.ops.autograd_training import add_noise_with_gradient
from gmmkernel.ops.memory import check_overlap


@overload
def add_noise(
    sample: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    seeds: Tensor,
    step: int | Tensor = ...,
    first_element: int | Tensor = ...,
    return_noise: Literal[False] = ...,
    out: Tensor | None = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def add_noise(
    sample: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    seeds: Tensor,
    step: int | Tensor = ...,
    first_element: int | Tensor = ...,
    return_noise: Literal[True],
    out: Tensor | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def add_noise(
    sample: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    seeds: Tensor,
    step: int | Tensor = 0,
    first_element: int | Tensor = 0,
    return_noise: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the training sample of each sample, in one pass: the noise is drawn where it is added.

        x_t = SIGNAL * x0 + NOISE * e1

    with e1 standard normal from the sample's seed and `step` (`Stream.TRAINING`), so that `skip_step_loss` can draw it
    again. The gradient with respect to `sample` is SIGNAL times that of the result.

    Args:
        sample: [B, ...] the data x0; float32, bfloat16, float16 or float64, any strides.
        coefficients: [T, 9] float32, float64 beside a float64 sample, columns as in `gmmkernel.TrainingColumn`;
            `gmmkernel.training_coefficients` makes them.
        row: the timestep t of each sample: int, or int64 tensor [], [1] or [B].
        seeds: int64 [B], the key of each sample's noise: of its place in the data set, for example.
        step: step of the noise counter, 0 to 2^32 - 1, in the forms of `row`: the epoch or iteration, so that equal
            seeds get fresh noise.
        first_element: which element of a sample's noise is the first one, in the forms of `row`: a shard of a larger
            sample gets its own part of that sample's noise.
        return_noise: also return e1, rounded to the sample's dtype.
        out: tensor to write the result into; may be `sample` itself.
        backend: a backend's name; None chooses by device.

    Returns:
        x_t: shape, dtype and device of `sample`, contiguous unless it is the `out` given; with `return_noise`
        (x_t, e1).

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit.
        IndexError: a row, step or first element is out of range (tensors on the CPU; elsewhere such a sample is filled
            with NaN).
        RuntimeError: `out` is given where `sample` requires a gradient, `coefficients` require one, an input has a
            forward-mode tangent, or the backend asked for is not available.
    """
    checks.check_sample(sample)
    batch, device = sample.shape[0], sample.device
    coefficients = checks.check_training_rows(coefficients, sample)
    row = checks.check_index(row, "row", batch, coefficients.shape[0] - 1, device)
    step = checks.check_step(step, batch, device)
    first_element = checks.check_first_element(first_element, batch, device)
    seeds = checks.check_batch_of_seeds(seeds, batch, device)
    if not isinstance(return_noise, bool):
        raise TypeError(f"return_noise: expected True or False, got {return_noise!r}")
    name = backends.resolve(device, backend)
    inputs = NoiseInputs(sample, coefficients, seeds, row, step, first_element)
    noise: Tensor | None
    if checks.wants_gradient("add_noise", (sample, coefficients)):
        checks.refuse_out(out)
        out, noise = add_noise_with_gradient(inputs, name, return_noise)
    else:
        if out is None:
            out = torch.empty_like(sample, memory_format=torch.contiguous_format)
        else:
            checks.check_out(out, sample.shape, sample.dtype, device)
            tables = inputs._asdict()
            check_overlap(out, in_place={"sample": tables.pop("sample")}, tables=tables)
        noise = torch.empty_like(sample, memory_format=torch.contiguous_format) if return_noise else None
        library.add_noise(out, noise, name, inputs)
    return out if noise is None else (out, noise)
