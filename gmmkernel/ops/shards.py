"""Shards of samples: views whose noise is the whole's, and log-densities that add up to the whole's bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import check_integer
from gmmkernel.backends.constants import SUM_TILE, Column
from gmmkernel.backends.reference.density import HALF_LOG_2_PI
from gmmkernel.ops import checks
from gmmkernel.ops.exact import tree_sum
from gmmkernel.ops.step import gmm_step


class Shard(NamedTuple):
    """A part of each sample of a batch, as runs of elements that lie one after another in the whole sample.

    Attributes:
        view: [B * repeat, run], a view of the shard's tensor.
        first_element: int64 [B * repeat] on the tensor's device, where each run begins in the whole sample.
        repeat: runs in a sample: what there is for each sample, seeds and rows, `repeat_interleave(repeat)` gives for
            each run.
    """

    view: Tensor
    first_element: Tensor
    repeat: int


def shard_view(tensor: Tensor, shape: Sequence[int], dim: int, start: int) -> Shard:
    """Return a shard of samples as runs of their elements, for `gmm_step(..., first_element=)`.

    Where a sample is cut along its first dimension the shard is one run, and needs no view: its first element is
    `start` times the elements of a row. Along any other dimension it is one run for each of the rows before, and this
    function finds them. Noise is then that of the whole sample, drawn for the shard alone: nothing of the size of the
    whole is made, and no two ranks draw the same numbers.

    Args:
        tensor: [B, ...] the shard of each sample, contiguous: of every sample, the part `start` to `start + n` of its
            dimension `dim`.
        shape: shape of the whole sample, without the batch.
        dim: which dimension of `shape` is cut, 0 to len(shape) - 1.
        start: where in it the shard begins.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the tensor is no such part of samples of this shape, or is not contiguous.
    """
    checks.check_tensor(tensor, "tensor")
    sizes = checks.check_shape(shape)
    dim = check_integer("dim", dim, 0, len(sizes) - 1)
    given = list(tensor.shape[1:])
    if len(given) != len(sizes) or any(
        own != whole for at, (own, whole) in enumerate(zip(given, sizes, strict=True)) if at != dim
    ):
        raise ValueError(
            f"tensor: expected parts [B, ...] of samples of shape {tuple(sizes)} along dimension {dim}, got shape "
            f"{tuple(tensor.shape)}"
        )
    start = check_integer("start", start, 0, sizes[dim] - given[dim])
    if not tensor.is_contiguous():
        raise ValueError(f"tensor: expected a contiguous tensor, got strides {tensor.stride()}")
    inner = math.prod(sizes[dim + 1 :])
    repeat = math.prod(sizes[:dim])
    first = (torch.arange(repeat, device=tensor.device) * sizes[dim] + start) * inner
    view = tensor.view(tensor.shape[0] * repeat, given[dim] * inner)
    return Shard(view, first.repeat(tensor.shape[0]), repeat)


def join_log_prob(tiles: Tensor, elements: int) -> Tensor:
    """Return the log-densities of whole samples from what their tiles have of them.

    `gmm_step_log_prob(..., reduction="tiles")` of shards that were cut at multiples of 1024 elements, joined along the
    last dimension in the order of the shards, gives the bits that the whole sample has without it. Of shards cut
    elsewhere the sum agrees but for its rounding. Those of `gmm_step_log_ratio` have no constant: `elements=0`.

    Args:
        tiles: [B, T] float32 or float64, each sample's tiles: D/1024 of them, rounded up, or more where shards were
            cut elsewhere, at most one for each element.
        elements: D of the whole sample; 0 for log-ratios and divergences.

    Returns:
        [B], like `tiles`; differentiable.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `tiles` is not [B, T], `elements` is negative, or so many elements have not so many tiles.
    """
    checks.check_tensor(tiles, "tiles")
    if tiles.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"tiles: expected float32 or float64, got {tiles.dtype}")
    if tiles.dim() != 2:
        raise ValueError(f"tiles: expected shape [B, T], got {tuple(tiles.shape)}")
    elements = check_integer("elements", elements, 0)
    least, count = -(-elements // SUM_TILE), tiles.shape[1]
    if elements and not least <= count <= elements:
        raise ValueError(
            f"tiles: expected {least} of each sample of {elements} elements, or more where shards are not cut at "
            f"multiples of {SUM_TILE}, at most one for each element, got {count}"
        )
    total = tree_sum(tiles)[:, None]
    # -D log(2 pi) / 2 + total by one fma, which PyTorch does not have: the step of a sample that is the constant.
    row = total.new_zeros(1, len(Column))
    row[0, Column.CLIP_MIN], row[0, Column.CLIP_MAX] = -math.inf, math.inf
    row[0, Column.SAMPLE], row[0, Column.OUTPUT] = -elements, 1
    constant = torch.full_like(total, HALF_LOG_2_PI)
    seeds = torch.zeros(len(total), dtype=torch.int64, device=total.device)
    made = gmm_step(constant, total, row, row=0, seeds=seeds).prev_sample
    return torch.where(total.isinf(), total, made)[:, 0]  # which times 0 is no number
