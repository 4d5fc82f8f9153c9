"""Random transitions as functions of the tensors that have gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from helpers import StepCase, bare, random_case
from torch import Tensor

from gmmkernel import Column, gmm_step, gmm_step_log_prob
from gmmkernel.ops import LogRatio, gmm_step_log_ratio


def leaves_of(case: StepCase) -> dict[str, Tensor]:
    """Return the tensors of a case that have a gradient, by name."""
    found = {
        "sample": case.sample,
        "model_output": case.model_output,
        "coefficients": case.coefficients,
        "model_output_uncond": case.model_output_uncond,
        **{f"history{j}": stored for j, stored in enumerate(case.history)},
    }
    if case.mixture is not None:
        found |= {"offsets": case.mixture.offsets, "std": case.mixture.std}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def with_leaves(case: StepCase, leaves: dict[str, Tensor]) -> StepCase:
    """Return the case with other tensors of these names."""
    tables = {name: leaves[name] for name in ("offsets", "std", "weights") if name in leaves}
    history = [leaves.get(f"history{j}", stored) for j, stored in enumerate(case.history)]
    own = {name: tensor for name, tensor in leaves.items() if name in StepCase.__dataclass_fields__}
    mixture = case.mixture._replace(**tables) if case.mixture is not None else None
    return replace(case, mixture=mixture, history=history, **own)


def cotangent(like: Tensor, seed: int) -> Tensor:
    """Return a random gradient of a result."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def step_gradients(
    case: StepCase, grads: Sequence[Tensor] | None = None, without: Sequence[str] = (), **options: Any
) -> dict[str, Tensor]:
    """Return the gradients that a step's result and prediction send back, those given or random ones.

    Args:
        case: the step.
        grads: of the result and the prediction.
        without: names of tensors whose gradients are not asked for.
        options: further arguments of `gmm_step`.
    """
    wanted = {name: tensor for name, tensor in leaves_of(case).items() if name not in without}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in wanted.items()}
    made = with_leaves(case, leaves).run(**options)
    results = [tensor for tensor in made[:2] if tensor is not None]
    grads = grads or [cotangent(result, 1 + i) for i, result in enumerate(results)]
    found = torch.autograd.grad(results, list(leaves.values()), grads[: len(results)])
    return dict(zip(leaves, found, strict=True))


@dataclass(frozen=True)
class Density:
    """A log-density: the transition, whose mixture has weights, and the sample it leads to."""

    case: StepCase
    prev_sample: Tensor

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that have a gradient, by name."""
        found = {"prev_sample": self.prev_sample, **leaves_of(self.case)}
        if self.case.mixture is not None and self.case.mixture.weights is not None:
            found["weights"] = self.case.mixture.weights
        return found

    def with_leaves(self, leaves: dict[str, Tensor]) -> Density:
        """Return the same with other tensors of these names."""
        return Density(with_leaves(self.case, leaves), leaves.get("prev_sample", self.prev_sample))

    def log_prob(self, **options: Any) -> Tensor:
        """Call `gmm_step_log_prob`."""
        arguments = {
            "row": self.case.row,
            "mixture": self.case.mixture,
            "model_output_uncond": self.case.model_output_uncond,
            "history": self.case.history,
        }
        tensors = (self.prev_sample, self.case.sample, self.case.model_output, self.case.coefficients)
        return gmm_step_log_prob(*tensors, **(arguments | options))

    def gradients(self, grad: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
        """Return the log-densities and the gradients they send back, for the gradient given or a random one."""
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.leaves().items()}
        made = self.with_leaves(leaves).log_prob(**options)
        found = torch.autograd.grad(made, list(leaves.values()), cotangent(made, 1) if grad is None else grad)
        return {"log_prob": made.detach(), **dict(zip(leaves, found, strict=True))}


def random_density(seed: int, *, positive: bool = True, **options: Any) -> Density:
    """Return a random log-density.

    Args:
        seed: the same seed and options give the same one.
        positive: no standard deviation is 0.
        options: those of `random_case`.
    """
    case = random_case(seed, prediction=None, **options)
    generator = torch.Generator().manual_seed(seed)
    prev_sample = torch.randn(case.sample.shape, generator=generator, dtype=torch.float64).to(
        case.sample.dtype
    )
    if positive:
        coefficients = case.coefficients.clone()
        coefficients[:, Column.SIGMA] = coefficients[:, Column.SIGMA].abs() + 0.1
        case = replace(case, coefficients=coefficients)
    if case.mixture is not None:
        rows, components = case.coefficients.shape[0], case.mixture.offsets.shape[1]
        shape = (1 if seed % 2 else rows, components)
        weights = torch.rand(shape, generator=generator, dtype=case.coefficients.dtype) + 0.1
        std = case.mixture.std + 0.1 if positive else case.mixture.std
        mixture = case.mixture._replace(weights=weights / weights.sum(1, keepdim=True), std=std)
        case = replace(case, mixture=mixture)
    return Density(case, prev_sample)


@dataclass(frozen=True)
class Ratio:
    """A log-ratio: the transition, the sample it led to, and the outputs before."""

    case: StepCase
    prev_sample: Tensor
    old_model_output: Tensor
    old_model_output_uncond: Tensor | None

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that have a gradient, by name."""
        own = ("prev_sample", "old_model_output", "old_model_output_uncond")
        found = {name: getattr(self, name) for name in own} | leaves_of(self.case)
        del found["coefficients"]
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def with_leaves(self, leaves: dict[str, Tensor]) -> Ratio:
        """Return the same with other tensors of these names."""
        own = {name: tensor for name, tensor in leaves.items() if name in Ratio.__dataclass_fields__}
        return replace(self, case=with_leaves(self.case, leaves), **own)

    def run(self, **options: Any) -> LogRatio:
        """Call `gmm_step_log_ratio`."""
        case = self.case
        arguments = {
            "row": case.row,
            "model_output_uncond": case.model_output_uncond,
            "old_model_output_uncond": self.old_model_output_uncond,
            "history": case.history,
        }
        tensors = (self.prev_sample, case.sample, case.model_output, self.old_model_output, case.coefficients)
        return gmm_step_log_ratio(*tensors, **(arguments | options))

    def gradients(self, grads: Sequence[Tensor] | None = None, **options: Any) -> dict[str, Tensor]:
        """Return both results and the gradients they send back, for the gradients given or random ones."""
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.leaves().items()}
        made = self.with_leaves(leaves).run(**options)
        grads = grads or [cotangent(each, 1 + i) for i, each in enumerate(made)]
        found = torch.autograd.grad(list(made), list(leaves.values()), grads)
        results = {name: each.detach() for name, each in made._asdict().items()}
        return {**results, **dict(zip(leaves, found, strict=True))}


def random_ratio(seed: int, *, change: float = 0.1, **options: Any) -> Ratio:
    """Return a random log-ratio.

    Args:
        seed: the same seed and options give the same one.
        change: how much the outputs differ, as a standard deviation.
        options: those of `random_density`.
    """
    made = random_density(seed, components=0, **options)
    case, generator = made.case, torch.Generator().manual_seed(seed + 1)

    def changed(output: Tensor | None) -> Tensor | None:
        if output is None:
            return None
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return (output.double() + change * noise).to(output.dtype)

    old = changed(case.model_output)
    assert old is not None
    return Ratio(case, made.prev_sample, old, changed(case.model_output_uncond))


def smooth(case: StepCase) -> StepCase:
    """Return a case whose derivatives can be taken by differences: every term there, every bound finite."""
    coefficients = case.coefficients.clone()
    coefficients.clamp_(-1e3, 1e3)
    for column in (
        Column.SIGMA,
        Column.OFFSET,
        *range(Column.HISTORY_0, Column.HISTORY_0 + len(case.history)),
    ):
        coefficients[coefficients[:, column] == 0, column] = 0.3
    return replace(case, coefficients=coefficients)


CASE = random_case(
    3, batch=3, components=3, removed=20, guidance=False, history=0, prediction="x0", dtype=torch.float32
)
DENSITY = random_density(3, batch=3, components=3, removed=20, guidance=True, history=2, dtype=torch.float32)
ARGUMENTS = (
    CASE.sample,
    CASE.model_output.float(),
    bare(DENSITY.case.coefficients),
    CASE.mixture.offsets,
)  # of those below


def of_sample(
    x: Tensor, output: Tensor, coefficients: Tensor, offsets: Tensor, seeds: Tensor, row: Any
) -> Tensor:
    """Return a step of one schedule and mixture as a function of tensors."""
    mixture = CASE.mixture._replace(offsets=offsets)
    return gmm_step(x, output, coefficients, row=row, step=1, seeds=seeds, mixture=mixture).prev_sample


def of_density(
    x: Tensor, output: Tensor, coefficients: Tensor, offsets: Tensor, seeds: Tensor, row: Any
) -> Tensor:
    """Return log-densities as a function of the same tensors."""
    del seeds
    mixture = DENSITY.case.mixture._replace(offsets=offsets)
    return gmm_step_log_prob(x * 0.5, x, output, coefficients, row=row, mixture=mixture)


def of_ratio(
    x: Tensor, output: Tensor, coefficients: Tensor, offsets: Tensor, seeds: Tensor, row: Any
) -> Tensor:
    """Return log-ratios and divergences as a function of the same tensors, of which the last two take no part."""
    del seeds
    made = gmm_step_log_ratio(x * 0.5, x, output, x * 0.25, coefficients.detach(), row=row)
    return made.log_ratio + made.divergence + 0 * (coefficients.sum() + offsets.sum())


def direct(function: Callable[..., Tensor], row: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of one of them."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*leaves, CASE.seeds, row).square().sum(), leaves)
