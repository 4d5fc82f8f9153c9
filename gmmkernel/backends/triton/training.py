"""Training in Triton: noise added to samples, the loss of S2-DM, and its gradients; one program for each tile.

gmmkernel/backends/reference/training.py is the specification; csrc/cuda/training_body.h the other GPU version.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gmmkernel.backends.constants import TrainingColumn
from gmmkernel.backends.triton.arithmetic import divide, multiply_add
from gmmkernel.backends.triton.kernel import TRAINING, TRAINING_SKIP, kernel
from gmmkernel.backends.triton.normal import normals, shard_normals
from gmmkernel.backends.triton.step import index_of, load, store
from gmmkernel.backends.triton.sums import TILE as SUM_TILE
from gmmkernel.backends.triton.sums import sum_tile

COLUMNS = tl.constexpr(len(TrainingColumn))
SIGNAL, NOISE, EPS_SAMPLE, EPS_OUTPUT, WEIGHT, SKIP_WEIGHT, SKIP_SCALE, SKIP_NOISE, SKIP_FRESH = (
    tl.constexpr(int(column)) for column in TrainingColumn
)


@triton.jit
def is_valid(row, coefficient_rows, step):
    """Return whether a row and a step of the noise counter are within their ranges."""
    return (row >= 0) & (row < coefficient_rows) & (step >= 0) & (step <= 0xFFFFFFFF)


@kernel
def add_noise_kernel(
    x, result,  # [B, D]: elements contiguous, any stride from sample to sample
    noise,  # contiguous
    coefficients,  # [S, 9]
    rows, steps, first_elements, seeds,  # int64 [B]
    x_stride: tl.int64, result_stride: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    first_elements_stride: tl.int64, first_element: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    SHARD: tl.constexpr,  # a sample's noise may begin at any of its elements
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,  # full tiles, everything aligned
    PTX: tl.constexpr,
):  # fmt: skip
    """Write the training sample of one tile of one sample; programs are numbered (tile, sample)."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32  # of the arithmetic
    sample = first_sample + tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = is_valid(row, coefficient_rows, step)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    start = first
    if SHARD:
        start = first + index_of(first_elements, first_elements_stride, first_element, sample)
    DTYPE: tl.constexpr = result.dtype.element_ty
    e1 = shard_normals(tl.load(seeds + sample), start, step, TILE, DTYPE, TRAINING, SHARD, PTX).to(T)
    e1 = tl.where(valid, e1, float("nan"))  # which makes all of the sample NaN
    x0 = load(x + sample * x_stride, element, inside, T, WHOLE)
    y = multiply_add(tl.load(c + NOISE), e1, tl.load(c + SIGNAL) * x0)
    store(result + sample * result_stride, element, inside, y, PTX, WHOLE)
    if noise is not None:
        store(noise + sample * elements, element, inside, e1, PTX, WHOLE)


@triton.jit
def residuals(
    output, x, output_place, x_place, c, valid, seed, step, first, element, inside,
    T: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Return how far a tile is off its two targets; 0 of the second where the row `c` switches it off."""
    DTYPE: tl.constexpr = output.dtype.element_ty
    eps = tl.load(c + EPS_OUTPUT) * load(output + output_place, element, inside, T, WHOLE)
    if x is not None:
        of_sample = tl.load(c + EPS_SAMPLE)
        if of_sample != 0:
            eps = multiply_add(of_sample, load(x + x_place, element, inside, T, WHOLE), eps)
    else:
        valid = valid & (tl.load(c + EPS_SAMPLE) == 0)
    e1 = normals(seed, first, step, TILE, DTYPE, TRAINING, PTX).to(T)
    own = tl.where(valid, e1 - eps, float("nan"))  # which makes loss and gradients NaN
    skip = tl.zeros([TILE], T)
    if tl.load(c + SKIP_WEIGHT) != 0:
        target = tl.load(c + SKIP_NOISE) * e1
        fresh = tl.load(c + SKIP_FRESH)
        if fresh != 0:
            e2 = normals(seed, first, step, TILE, DTYPE, TRAINING_SKIP, PTX).to(T)
            target = multiply_add(fresh, e2, target)
        skip = multiply_add(-tl.load(c + SKIP_SCALE), eps, target)
    return own, skip


@triton.jit
def weighted_residual(own, skip, c):
    """Return what the loss's gradient is but for a factor of the sample."""
    residual = tl.load(c + WEIGHT) * own
    skip_weight = tl.load(c + SKIP_WEIGHT)
    if skip_weight != 0:
        residual = multiply_add(skip_weight * tl.load(c + SKIP_SCALE), skip, residual)
    return residual


@kernel
def skip_loss_kernel(
    output, x,  # [B, D]: elements contiguous, any stride from sample to sample
    sums,  # to write: [B, places], the first of a sample's those of its tiles
    residual,  # to write, contiguous
    coefficients,  # [S, 9]
    rows, steps, seeds,  # int64 [B]
    output_stride: tl.int64, x_stride: tl.int64,
    places: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    WHOLE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Sum the squares of one tile of one sample; programs are numbered (tile, sample)."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    first = tile * SUM_TILE
    element = first + tl.arange(0, SUM_TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = is_valid(row, coefficient_rows, step)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    own, skip = residuals(
        output, x, sample * output_stride, sample * x_stride, c, valid, tl.load(seeds + sample), step, first, element,
        inside, T, SUM_TILE, WHOLE, PTX,
    )  # fmt: skip
    terms = (tl.load(c + WEIGHT) * own) * own
    skip_weight = tl.load(c + SKIP_WEIGHT)
    if skip_weight != 0:
        terms = multiply_add(skip_weight * skip, skip, terms)
    tl.store(sums + sample * places + tile, sum_tile(tl.where(inside, terms, 0.0)))
    if residual is not None:
        store(residual + sample * elements, element, inside, weighted_residual(own, skip, c), PTX, WHOLE)


@kernel
def finish_loss_kernel(
    result,  # [B]
    sums,  # [B, places], the last of a sample's the sum of all
    places: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
):  # fmt: skip
    """Make one sample's loss of its sum."""
    T: tl.constexpr = sums.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    one = tl.arange(0, 1)
    total = tl.load(sums + sample * places + places - 1 + one)
    tl.store(result + sample + one, divide(total, tl.zeros([1], T) + elements.to(T)))


@triton.jit
def residual_scale(grad, coefficient, elements, T: tl.constexpr):
    """Return what makes a gradient of a residual, [1]."""
    one = tl.zeros([1], T)
    return grad * divide(one - 2.0, one + elements.to(T)) * coefficient


@kernel
def scale_residual_kernel(
    residual,  # [B, D], contiguous
    grad,  # [B]
    coefficients,  # [S, 9]
    rows, steps,  # int64 [B]
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Make a gradient of one tile of one sample's weighted residual; programs are numbered (tile, sample)."""
    T: tl.constexpr = coefficients.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    valid = is_valid(row, coefficient_rows, index_of(steps, steps_stride, step_value, sample))
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    scale = residual_scale(tl.load(grad + sample), tl.load(c + EPS_OUTPUT), elements, T)
    scale = tl.where(valid, scale, float("nan"))
    of_sample = residual + sample * elements
    store(of_sample, element, inside, scale * load(of_sample, element, inside, T, WHOLE), PTX, WHOLE)


@kernel
def skip_loss_backward_kernel(
    output, x,  # [B, D]: elements contiguous, any stride from sample to sample
    grad,  # [B]
    grad_output, grad_x,  # contiguous
    coefficients,  # [S, 9]
    rows, steps, seeds,  # int64 [B]
    output_stride: tl.int64, x_stride: tl.int64,
    coefficient_rows: tl.int64,
    rows_stride: tl.int64, row_value: tl.int64,
    steps_stride: tl.int64, step_value: tl.int64,
    elements: tl.int64,
    first_sample: tl.int64,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of one sample's tensors; programs are numbered (tile, sample)."""
    T: tl.constexpr = coefficients.dtype.element_ty
    sample = first_sample + tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TILE
    element = first + tl.arange(0, TILE)
    inside = element < elements
    row = index_of(rows, rows_stride, row_value, sample)
    step = index_of(steps, steps_stride, step_value, sample)
    valid = is_valid(row, coefficient_rows, step)
    c = coefficients + tl.where(valid, row, 0) * COLUMNS
    own, skip = residuals(
        output, x, sample * output_stride, sample * x_stride, c, valid, tl.load(seeds + sample), step, first, element,
        inside, T, TILE, WHOLE, PTX,
    )  # fmt: skip
    residual = weighted_residual(own, skip, c)
    of_loss = tl.load(grad + sample)
    place = sample * elements
    if grad_output is not None:
        scale = residual_scale(of_loss, tl.load(c + EPS_OUTPUT), elements, T)
        store(grad_output + place, element, inside, scale * residual, PTX, WHOLE)
    if grad_x is not None:
        of_sample = tl.load(c + EPS_SAMPLE)
        of_x = tl.where(of_sample == 0, 0.0, residual_scale(of_loss, of_sample, elements, T) * residual)
        store(grad_x + place, element, inside, tl.where(valid, of_x, float("nan")), PTX, WHOLE)
