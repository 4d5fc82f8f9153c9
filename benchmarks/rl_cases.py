"""What training a flow by rewards calls in its steps: ours, and the same written in PyTorch as Flow-GRPO has it.

The sample is float32 in all of them, the model output of the case's type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.baselines import eager_flow_step, eager_transition
from benchmarks.workload import SAMPLING_STEPS, STEP, Workload
from gmmkernel import flow_sde_coefficients, flow_times, gmm_step, gmm_step_log_prob, gmm_step_log_ratio

NOISE_LEVEL = 0.7
SHARDS = (2, 4)

Call = Callable[[int], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]


class Definition(NamedTuple):
    """A case.

    Attributes:
        measures: what it measures, in a sentence.
        make: make(workload, dtype) returns its call, ours also on a `backend`.
        samples: float32 tensors of the sample's size that one pass has to move.
        outputs: the same of the model output's size and type.
        parts: into how many shards the sample is cut, of which the case does one.
        gradient: it takes a gradient.
    """

    measures: str
    make: Callable[..., Call]
    samples: int
    outputs: int
    parts: int = 1
    gradient: bool = False

    def bytes(self, workload: Workload, dtype: torch.dtype) -> int:
        """Return the bytes that one pass has to move."""
        elements = workload.batch * (workload.elements // self.parts)
        return elements * (self.samples * torch.float32.itemsize + self.outputs * dtype.itemsize)


def step(
    workload: Workload,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
    preallocated: bool = False,
    parts: int = 1,
    **asked: Any,
) -> Call:
    """Return call(n): step n of the noise counter.

    Args:
        workload: the inputs.
        dtype: type of the model outputs.
        backend: who does it.
        preallocated: write into a tensor that is there.
        parts: do the last of so many shards of each sample.
        asked: what `gmm_step` is to return besides.
    """
    sets, first = _shards(workload, dtype, parts)
    rows, seeds = _rows(workload), workload.seeds

    def call(index: int) -> Tensor:
        sample, model_output, out = sets[index % len(sets)]
        return gmm_step(
            sample,
            model_output,
            rows,
            row=STEP,
            step=index,
            seeds=seeds,
            first_element=first,
            out=out if preallocated else None,
            backend=backend,
            **asked,
        ).prev_sample

    return call


def step_in_pytorch(
    workload: Workload, dtype: torch.dtype, *, transform: Transform | None = None, parts: int = 1
) -> Call:
    """Return call(n): the sample and its log-density written plainly; a shard's noise is cut out of the whole's.

    Args:
        workload: the inputs.
        dtype: type of the model outputs.
        transform: what to do to the function; None: it looks its times up, as Flow-GRPO does.
        parts: do the last of so many shards of each sample.
    """
    sets, first = _shards(workload, dtype, parts)
    transition = _plainly(workload, transform)
    whole = (workload.batch, workload.elements)

    def call(index: int) -> Tensor:
        sample, model_output, _ = sets[index % len(sets)]
        noise = None
        if parts > 1:
            noise = torch.randn(whole, device=sample.device)[:, first:]
        elif transform is not None:  # ahead of compiled code, which would take longer to draw it
            noise = torch.randn(workload.shape, device=sample.device)
        made: Tensor = transition(model_output, sample, noise=noise)[0]
        return made

    return call


def log_prob(workload: Workload, dtype: torch.dtype, *, backend: str | None = None) -> Call:
    """Return call(n): the gradient of the model output, of the mean log-density of a sample drawn before."""
    rows = _rows(workload)

    def forward(prev_sample: Tensor, sample: Tensor, output: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        made = gmm_step_log_prob(
            prev_sample, sample, output, rows, row=STEP, reduction="mean", backend=backend
        )
        return (made,)

    return _forward_backward(workload, dtype, forward)


def log_ratio(workload: Workload, dtype: torch.dtype, *, backend: str | None = None) -> Call:
    """Return call(n): the same of the log-ratio to another model output and the divergence from it."""
    rows = _rows(workload)

    def forward(prev_sample: Tensor, sample: Tensor, output: Tensor, old: Tensor) -> tuple[Tensor, ...]:
        return gmm_step_log_ratio(
            prev_sample, sample, output, old, rows, row=STEP, reduction="mean", backend=backend
        )

    return _forward_backward(workload, dtype, forward)


def log_prob_in_pytorch(
    workload: Workload, dtype: torch.dtype, *, transform: Transform | None = None
) -> Call:
    """Return what `log_prob` does, written plainly; arguments as `step_in_pytorch` has them."""
    transition = _plainly(workload, transform)

    def forward(prev_sample: Tensor, sample: Tensor, output: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return (transition(output, sample, prev_sample=prev_sample)[1],)

    return _forward_backward(workload, dtype, forward)


def _rows(workload: Workload) -> Tensor:
    times = flow_times(SAMPLING_STEPS, shift=3)
    return flow_sde_coefficients(times, noise_level=NOISE_LEVEL).coefficients.to(workload.device)


def _sets(workload: Workload, dtype: torch.dtype) -> list[Inputs]:
    """Return float32 samples, model outputs of the type and float32 results."""
    pairs = zip(workload.sets(torch.float32), workload.sets(dtype), strict=False)
    return [(sample, output, out) for (sample, _, out), (_, output, _) in pairs]


def _shards(workload: Workload, dtype: torch.dtype, parts: int) -> tuple[list[Inputs], int]:
    """Return the last of so many shards of every set, in memory of its own, and its first element."""
    sets = _sets(workload, dtype)
    if parts == 1:
        return sets, 0
    first = workload.elements - workload.elements // parts
    cut = [[tensor.flatten(1)[:, first:].contiguous() for tensor in one] for one in sets]
    return [(sample, output, out) for sample, output, out in cut], first


def _plainly(workload: Workload, transform: Transform | None) -> Callable[..., tuple[Tensor, ...]]:
    """Return transition(model_output, sample, ...) of the step, for samples [B, ...]."""
    sigmas = flow_times(SAMPLING_STEPS, shift=3).float().to(workload.device)
    timesteps = 1000 * sigmas[:-1]
    if transform is None:
        timestep = timesteps[STEP].expand(workload.batch)
        schedule = {"timesteps": timesteps, "sigmas": sigmas, "noise_level": NOISE_LEVEL}

        def looked_up(output: Tensor, sample: Tensor, **options: Tensor | None) -> tuple[Tensor, ...]:
            return eager_flow_step(output, timestep, sample, **schedule, **options)  # type: ignore[arg-type]

        return looked_up
    transition = transform(eager_transition)
    t, s = (
        sigmas[at].expand(workload.batch, *[1] * (len(workload.shape) - 1)).contiguous()
        for at in (STEP, STEP + 1)
    )
    levels = {"sigma_max": float(sigmas[1]), "noise_level": NOISE_LEVEL}

    def known(output: Tensor, sample: Tensor, **options: Tensor | None) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = transition(output, sample, t, s, **levels, **options)
        return made

    return known


def _forward_backward(
    workload: Workload, dtype: torch.dtype, forward: Callable[..., tuple[Tensor, ...]]
) -> Call:
    sets = []
    draw = step(workload, dtype)
    for index, (sample, output, _) in enumerate(_sets(workload, dtype)):
        old = (output.float() + 0.01 * sample).to(dtype)  # of a model that has been trained since
        sets.append((draw(index), sample, output.detach().requires_grad_(), old))
    generator = torch.Generator(workload.device).manual_seed(7)
    advantages = torch.randn(workload.batch, generator=generator, device=workload.device)

    def call(index: int) -> Tensor:
        inputs = sets[index % len(sets)]
        made = forward(*inputs)
        return torch.autograd.grad(made, inputs[2], [advantages] * len(made))[0]

    return call


def _own() -> dict[str, Definition]:
    rollout = partial(step, return_log_prob=True)
    kinds: dict[str, tuple[str, Callable[..., Call], int]] = {
        "step": ("step of Flow-GRPO's SDE", step, 2),
        "rollout": ("the same and the log-density of what it draws", rollout, 2),
        "rollout-mean": ("the mean besides", partial(rollout, prediction="mean"), 3),
    }
    made = {}
    for name, (measures, make, samples) in kinds.items():
        made[f"rl/{name}/out"] = Definition(
            f"{measures}, into a preallocated tensor", partial(make, preallocated=True), samples, 1
        )
        made[f"rl/{name}/new"] = Definition(f"{measures}, result allocated", make, samples, 1)
    for parts in SHARDS:
        made[f"rl/rollout-shard{parts}/new"] = Definition(
            f"the rollout's step for one of {parts} shards of each sample",
            partial(rollout, parts=parts),
            2,
            1,
            parts,
        )
    # Forward and backward read the same, and backward writes a gradient.
    made["rl/log_prob/new"] = Definition(
        "log-density, forward and backward: gradient of the model output", log_prob, 4, 3, gradient=True
    )
    made["rl/log_ratio/new"] = Definition(
        "log-ratio and divergence, forward and backward: gradient of the model output",
        log_ratio, 4, 5, gradient=True,
    )  # fmt: skip
    return made


OWN = _own()
"""The package's cases by name."""


def baselines(compiled: Transform | None) -> dict[str, Definition]:
    """Return what they are compared with by name, with torch.compile's only if there is something to compile with."""
    made = {
        "eager/rl-rollout/new": Definition(
            "sample and log-density written in PyTorch as Flow-GRPO has it", step_in_pytorch, 2, 1
        ),
        "eager/rl-log_prob/new": Definition(
            "its log-density, forward and backward", log_prob_in_pytorch, 4, 3, gradient=True
        ),
    }
    for parts in SHARDS:
        made[f"eager/rl-rollout-shard{parts}/new"] = Definition(
            f"one of {parts} shards, its noise cut out of the whole sample's",
            partial(step_in_pytorch, parts=parts), 2, 1, parts,
        )  # fmt: skip
    if compiled is not None:
        for name, besides in (("rollout", ", its noise drawn ahead by torch.randn"), ("log_prob", "")):
            plain = made[f"eager/rl-{name}/new"]
            made[f"compile/rl-{name}/new"] = plain._replace(
                measures=f"the same under torch.compile, its times known{besides}",
                make=partial(plain.make, transform=compiled),
            )
    return made
