"""The registry: every case by its name, what it measures, and how to make it ready for a size.

A name reads function/variant/where the result goes/type. All cases of a size get the same inputs. A case's calls differ
in the step of the noise counter alone: each draws new components and so reads other rows of the mixture, as sampling
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor

from benchmarks import gradient_cases, rl_cases, sampler_cases, training_cases
from benchmarks.baselines import (
    StepFunction,
    Unavailable,
    compiled,
    diffusers_step,
    eager_step,
)
from benchmarks.timers import Timer
from benchmarks.workload import SAMPLING_STEPS, STEP, Workload
from gmmkernel import MixtureTables, gmm_step, standard_normal
from gmmkernel.backends import cpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPONENTS = (1, 8, 64, 1024)
_OTHER_WORK = 2**18  # elements, enough for torch to use all of its threads


@dataclass(frozen=True)
class Prepared:
    """A case made ready for one size.

    Attributes:
        call: call(n) does the work for the n-th time and returns its result.
        bytes: bytes that one pass over inputs and result has to move, whatever the case's own traffic.
        context: entered around a block of calls.
        before: called ahead of every call, outside what is timed.
        timer: its own clock, or None: the device's.
        repeats: how often a call does the work; the figures are for once.
    """

    call: Callable[[int], Tensor]
    bytes: int
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    before: Callable[[], object] | None = None
    timer: Timer | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: its name, unique.
        measures: what it measures, in a sentence.
        dtype: type of the samples; in the cases of `rl_cases` of the model outputs, beside float32 samples.
        build: build(workload, dtype) makes it ready; raises `Unavailable` where it cannot be had.
        largest: elements of the batch above which it is left out, or None.
    """

    name: str
    measures: str
    dtype: torch.dtype
    build: Callable[[Workload, torch.dtype], Prepared]
    largest: int | None = None


def all_cases() -> list[Case]:
    """Return every case of this machine, in the order of the tables."""
    return [
        Case(f"{name}/{type_name}", measures, dtype, build)
        for type_name, dtype in DTYPES.items()
        for name, measures, build in _definitions()
    ]


def select_cases(patterns: list[str], cases: list[Case] | None = None) -> list[Case]:
    """Return the cases, of all or of those given, whose name matches one of the shell-style patterns.

    Raises:
        ValueError: a pattern matches no case.
    """
    cases = all_cases() if cases is None else cases
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ValueError(f"cases: no case matches {pattern!r}; --list shows their names")
    return [case for case in cases if any(fnmatchcase(case.name, pattern) for pattern in patterns)]


def _definitions() -> Iterator[tuple[str, str, Callable[[Workload, torch.dtype], Prepared]]]:
    for count in COMPONENTS:
        kind = (
            "Gaussian step, no mixture"
            if count == 1
            else f"mixture step, {count} components, std per element"
        )
        mixture = partial(_mixture, components=count)
        yield f"gmm_step/K{count}/out", f"{kind}, into a preallocated tensor", partial(_step, mixture=mixture)
        yield (
            f"gmm_step/K{count}/new",
            f"{kind}, result allocated",
            partial(_step, mixture=mixture, allocate=True),
        )
    yield (
        "gmm_step/K8-vub/out",
        "mixture step, 8 components, variance removed from the first 8 elements",
        partial(_step, mixture=_bounded_mixture),
    )
    for count in (8, 64):
        yield (
            f"gmm_step/K{count}-exact/out",
            f"mixture step, {count} components, moments matched exactly",
            partial(_step, mixture=partial(_exact_mixture, components=count)),
        )
    yield "gmm_step/sigma0/out", "DDIM step at eta = 0: no noise drawn", partial(_step, eta=0)
    eight = partial(_mixture, components=8)
    for name in cpu.instruction_sets():
        yield (
            f"gmm_step/K8-{name}/out",
            f"mixture step, 8 components, with the {name} instruction set",
            partial(_step, mixture=eight, context=partial(cpu.use_instruction_set, name)),
        )
    yield (
        "gmm_step/K8-after-torch/out",
        "mixture step, 8 components, right after a PyTorch operation, whose threads still spin",
        partial(_step, mixture=eight, after_torch=True),
    )
    for name, (measures, function, options) in gradient_cases.FUNCTIONS.items():
        yield name, measures, partial(_forward_backward, function=function, options=options)
    for name, (measures, make, tau) in training_cases.FUNCTIONS.items():
        yield name, measures, partial(_training, make=make, tau=tau)
    for name, definition in {**rl_cases.OWN, **rl_cases.baselines(compiled)}.items():
        yield name, definition.measures, partial(rl_case, definition=definition)
    yield "standard_normal/out", "the package's noise alone", _standard_normal
    yield (
        "eager/K8/new",
        "the mixture step, 8 components, written in PyTorch",
        partial(_eager, make=lambda: eager_step),
    )
    yield "compile/K8/new", "the same under torch.compile", partial(_eager, make=lambda: compiled(eager_step))
    yield "diffusers/K1/new", "diffusers' DDIMScheduler.step, eta = 1, no mixture", _diffusers
    yield (
        "diffusers/K1-after-torch/new",
        "the same, right after a PyTorch operation",
        partial(_diffusers, after_torch=True),
    )
    yield "sampler/dpm-solver++/new", "a step of DPMSolverSampler, order 2, prediction stored", _dpm_solver
    yield (
        "diffusers/dpm-solver++/new",
        "diffusers' DPMSolverMultistepScheduler.step, order 2",
        _diffusers_dpm_solver,
    )
    for count in (1, 8):
        yield (
            f"scheduler/K{count}/new",
            f"GMMDDIMScheduler.step, eta = 1, {count} components, the predicted data written as well",
            partial(_scheduler, components=count),
        )
    yield "randn/out", "torch.randn into a preallocated tensor", _randn
    yield "copy/out", "Tensor.copy_ into a preallocated tensor", _copy


def _mixture(workload: Workload, components: int) -> MixtureTables | None:
    return None if components == 1 else workload.mixture(components)


def _exact_mixture(workload: Workload, components: int) -> MixtureTables:
    return workload.exact_mixture(components)


def _bounded_mixture(workload: Workload) -> MixtureTables:
    return workload.bounded_mixture(8)


def _step(
    workload: Workload,
    dtype: torch.dtype,
    *,
    mixture: Callable[[Workload], MixtureTables | None] = lambda _: None,
    eta: int = 1,
    allocate: bool = False,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    after_torch: bool = False,
) -> Prepared:
    sample, model_output = workload.inputs(dtype)
    coefficients = workload.coefficients if eta else workload.deterministic
    tables = mixture(workload)
    seeds = workload.seeds
    out = None if allocate else torch.empty_like(sample)

    def call(index: int) -> Tensor:
        return gmm_step(
            sample, model_output, coefficients, row=0, step=index, seeds=seeds, mixture=tables, out=out
        ).prev_sample

    before = _torch_operation(workload) if after_torch else None
    return Prepared(call, workload.step_bytes(dtype, tables), context, before)


def _forward_backward(
    workload: Workload,
    dtype: torch.dtype,
    *,
    function: Callable[[Workload], gradient_cases.Forward],
    options: dict[str, bool],
) -> Prepared:
    call = gradient_cases.forward_backward(workload, dtype, function(workload), **options)
    # Forward as a step; backward reads the inputs and the result's gradient, and writes two gradients.
    return Prepared(
        call, workload.step_bytes(dtype) + 5 * workload.inputs(dtype)[0].nbytes, torch.enable_grad
    )


def _training(
    workload: Workload,
    dtype: torch.dtype,
    *,
    make: Callable[[Workload, torch.dtype, float], training_cases.Call],
    tau: float,
) -> Prepared:
    # Data and model output are read, the training sample and the gradient written.
    return Prepared(make(workload, dtype, tau), 4 * workload.inputs(dtype)[0].nbytes, torch.enable_grad)


def rl_case(workload: Workload, dtype: torch.dtype, *, definition: rl_cases.Definition) -> Prepared:
    """Make a case of `rl_cases` ready."""
    call = definition.make(workload, dtype)
    context = torch.enable_grad if definition.gradient else nullcontext
    return Prepared(call, definition.bytes(workload, dtype), context)


def _torch_operation(workload: Workload) -> Callable[[], Tensor]:
    other = torch.ones(_OTHER_WORK, device=workload.device)
    return partial(torch.mul, other, 1.0, out=torch.empty_like(other))


def _standard_normal(workload: Workload, dtype: torch.dtype) -> Prepared:
    out = torch.empty_like(workload.inputs(dtype)[0])
    seeds, shape = workload.seeds, workload.shape[1:]

    def call(index: int) -> Tensor:
        return standard_normal(seeds, shape, step=index, dtype=dtype, out=out)

    return Prepared(call, out.nbytes)


def _eager(workload: Workload, dtype: torch.dtype, *, make: Callable[[], StepFunction]) -> Prepared:
    sample, model_output = workload.inputs(dtype)
    tables = workload.mixture(8)
    # Tables of the sample's type, so that PyTorch computes in that type, as a program written for it would.
    tables = MixtureTables(tables.cdf, tables.offsets.to(dtype), tables.std.to(dtype))
    offsets, std = tables.offsets[0], tables.std[0, 0]
    step = make()
    alpha, prev_alpha, sigma = workload.alpha, workload.prev_alpha, workload.sigma

    def call(_: int) -> Tensor:
        return step(sample, model_output, offsets, std, alpha=alpha, prev_alpha=prev_alpha, sigma=sigma)

    return Prepared(call, workload.step_bytes(dtype, tables))


def _diffusers(workload: Workload, dtype: torch.dtype, *, after_torch: bool = False) -> Prepared:
    step = diffusers_step(workload, dtype)
    before = _torch_operation(workload) if after_torch else None
    return Prepared(lambda _: step(), workload.step_bytes(dtype), before=before)


def _dpm_solver(workload: Workload, dtype: torch.dtype) -> Prepared:
    call = sampler_cases.dpm_solver_step(workload, dtype)
    return Prepared(call, sampler_cases.STREAMS * workload.inputs(dtype)[0].nbytes)


def _diffusers_dpm_solver(workload: Workload, dtype: torch.dtype) -> Prepared:
    call, before = sampler_cases.diffusers_dpm_solver_step(workload, dtype)
    return Prepared(call, sampler_cases.STREAMS * workload.inputs(dtype)[0].nbytes, before=before)


def _scheduler(workload: Workload, dtype: torch.dtype, *, components: int) -> Prepared:
    try:
        from gmmkernel.integrations.diffusers import GMMDDIMScheduler
    except ImportError as error:
        raise Unavailable(str(error)) from None
    sample, model_output = workload.inputs(dtype)
    scheduler = GMMDDIMScheduler(offset_scale=0)
    if components > 1:
        scheduler.set_mixture(workload.unbound_mixture(components))
    scheduler.set_timesteps(SAMPLING_STEPS, workload.device)
    scheduler.set_seeds(workload.seeds)
    timestep = scheduler.timesteps[STEP]  # what a pipeline passes

    def call(_: int) -> Tensor:
        made: Tensor = scheduler.step(model_output, timestep, sample, eta=1.0).prev_sample
        return made

    tables = None if components == 1 else workload.mixture(components)
    return Prepared(call, workload.step_bytes(dtype, tables) + sample.nbytes)


def _randn(workload: Workload, dtype: torch.dtype) -> Prepared:
    out = torch.empty_like(workload.inputs(dtype)[0])
    shape = workload.shape
    return Prepared(lambda _: torch.randn(shape, out=out), out.nbytes)


def _copy(workload: Workload, dtype: torch.dtype) -> Prepared:
    source = workload.inputs(dtype)[0]
    out = torch.empty_like(source)
    return Prepared(lambda _: out.copy_(source), 2 * out.nbytes)
