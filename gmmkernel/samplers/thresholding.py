"""Dynamic thresholding: a quantile of each sample, taken outside of the kernel, that goes into its coefficient row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import check_number, check_share
from gmmkernel.backends.constants import Column
from gmmkernel.ops import checks


def dynamic_thresholding(
    coefficients: Tensor,
    row: int | Tensor,
    sample: Tensor,
    model_output: Tensor,
    *,
    model_output_uncond: Tensor | None = None,
    ratio: float = 0.995,
    max_value: float = 1.0,
) -> Tensor:
    """Return a coefficient row for each sample, with dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487).

    With x0 the data that the row predicts, unclipped, and q the quantile of |x0| over the elements of a sample:

        s = clamp(q, 1, max_value);   x0 becomes clip(x0, -s, s) / s = clip(x0 / s, -1, 1)

    so the step is one launch of `gmm_step` with `row=torch.arange(B)`, `step` the step's index in the schedule, and
    `mixture=tables.at(row)`. It predicts x0 and selects two of its elements besides: a sample is read twice, and
    temporary tensors of its size are made.

    The quantile interpolates linearly between the two elements around it, as torch.quantile does. Products, sums and
    the division are each rounded, in an order of their own: x0 here is within an ulp or two of the kernel's.

    Args:
        coefficients: [S, 16] float32, float64 beside a float64 sample; clipping bounds are replaced.
        row: which row each sample takes: int, or int64 tensor [], [1] or [B].
        sample: [B, ...].
        model_output: like `sample`; the conditional output of a guidance pair.
        model_output_uncond: the unconditional one, or None.
        ratio: which quantile, 0 to 1.
        max_value: the largest s, > 0; below 1 it is s.

    Returns:
        [B, 16] of the coefficients' type on the samples' device. A row out of range gives NaN on a device.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument does not fit, or is out of range.
        IndexError: a row is out of range (tensors on the CPU; elsewhere the sample's row is filled with NaN).
    """
    checks.check_sample(sample)
    checks.check_like_sample(model_output, "model_output", sample)
    if model_output_uncond is not None:
        checks.check_like_sample(model_output_uncond, "model_output_uncond", sample)
    coefficients = checks.check_coefficients(coefficients, sample)
    ratio = check_share("ratio", ratio)
    max_value = check_number("max_value", max_value, above=0)
    batch = sample.shape[0]
    chosen = _rows(coefficients, row, batch, sample.device)

    def columns(*names: Column) -> list[Tensor]:
        return [chosen[:, name].view(-1, *[1] * (sample.dim() - 1)) for name in names]

    of_sample, of_output, guidance = columns(Column.X0_SAMPLE, Column.X0_OUTPUT, Column.GUIDANCE)
    output = model_output.to(chosen.dtype)
    if model_output_uncond is not None:
        uncond = model_output_uncond.to(chosen.dtype)
        output = uncond + guidance * (output - uncond)
    x0 = of_sample * sample.to(chosen.dtype) + of_output * output
    limit = _quantile(x0.flatten(1).abs(), ratio)
    limit = torch.where(limit < 1, 1.0, limit)
    limit = torch.where(limit > max_value, max_value, limit).to(chosen.dtype)

    made = chosen.clone()
    made[:, Column.X0_SAMPLE] /= limit
    made[:, Column.X0_OUTPUT] /= limit
    made[:, Column.CLIP_MIN], made[:, Column.CLIP_MAX] = -1, 1
    return made


class Thresholding(NamedTuple):
    """How a sampler thresholds the data it predicts, in every step; `dynamic_thresholding` has the equations.

    Attributes:
        ratio: which quantile of |x0|.
        max_value: the largest bound.
    """

    ratio: float
    max_value: float

    @classmethod
    def of(
        cls, ratio: float | None, max_value: float, clip_sample_range: float | None
    ) -> Thresholding | None:
        """Return what a sampler's arguments say, or None where `ratio` is None: no thresholding.

        Raises:
            TypeError: a number has the wrong type.
            ValueError: a number is out of range, the data is clipped as well, or there is a bound without a ratio.
        """
        if ratio is None:
            if max_value != 1:
                raise ValueError(
                    f"sample_max_value: expected 1.0 without dynamic_thresholding_ratio, got {max_value!r}"
                )
            return None
        if clip_sample_range is not None:
            raise ValueError(
                f"clip_sample_range: expected None beside dynamic_thresholding_ratio, got {clip_sample_range!r}"
            )
        return cls(
            check_share("dynamic_thresholding_ratio", ratio),
            check_number("sample_max_value", max_value, above=0),
        )

    def rows(
        self, coefficients: Tensor, row: int, sample: Tensor, output: Tensor, uncond: Tensor | None
    ) -> Tensor:
        """Return `dynamic_thresholding` of a batch in one step, [B, 16]."""
        return dynamic_thresholding(
            coefficients, row, sample, output, model_output_uncond=uncond, **self._asdict()
        )


def _rows(coefficients: Tensor, row: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """Return each sample's row, [B, 16]."""
    last = coefficients.shape[0] - 1
    index = checks.check_index(row, "row", batch, last, device)
    if not isinstance(index, Tensor):
        return coefficients[index].expand(batch, -1)
    outside = (index < 0) | (index > last)
    if device.type == "cpu" and bool(outside.any()):
        raise IndexError(f"row: expected 0 to {last}, got {int(index[outside][0])}")
    chosen = coefficients.index_select(0, index.clamp(0, last))
    return torch.where(outside[:, None], math.nan, chosen).expand(batch, -1)


def _quantile(values: Tensor, ratio: float) -> Tensor:
    """Return each row's quantile, in float64, by the two elements around it: far quicker than a sort near the top."""
    place = ratio * (values.shape[1] - 1)
    below = math.floor(place)
    top = values.topk(values.shape[1] - below, dim=1).values.double()
    lower, upper = top[:, -1], top[:, max(-2, -top.shape[1])]
    return lower + (upper - lower) * (place - below)
