"""What must be reached on two cores with AVX-512, as ratios of figures of the same run."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Results

HOST_SHAPE = (1, 4, 1, 1)
"""A batch so small that a call's time is the cost of calling."""
SMALL_SHAPE = (1, 4, 64, 64)
MEDIUM_SHAPE = (16, 4, 64, 64)
LARGE_SHAPE = (16, 3, 256, 256)
TRAINING_SHAPE = (64, 3, 64, 64)
ROLLOUT_SHAPE = (4, 16, 128, 128)
"""Latents of four images of 1024 by 1024, as training by rewards draws them."""
SMALL_ROLLOUT_SHAPE = (1, 16, 64, 64)
THREADS = 2


@dataclass(frozen=True)
class Target:
    """A bound on a ratio or a difference of two cases' medians, or on one case's median.

    Attributes:
        label: what is compared.
        shape: the size.
        numerator: a case's name.
        denominator: another's, or None: the value is the numerator's median in microseconds.
        at_least: a lower bound on the value, or None.
        at_most: an upper bound on the value, or None. With neither the value is for information.
        rates: compare bytes per second instead of times.
        added: the value is the difference of the medians in microseconds.
    """

    label: str
    shape: tuple[int, ...]
    numerator: str
    denominator: str | None
    at_least: float | None = None
    at_most: float | None = None
    rates: bool = False
    added: bool = False


TARGETS = (
    Target("diffusers / step K=8", LARGE_SHAPE, "diffusers/K1/new/float32", "gmm_step/K8/out/float32", at_least=12),
    Target("the same, result allocated", LARGE_SHAPE, "diffusers/K1/new/float32", "gmm_step/K8/new/float32"),
    Target("torch.randn(out=) / step K=8", LARGE_SHAPE, "randn/out/float32", "gmm_step/K8/out/float32", at_least=4),
    Target("the same, result allocated", LARGE_SHAPE, "randn/out/float32", "gmm_step/K8/new/float32"),
    Target(
        "step K=8, AVX2 / AVX-512", LARGE_SHAPE, "gmm_step/K8-avx2/out/float32", "gmm_step/K8-avx512/out/float32",
        at_most=2,
    ),
    Target("diffusers / step K=8", SMALL_SHAPE, "diffusers/K1/new/float32", "gmm_step/K8/new/float32", at_least=4),
    Target("the same, preallocated", SMALL_SHAPE, "diffusers/K1/new/float32", "gmm_step/K8/out/float32"),
    Target("step K=1024 / K=64", LARGE_SHAPE, "gmm_step/K1024/out/float32", "gmm_step/K64/out/float32", at_most=1.1),
    Target(
        "exact step / step, K=8", LARGE_SHAPE, "gmm_step/K8-exact/out/float32", "gmm_step/K8/out/float32", at_most=4
    ),
    Target(
        "exact step K=64 / K=8", LARGE_SHAPE, "gmm_step/K64-exact/out/float32", "gmm_step/K8-exact/out/float32",
        at_most=8,
    ),
    Target(
        "PyTorch / step K=8, forward and backward", LARGE_SHAPE, "eager/K8-backward/new/float32",
        "gmm_step/K8-backward/new/float32", at_least=10,
    ),
    Target(
        "the same, tables' gradients too", LARGE_SHAPE, "eager/K8-backward-tables/new/float32",
        "gmm_step/K8-backward-tables/new/float32",
    ),
    Target(
        "PyTorch / log-density K=8, forward and backward", LARGE_SHAPE, "eager/K8-log_prob-backward/new/float32",
        "log_prob/K8-backward/new/float32",
    ),
    Target(
        "diffusers / sampler, DPM-Solver++ order 2", LARGE_SHAPE, "diffusers/dpm-solver++/new/float32",
        "sampler/dpm-solver++/new/float32",
    ),
    Target(
        "the same", SMALL_SHAPE, "diffusers/dpm-solver++/new/float32", "sampler/dpm-solver++/new/float32",
    ),
    Target(
        "diffusers / scheduler K=8", LARGE_SHAPE, "diffusers/K1/new/float32", "scheduler/K8/new/float32", at_least=6
    ),
    Target(
        "what the scheduler adds to a step K=8, us", SMALL_SHAPE, "scheduler/K8/new/float32",
        "gmm_step/K8/new/float32", at_most=25, added=True,
    ),
    Target(
        "PyTorch / noise, skip-step loss, gradient", TRAINING_SHAPE, "eager/training-skip/new/float32",
        "training/skip/new/float32", at_least=4,
    ),
    Target(
        "the same, noise drawn again for the gradient", TRAINING_SHAPE, "eager/training-skip/new/float32",
        "training/skip-drawn-again/new/float32",
    ),
    Target(
        "PyTorch / noise, DDPM's loss, gradient", TRAINING_SHAPE, "eager/training-ddpm/new/float32",
        "training/ddpm/new/float32",
    ),
    Target(
        "Flow-GRPO / rollout, bfloat16 outputs", ROLLOUT_SHAPE, "eager/rl-rollout/new/bfloat16",
        "rl/rollout/new/bfloat16", at_least=12,
    ),
    Target(
        "the same, preallocated", ROLLOUT_SHAPE, "eager/rl-rollout/new/bfloat16", "rl/rollout/out/bfloat16",
    ),
    Target(
        "the same, with the mean", ROLLOUT_SHAPE, "eager/rl-rollout/new/bfloat16", "rl/rollout-mean/new/bfloat16",
    ),
    Target(
        "torch.compile / rollout, bfloat16 outputs", ROLLOUT_SHAPE, "compile/rl-rollout/new/bfloat16",
        "rl/rollout/new/bfloat16", at_least=4,
    ),
    Target(
        "rollout / step without log-density", ROLLOUT_SHAPE, "rl/rollout/out/bfloat16", "rl/step/out/bfloat16",
        at_most=1.15,
    ),
    Target(
        "Flow-GRPO / log-density and gradient", ROLLOUT_SHAPE, "eager/rl-log_prob/new/bfloat16",
        "rl/log_prob/new/bfloat16", at_least=8,
    ),
    Target(
        "torch.compile / log-density and gradient", ROLLOUT_SHAPE, "compile/rl-log_prob/new/bfloat16",
        "rl/log_prob/new/bfloat16", at_least=2,
    ),
    Target(
        "Flow-GRPO / log-density and gradient", SMALL_ROLLOUT_SHAPE, "eager/rl-log_prob/new/bfloat16",
        "rl/log_prob/new/bfloat16", at_least=3,
    ),
    Target(
        "log-ratio / log-density, and gradient", ROLLOUT_SHAPE, "rl/log_ratio/new/bfloat16",
        "rl/log_prob/new/bfloat16", at_most=1.3,
    ),
    Target(
        "shard of 2 / rollout", ROLLOUT_SHAPE, "rl/rollout-shard2/new/bfloat16", "rl/rollout/new/bfloat16",
        at_most=1 / 2,
    ),
    Target(
        "shard of 4 / rollout", ROLLOUT_SHAPE, "rl/rollout-shard4/new/bfloat16", "rl/rollout/new/bfloat16",
        at_most=1 / 4,
    ),
    Target(
        "whole noise cut / shard of 2", ROLLOUT_SHAPE, "eager/rl-rollout-shard2/new/bfloat16",
        "rl/rollout-shard2/new/bfloat16",
    ),
    Target(
        "whole noise cut / shard of 4", ROLLOUT_SHAPE, "eager/rl-rollout-shard4/new/bfloat16",
        "rl/rollout-shard4/new/bfloat16",
    ),
    Target("one call on 4 elements, us", HOST_SHAPE, "gmm_step/K8/new/float32", None, at_most=10),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured.

    Attributes:
        target: the target.
        value: the ratio (or difference) of the medians, or None where a figure is missing.
        low, high: 20th and 80th percentile of the same within a round.
    """

    target: Target
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.target.at_least is not None:
            return f">= {self.target.at_least:g}"
        return "" if self.target.at_most is None else f"<= {self.target.at_most:g}"

    @property
    def outcome(self) -> str:
        """PASS, unmet, "not measured", or nothing where there is no bound."""
        if self.value is None:
            return "not measured"
        if not self.bound:
            return ""
        met = (self.target.at_least is None or operator.ge(self.value, self.target.at_least)) and (
            self.target.at_most is None or operator.le(self.value, self.target.at_most)
        )
        return "PASS" if met else "unmet"


def judge(results: Results, targets: Sequence[Target] = TARGETS, threads: int = THREADS) -> list[Verdict]:
    """Return what became of every target, in passes with that number of threads."""
    return [_judge(target, results, threads) for target in targets]


def _judge(target: Target, results: Results, threads: int) -> Verdict:
    top = results.find(target.numerator, target.shape, threads)
    if top is None:
        return Verdict(target)
    if target.denominator is None:
        return Verdict(target, *(1e6 * seconds for seconds in (top.median, top.p20, top.p80)))
    bottom = results.find(target.denominator, target.shape, threads)
    if bottom is None:
        return Verdict(target)
    if target.added:
        added = 1e6 * np.subtract(top.round_medians, bottom.round_medians)
        low, high = np.percentile(added, (20, 80))
        return Verdict(target, 1e6 * (top.median - bottom.median), float(low), float(high))
    ratios = np.divide(top.round_medians, bottom.round_medians)
    ratio = top.median / bottom.median
    if target.rates:
        moved = top.moved_bytes / bottom.moved_bytes
        ratios, ratio = moved / ratios, moved / ratio
    low, high = np.percentile(ratios, (20, 80))
    return Verdict(target, ratio, float(low), float(high))
