"""What the studies' tables are made of: means with standard errors, and differences seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Results = Mapping[tuple[str, int], Mapping[str, float]]
"""Of each line's name and seed: what was measured, by column."""

POWER = 0.8
LEVEL = 0.05


class Difference(NamedTuple):
    """How a line differs from another, over the seeds that both have.

    Attributes:
        mean: of the differences, seed by seed; negative is better.
        error: its standard error.
        margin: half the width of its 95% confidence interval: t_0.975 standard errors, with Student's t of one less
            than the seeds.
        visible: the size that a true difference would need to be found, with probability 0.8 at the two-sided level
            of 5%: (t_0.975 + t_0.8) standard errors.
    """

    mean: float
    error: float
    margin: float
    visible: float


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; NaN for the error of one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def difference(results: Results, name: str, baseline: str, column: str) -> Difference | None:
    """Compare a line with another; None where no seed has both."""
    pairs = [
        found[column] - results[baseline, seed][column]
        for (other, seed), found in results.items()
        if other == name and (baseline, seed) in results
    ]
    if not pairs:
        return None
    mean, error = mean_and_error(pairs)
    if len(pairs) < 2:
        return Difference(mean, error, math.nan, math.nan)
    from scipy.stats import t  # comes with scikit-learn

    student = t(len(pairs) - 1)
    margin = float(student.ppf(1 - LEVEL / 2)) * error
    return Difference(mean, error, margin, margin + float(student.ppf(POWER)) * error)
