"""The registry for an accelerator: each of its backends, and what they are compared with.

A name reads function/variant/where the result goes/type, and K8-cuda is the mixture of 8 components on the backend
`cuda`. Call n takes set n of the inputs, of as many as twice fill the L2 cache, and step n of the noise counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks import rl_cases
from benchmarks.baselines import StepFunction, Unavailable, diffusers_step, eager_step
from benchmarks.cases import Case, Prepared, rl_case
from benchmarks.device_workload import RotatingWorkload
from benchmarks.timers import HostClock
from benchmarks.workload import Workload
from gmmkernel import Column, MixtureTables, gmm_step, standard_normal
from gmmkernel.backends import available_backends

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPONENTS = (1, 8, 1024)
LOOP_STEPS = 50
_SHORT = 2**20  # elements: above, neither the host's time nor a graph matters

# What pipelines launch besides the plain step.
LAUNCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "x0": ("x0 written too", {"predict": True}),
    "mixed": ("bfloat16 output beside a float32 sample, float32 output beside others", {"mixed": True}),
    "stored2-x0": ("two stored predictions read, x0 written too", {"stored": 2, "predict": True}),
}

Build = Callable[[RotatingWorkload, torch.dtype], Prepared]


def device_backends(device_type: str) -> list[str]:
    """Return the names of the package's backends for a type of device, available or not."""
    return [status.name for status in available_backends() if status.device_type == device_type]


def device_cases(device_type: str) -> list[Case]:
    """Return every case of a type of device, in the order of the tables."""
    definitions = [*_own(device_type), *_baselines()]
    return [
        Case(f"{name}/{type_name}", measures, dtype, partial(_guarded, build), largest)
        for type_name, dtype in DTYPES.items()
        for name, measures, build, largest in definitions
    ]


def _own(device_type: str) -> Iterator[tuple[str, str, Build, int | None]]:
    for backend in device_backends(device_type):
        for count in COMPONENTS:
            kind = "Gaussian step, no mixture" if count == 1 else f"mixture step, {count} components"
            step = partial(_step, backend=backend, components=count)
            yield f"gmm_step/K{count}-{backend}/out", f"{kind}, into a preallocated tensor", step, None
        for variant, (measures, options) in LAUNCHES.items():
            launch = partial(_step, backend=backend, components=1, **options)
            yield f"gmm_step/K1-{backend}-{variant}/out", f"Gaussian step, {measures}", launch, None
        eight = partial(_step, backend=backend, components=8)
        name = f"gmm_step/K8-{backend}"
        yield (
            f"{name}/new",
            "mixture step, 8 components, result allocated",
            partial(eight, allocate=True),
            None,
        )
        yield f"{name}-guided/out", "the same step with a guidance pair", partial(eight, guided=True), None
        yield (
            f"{name}-host/out",
            "the host's time for that step, until the call returns",
            partial(eight, host=True),
            _SHORT,
        )
        yield (
            f"{name}-graph/out",
            "that step, replayed as a CUDA graph of its own",
            partial(_graph, backend=backend, steps=1),
            _SHORT,
        )
        yield (
            f"{name}-graph{LOOP_STEPS}/out",
            f"one of {LOOP_STEPS} such steps in place, in one CUDA graph",
            partial(_graph, backend=backend, steps=LOOP_STEPS),
            _SHORT,
        )
        noise = partial(_standard_normal, backend=backend)
        yield f"standard_normal/{backend}/out", "the package's noise alone", noise, None
        for name, definition in rl_cases.OWN.items():
            function, variant, where = name.split("/")
            own = definition._replace(make=partial(definition.make, backend=backend))
            build = partial(rl_case, definition=own)
            yield f"{function}/{variant}-{backend}/{where}", definition.measures, build, None


def _baselines() -> Iterator[tuple[str, str, Build, int | None]]:
    eager, compiled = (
        partial(_eager, make=lambda: eager_step),
        partial(_eager, make=lambda: _compiled(eager_step)),
    )
    yield "eager/K8/new", "the mixture step, 8 components, written in PyTorch", eager, None
    yield "compile/K8/new", "the same under torch.compile", compiled, None
    for name, definition in rl_cases.baselines(_compiled).items():
        yield name, definition.measures, partial(rl_case, definition=definition), None
    yield "diffusers/K1/new", "diffusers' DDIMScheduler.step, eta = 1, no mixture", _diffusers, None
    yield "randn/out", "torch.randn into a preallocated tensor", _randn, None
    yield "copy/out", "Tensor.copy_ into a preallocated tensor", _copy, None


def _guarded(build: Build, workload: Workload, dtype: torch.dtype) -> Prepared:
    """Make a case ready and call it once: what fails here is a case that is not measured, not the end of the run."""
    try:
        prepared = build(cast(RotatingWorkload, workload), dtype)
        with prepared.context():
            prepared.call(0)
        if workload.device.type == "cuda":
            torch.cuda.synchronize(workload.device)
    except Unavailable:
        raise
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise Unavailable(f"{type(error).__name__}: {first_line[:200]}") from error
    return prepared


def _mixture(workload: RotatingWorkload, components: int) -> MixtureTables | None:
    return None if components == 1 else workload.mixture(components)


def _step(
    workload: RotatingWorkload,
    dtype: torch.dtype,
    *,
    backend: str,
    components: int,
    allocate: bool = False,
    guided: bool = False,
    host: bool = False,
    mixed: bool = False,
    stored: int = 0,
    predict: bool = False,
) -> Prepared:
    sets = workload.sets(dtype)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    outputs = [model_output.to(other if mixed else dtype) for _, model_output, _ in sets]
    tables = _mixture(workload, components)
    coefficients, seeds = workload.coefficients.clone(), workload.seeds
    coefficients[:, Column.HISTORY_0 : Column.HISTORY_0 + stored] = 0.1

    def call(index: int) -> Tensor:
        sample, _, out = sets[index % len(sets)]
        model_output = outputs[index % len(sets)]
        return gmm_step(
            sample,
            model_output,
            coefficients,
            row=0,
            step=index,
            seeds=seeds,
            mixture=tables,
            model_output_uncond=outputs[index % len(sets) - 1] if guided else None,
            history=[sets[index % len(sets) - 1 - h][0] for h in range(stored)],
            prediction="x0" if predict else None,
            out=None if allocate else out,
            backend=backend,
        ).prev_sample

    more = guided + stored + predict
    moved = (
        workload.step_bytes(dtype, tables) + more * sets[0][0].nbytes + outputs[0].nbytes - sets[0][1].nbytes
    )
    return Prepared(call, moved, timer=HostClock() if host else None)


def _graph(workload: RotatingWorkload, dtype: torch.dtype, *, backend: str, steps: int) -> Prepared:
    if workload.device.type != "cuda":
        raise Unavailable("needs a CUDA device")
    sample, model_output, out = workload.sets(dtype)[0]
    tables = workload.mixture(8)
    coefficients, seeds = workload.coefficients, workload.seeds

    def loop() -> None:
        source = sample
        for step in range(steps):
            gmm_step(
                source,
                model_output,
                coefficients,
                row=0,
                step=step,
                seeds=seeds,
                mixture=tables,
                out=out,
                backend=backend,
            )
            source = out

    aside = torch.cuda.Stream(workload.device)
    aside.wait_stream(torch.cuda.current_stream(workload.device))
    with torch.cuda.stream(aside):
        loop()
    torch.cuda.current_stream(workload.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()

    def call(_: int) -> Tensor:
        graph.replay()
        return out

    return Prepared(call, workload.step_bytes(dtype, tables), repeats=steps)


def _standard_normal(workload: RotatingWorkload, dtype: torch.dtype, *, backend: str) -> Prepared:
    sets = workload.sets(dtype)
    seeds, shape = workload.seeds, workload.shape[1:]

    def call(index: int) -> Tensor:
        out = sets[index % len(sets)][2]
        return standard_normal(seeds, shape, step=index, dtype=dtype, out=out, backend=backend)

    return Prepared(call, sets[0][2].nbytes)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return made


def _eager(workload: RotatingWorkload, dtype: torch.dtype, *, make: Callable[[], StepFunction]) -> Prepared:
    sets = workload.sets(dtype)
    tables = workload.mixture(8)
    # Tables of the sample's type, so that PyTorch computes in that type, as a program written for it would.
    tables = MixtureTables(tables.cdf, tables.offsets.to(dtype), tables.std.to(dtype))
    offsets, std = tables.offsets[0], tables.std[0, 0]
    step = make()
    alpha, prev_alpha, sigma = workload.alpha, workload.prev_alpha, workload.sigma

    def call(index: int) -> Tensor:
        sample, model_output, _ = sets[index % len(sets)]
        return step(sample, model_output, offsets, std, alpha=alpha, prev_alpha=prev_alpha, sigma=sigma)

    return Prepared(call, workload.step_bytes(dtype, tables))


def _diffusers(workload: RotatingWorkload, dtype: torch.dtype) -> Prepared:
    sets = workload.sets(dtype)
    step = diffusers_step(workload, dtype)
    return Prepared(lambda index: step(*sets[index % len(sets)][:2]), workload.step_bytes(dtype))


def _randn(workload: RotatingWorkload, dtype: torch.dtype) -> Prepared:
    sets, shape = workload.sets(dtype), workload.shape
    return Prepared(lambda index: torch.randn(shape, out=sets[index % len(sets)][2]), sets[0][2].nbytes)


def _copy(workload: RotatingWorkload, dtype: torch.dtype) -> Prepared:
    sets = workload.sets(dtype)

    def call(index: int) -> Tensor:
        sample, _, out = sets[index % len(sets)]
        return out.copy_(sample)

    return Prepared(call, 2 * sets[0][2].nbytes)
