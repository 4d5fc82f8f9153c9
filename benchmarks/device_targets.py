"""What must be reached on an accelerator, as ratios of figures of the same run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from benchmarks.device_cases import LAUNCHES
from benchmarks.targets import LARGE_SHAPE, MEDIUM_SHAPE, ROLLOUT_SHAPE, SMALL_SHAPE, Target

BIG_SHAPE = (64, 4, 512, 512)
"""2^26 elements."""
HUGE_SHAPE = (256, 4, 512, 512)
"""2^28 elements."""
SHAPES = (BIG_SHAPE, SMALL_SHAPE, ROLLOUT_SHAPE, HUGE_SHAPE, LARGE_SHAPE, MEDIUM_SHAPE)
"""What matters most comes first: a run that is cut off has measured it."""
THREADS = 1
"""One pass: the host's threads have no part in it."""
PREFERRED = "cuda"
"""The backend that the bounds are for; of others the same values are for information."""


def device_targets(backends: list[str]) -> list[Target]:
    """Return the targets of each backend."""
    return [target for backend in backends for target in _targets(backend)]


def _targets(backend: str) -> Iterator[Target]:
    def bound(value: float) -> float | None:
        return value if backend == PREFERRED else None

    def step(variant: str, type_name: str) -> str:
        return f"gmm_step/{variant.replace('*', backend)}/{type_name}"

    for shape in (BIG_SHAPE, HUGE_SHAPE):
        for type_name, share in (("float32", bound(0.92)), ("bfloat16", bound(0.85)), ("float16", None)):
            label = f"{backend}: bandwidth of step K=8 / copy, {type_name}"
            copy = f"copy/out/{type_name}"
            yield Target(label, shape, step("K8-*/out", type_name), copy, at_least=share, rates=True)
        for variant, type_name in itertools.product(
            ("", *(f"-{name}" for name in LAUNCHES)), ("float32", "bfloat16")
        ):
            label = f"{backend}: bandwidth of step{variant} / copy, {type_name}"
            share = bound(0.92 if type_name == "float32" else 0.85)
            own, copy = step(f"K1-*{variant}/out", type_name), f"copy/out/{type_name}"
            yield Target(label, shape, own, copy, at_least=share, rates=True)
        label = f"{backend}: torch.randn / whole step K=8, bfloat16"
        whole = step("K8-*/out", "bfloat16")
        yield Target(label, shape, "randn/out/bfloat16", whole, at_least=bound(1))
    for shape in (SMALL_SHAPE, LARGE_SHAPE, BIG_SHAPE):
        own = step("K8-*/new", "float32")
        label = f"{backend}: diffusers / step K=8, float32"
        yield Target(label, shape, "diffusers/K1/new/float32", own, at_least=bound(10))
        yield Target(f"{backend}: eager PyTorch / step K=8, float32", shape, "eager/K8/new/float32", own)
        yield Target(f"{backend}: torch.compile / step K=8, float32", shape, "compile/K8/new/float32", own)
    label = f"{backend}: step K=1024 / K=8, float32"
    eight = step("K8-*/out", "float32")
    yield Target(label, BIG_SHAPE, step("K1024-*/out", "float32"), eight)
    yield from _rl_targets(backend, bound)
    for label, variant, most in (
        ("the host's time of a call, us", "K8-*-host/out", 10),
        ("a step as a graph, us", "K8-*-graph/out", 4),
        ("a step of 50 in a graph, us", "K8-*-graph50/out", None),
    ):
        most_here = None if most is None else bound(most)
        yield Target(f"{backend}: {label}", SMALL_SHAPE, step(variant, "float32"), None, at_most=most_here)


def _rl_targets(backend: str, bound: Callable[[float], float | None]) -> Iterator[Target]:
    def own(variant: str, type_name: str) -> str:
        function, where = variant.split("/")
        return f"rl/{function}-{backend}/{where}/{type_name}"

    for type_name in ("float32", "bfloat16"):
        label = f"{backend}: bandwidth of rollout / copy, {type_name} outputs"
        yield Target(
            label,
            BIG_SHAPE,
            own("rollout/out", type_name),
            "copy/out/float32",
            at_least=bound(1 / 1.15),
            rates=True,
        )
    for shape in (BIG_SHAPE, ROLLOUT_SHAPE):
        pairs = (
            ("rollout / step without log-density", "rollout/out", "step/out", 1.15),
            ("log-ratio / log-density, and gradient", "log_ratio/new", "log_prob/new", 1.3),
            ("shard of 2 / rollout", "rollout-shard2/new", "rollout/new", None),
            ("shard of 4 / rollout", "rollout-shard4/new", "rollout/new", None),
        )
        for label, top, bottom, most in pairs:
            most_here = None if most is None else bound(most)
            names = own(top, "bfloat16"), own(bottom, "bfloat16")
            yield Target(f"{backend}: {label}", shape, *names, at_most=most_here)
        for name in ("rollout", "log_prob"):
            ours = own(f"{name}/new", "float32")
            yield Target(f"{backend}: Flow-GRPO / {name}", shape, f"eager/rl-{name}/new/float32", ours)
            yield Target(f"{backend}: torch.compile / {name}", shape, f"compile/rl-{name}/new/float32", ours)
