"""Samplers in one table, so that requests of different kinds and at different steps share one call of the op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.ops import MixtureTables
from gmmkernel.samplers.base import Sampler

_NO_WORD_REACHES = 2**32


@dataclass(frozen=True, eq=False)
class StackedSamplers:
    """The rows of several samplers, one after the other, and an idle row behind them.

    A request for sampler i with n steps takes the rows `first_rows[i]` .. `first_rows[i]` + n - 1. With an int64 tensor
    `row` [B], one step of a batch is

        gmm_step(sample, output, stack.coefficients, row=row, step=stack.steps[row], seeds=seeds, mixture=stack.tables)

    at the timesteps `stack.timesteps[row]`, then `row = stack.next_rows[row]`: nothing is read on the host, which can
    count the steps by itself.

    Attributes:
        timesteps: [S], the timestep of each row.
        steps: int64 [S], the index of each row in its own sampler: the step of the noise counter.
        next_rows: int64 [S], the row that follows; the idle row after a sampler's last one, and after itself.
        coefficients: [S, 16].
        tables: mixture tables for the S rows, without weights, or None where no sampler has a mixture.
        first_rows: the first row of each sampler.
        n_steps: the number of steps of each sampler.
        guided: whether each sampler has guidance. If any has, every request passes a pair of outputs, and one
            without guidance its only output as both.
    """

    timesteps: Tensor
    steps: Tensor
    next_rows: Tensor
    coefficients: Tensor
    tables: MixtureTables | None
    first_rows: tuple[int, ...]
    n_steps: tuple[int, ...]
    guided: tuple[bool, ...]

    @property
    def idle_row(self) -> int:
        """The row of a slot without a request: it keeps the sample, at timestep 0, without noise or offset.

        Take a finished sample out before the next step all the same: a zero may lose its sign, and a model output
        that is not finite spoils the sample.
        """
        return self.coefficients.shape[0] - 1


def stack_samplers(samplers: Sequence[Sampler]) -> StackedSamplers:
    """Put the tables of samplers, one for each kind of request, into one.

    They may differ in steps, spacing, eta, mixture, prediction type, clipping and guidance; a multistep method does not
    fit, for a stack keeps no history, nor does a mixture that matches moments exactly. A request then gets what
    its own sampler gives, bit for bit, given the same model outputs, with two exceptions:

    - Where any sampler is guided, the others' rows have GUIDANCE = -0, and o = fma(-0, o - o, o) is o itself, a zero's
      sign included, unless o is infinite: then it is NaN. (GUIDANCE = 1 would give +0 for -0.)
    - A step without noise (SIGMA = 0) of a sampler whose own tables remove no variance, beside one whose tables do,
      adds 0 z instead of nothing: a sample that is -0 may become +0.

    Args:
        samplers: at least one, on one device and of one dtype; their mixtures, where they have one, have the same K
            and D.

    Returns:
        StackedSamplers, on the samplers' device. Offsets are stored for each row, 4 K D bytes in float32 (8 in
        float64), unless the samplers with a mixture all share the same for all steps. Building compares them, which
        reads from the device; steps do not.

    Raises:
        TypeError: `samplers` is not a sequence of samplers.
        ValueError: there are none, they do not fit together, or one reads a history, which a stack has not.
    """
    _check(samplers)
    coefficients = torch.cat(
        [*(sampler.coefficients for sampler in samplers), _idle(samplers[0].coefficients)]
    )
    n_steps = tuple(sampler.coefficients.shape[0] for sampler in samplers)
    ends = list(accumulate(n_steps))
    first_rows = tuple(end - steps for end, steps in zip(ends, n_steps, strict=True))
    rows = ends[-1] + 1
    device = coefficients.device
    next_rows = torch.arange(1, rows + 1, device=device)
    next_rows[[*(end - 1 for end in ends), rows - 1]] = rows - 1
    steps = torch.cat([torch.arange(count, device=device) for count in (*n_steps, 1)])
    for sampler, first, end in zip(samplers, first_rows, ends, strict=True):
        if sampler.tables is None:
            coefficients[first:end, Column.OFFSET] = 0
        if not sampler.guided and any(other.guided for other in samplers):
            coefficients[first:end, Column.GUIDANCE] = -0.0
    timesteps = [sampler.timesteps for sampler in samplers]
    return StackedSamplers(
        timesteps=torch.cat([*timesteps, timesteps[0].new_zeros(1)]),
        steps=steps,
        next_rows=next_rows,
        coefficients=coefficients,
        tables=_tables([sampler.tables for sampler in samplers], (*n_steps, 1), coefficients),
        first_rows=first_rows,
        n_steps=n_steps,
        guided=tuple(sampler.guided for sampler in samplers),
    )


def _check(samplers: Sequence[Sampler]) -> None:
    if not isinstance(samplers, Sequence):
        raise TypeError(f"samplers: expected a sequence of samplers, got {type(samplers).__name__}")
    if not samplers:
        raise ValueError("samplers: expected at least one, got none")
    mixed: tuple[int, torch.Size] | None = None
    for i, sampler in enumerate(samplers):
        if not isinstance(sampler, Sampler):
            raise TypeError(f"samplers[{i}]: expected a Sampler, got {type(sampler).__name__}")
        first, name = samplers[0], f"samplers[{i}]"
        if sampler.dtype != first.dtype:
            raise ValueError(f"{name}: expected dtype {first.dtype} like samplers[0], got {sampler.dtype}")
        device = sampler.coefficients.device
        if device != first.coefficients.device:
            raise ValueError(
                f"{name}: expected device {first.coefficients.device} like samplers[0], got {device}"
            )
        if sampler.thresholding is not None:
            raise ValueError(f"{name}: expected one without dynamic thresholding, which a stack does not do")
        if sampler.timesteps.dtype != first.timesteps.dtype:
            raise ValueError(
                f"{name}: expected timesteps of {first.timesteps.dtype} like samplers[0], "
                f"got {sampler.timesteps.dtype}"
            )
        if bool((sampler.coefficients[:, Column.HISTORY_0 : Column.HISTORY_3 + 1] != 0).any()):
            raise ValueError(f"{name}: expected rows without history, which a stack does not keep")
        if sampler.tables is not None:
            if sampler.tables.basis is not None:
                raise ValueError(
                    f"{name}: expected a mixture whose moments are not matched exactly, which a stack does not hold"
                )
            shape = sampler.tables.offsets.shape[1:]
            mixed = mixed or (i, shape)
            if shape != mixed[1]:
                raise ValueError(
                    f"{name}: expected a mixture with K = {mixed[1][0]} and D = {mixed[1][1]} like that of "
                    f"samplers[{mixed[0]}], got K = {shape[0]} and D = {shape[1]}"
                )


def _idle(like: Tensor) -> Tensor:
    row = like.new_zeros(1, len(Column))
    row[0, Column.SAMPLE] = 1
    row[0, Column.CLIP_MIN], row[0, Column.CLIP_MAX] = -torch.inf, torch.inf
    return row


def _tables(
    given: Sequence[MixtureTables | None], n_rows: Sequence[int], coefficients: Tensor
) -> MixtureTables | None:
    """Return the tables of all rows; those of the idle row are the last."""
    present = [tables for tables in given if tables is not None]
    if not present:
        return None
    _, components, elements = present[0].offsets.shape
    removed = max(tables.std.shape[2] for tables in present)
    std_components = max(tables.std.shape[1] for tables in present)
    cdf, offsets, std = [], [], []
    for tables, rows in zip((*given, None), coefficients.split(list(n_rows)), strict=True):
        count = rows.shape[0]
        # Elements beyond a table have the row's sigma, so a wider table says the same.
        own_std = rows[:, Column.SIGMA, None, None].expand(-1, std_components, removed)
        if tables is None:  # always component 0, whose offset the row leaves out
            cdf.append(present[0].cdf.new_full((count, components - 1), _NO_WORD_REACHES))
            offsets.append(present[0].offsets.new_zeros(1, 1, 1).expand(count, components, elements))
        else:
            cdf.append(tables.cdf.expand(count, -1))
            offsets.append(tables.offsets.expand(count, -1, -1))
            written = tables.std.expand(count, std_components, -1)
            own_std = torch.cat([written, own_std[:, :, written.shape[2] :]], dim=2)
        std.append(own_std)
    first = present[0].offsets
    shared = first.shape[0] == 1 and all(torch.equal(tables.offsets, first) for tables in present)
    return MixtureTables(torch.cat(cdf), first if shared else torch.cat(offsets), torch.cat(std))
