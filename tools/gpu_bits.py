"""Compare the bits of CUDA with those of the CPU core on fresh random inputs: run by `tools/gpu_check.py`.

Large cases are made and compared on the device and computed on the CPU in between; small ones try every layout and
option. With --device cpu everything is compared with itself, which only shows that this program works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "gpu", "gradients", "training"))]

from gmmkernel import MixtureTables, Stream, draw_components, standard_normal  # noqa: E402

differentiable: Any = import_module("differentiable")
exact_steps: Any = import_module("exact_steps")
helpers: Any = import_module("helpers")
layouts: Any = import_module("layouts")
losses: Any = import_module("losses")

SIZES = (1, 3, 63, 1000, 4097)
GRADIENT_SIZES = (8, 1000, 1024, 4097, 16384, 2**20 + 8)  # the last has two levels of sums
ROWS = 3
MOST_ERRORS = 5
GOAL = 10**9
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Tally:
    """What was compared in one category."""

    cases: int = 0
    elements: int = 0
    mismatches: int = 0
    examples: list[str] = field(default_factory=list)


class TooManyErrors(Exception):
    """Calls keep failing: the device may not answer any more."""


class Comparison:
    """The tallies by category, written to a file as they grow."""

    def __init__(self, device: torch.device, output: Path | None) -> None:
        self.device = device
        self.tallies: dict[str, Tally] = {}
        self.errors: list[str] = []
        self._output = output
        self._written = 0.0

    @property
    def elements(self) -> int:
        """Elements compared so far."""
        return sum(tally.elements for tally in self.tallies.values())

    def attempt(self, label: str, case: Callable[[], None]) -> None:
        """Run a case; an error is noted and is no reason to stop, unless there are many."""
        try:
            case()
        except Exception as error:
            self.errors.append(f"{label}: {type(error).__name__}: {str(error)[:500]}")
            print(f"ERROR {self.errors[-1]}", flush=True)
            if len(self.errors) >= MOST_ERRORS:
                raise TooManyErrors from error
        if time.monotonic() - self._written > 1:
            self.write()

    def compare(self, category: str, label: str, actual: Tensor | None, expected: Tensor | None) -> None:
        """Count where the device's result differs from the CPU's."""
        tally = self.tallies.setdefault(category, Tally())
        if actual is None or expected is None:
            if actual is not expected:
                raise ValueError("one of the results is missing")
            return
        if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
            raise ValueError(
                f"{actual.dtype} {tuple(actual.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
            )
        expected = expected.to(self.device).contiguous()
        actual = actual.contiguous()
        view = INTEGERS[actual.element_size()]
        different = actual.view(view) != expected.view(view)
        if actual.is_floating_point():
            different &= ~(actual.isnan() & expected.isnan())
        count = int(different.sum())
        tally.cases += 1
        tally.elements += actual.numel()
        tally.mismatches += count
        if count and len(tally.examples) < 5:
            first = tuple(int(place) for place in different.nonzero()[0])
            values = f"{actual[first].item()!r} instead of {expected[first].item()!r}"
            tally.examples.append(f"{label}: {count} of {actual.numel()} differ, first at {first}: {values}")
            print(f"DIFFERS {category}: {tally.examples[-1]}", flush=True)

    def write(self) -> None:
        """Write everything so far."""
        self._written = time.monotonic()
        if self._output is None:
            return
        data = {
            "device": str(self.device),
            "elements": self.elements,
            "mismatches": sum(tally.mismatches for tally in self.tallies.values()),
            "errors": self.errors,
            "categories": {name: asdict(tally) for name, tally in sorted(self.tallies.items())},
        }
        partial = self._output.with_suffix(".part")
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._output)


def type_name(dtype: torch.dtype) -> str:
    """Return a type's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


def small_case(comparison: Comparison, number: int) -> None:
    """Compare one random step of random options in one layout, and noise of the same size."""
    names = list(layouts.LAYOUTS)
    size, layout = SIZES[number % len(SIZES)], names[number // len(SIZES) % len(names)]
    dtype = helpers.DTYPES[number // (len(SIZES) * len(names)) % len(helpers.DTYPES)]
    batch = (1, 3, 17)[number % 3]
    case = helpers.random_case(number, batch=batch, shape=(size,), dtype=dtype, special=number % 2 == 0)
    expected = case.run()
    own, out = layouts.LAYOUTS[layout](layouts.moved(case, comparison.device))
    actual = own.run(out=out)
    category, label = f"small, {layout}, {type_name(dtype)}", f"case {number}"
    comparison.compare(category, label, actual.prev_sample, expected.prev_sample)
    comparison.compare(category, f"{label}, prediction", actual.prediction, expected.prediction)
    comparison.compare("components of small steps", label, actual.components, expected.components)
    stream = list(Stream)[number % len(Stream)]
    options = {"step": number, "stream": stream, "dtype": dtype}
    comparison.compare(
        f"small noise, {type_name(dtype)}",
        label,
        standard_normal(own.seeds, (size,), **options),
        standard_normal(case.seeds, (size,), **options),
    )


def gradient_case(comparison: Comparison, number: int) -> None:
    """Compare the gradients of one random step and of one log-density, sent back by random ones."""
    size = GRADIENT_SIZES[number % len(GRADIENT_SIZES)]
    dtype = helpers.DTYPES[number // len(GRADIENT_SIZES) % len(helpers.DTYPES)]
    # Half of them are plain: one type, no history, no prediction.
    plain = {"output_dtype": dtype, "history": 0, "prediction": None} if number % 2 else {}
    batch = 2 if size > 2**16 else (1, 3, 17)[number % 3]
    case = helpers.random_case(number, batch=batch, shape=(size,), dtype=dtype, **plain)
    tables = ("coefficients",) if number % 4 == 1 else ()
    expected = differentiable.step_gradients(case, without=tables)
    actual = differentiable.step_gradients(layouts.moved(case, comparison.device), without=tables)
    for name, tensor in expected.items():
        comparison.compare(f"gradients, {type_name(dtype)}", f"case {number}, {name}", actual[name], tensor)
    density = differentiable.random_density(number, batch=batch, shape=(size,), dtype=dtype)
    moved = differentiable.Density(
        layouts.moved(density.case, comparison.device), density.prev_sample.to(comparison.device)
    )
    expected, actual = density.gradients(), moved.gradients()
    for name, tensor in expected.items():
        comparison.compare(f"densities, {type_name(dtype)}", f"case {number}, {name}", actual[name], tensor)


def exact_case(comparison: Comparison, number: int) -> None:
    """Compare one random step and one log-density with a mixture whose moments are matched exactly."""
    size = GRADIENT_SIZES[number % len(GRADIENT_SIZES)]
    dtype = helpers.DTYPES[number // len(GRADIENT_SIZES) % len(helpers.DTYPES)]
    # Half of them are plain.
    plain = {"output_dtype": dtype, "history": 0, "prediction": None} if number % 2 else {}
    large = size > 2**16
    options = {"batch": 2 if large else (1, 3, 17)[number % 3], "shape": (size,), "dtype": dtype}
    components = 3 if large else (1, 2, 8, 17, 64)[number % 5]
    case = exact_steps.exact_step(number, components, special=number % 7 == 6, **options, **plain)
    expected, actual = case.run(), layouts.moved(case, comparison.device).run()
    category, label = f"exact, {type_name(dtype)}", f"case {number}, K {components}, {size}"
    comparison.compare(category, label, actual.prev_sample, expected.prev_sample)
    comparison.compare(category, f"{label}, prediction", actual.prediction, expected.prediction)
    density = exact_steps.exact_density(number, components, **options)
    moved = differentiable.Density(
        layouts.moved(density.case, comparison.device), density.prev_sample.to(comparison.device)
    )
    comparison.compare("exact densities", label, moved.log_prob(), density.log_prob())


def training_case(comparison: Comparison, number: int) -> None:
    """Compare noise added to one random batch, its losses and their gradients."""
    size = GRADIENT_SIZES[number % len(GRADIENT_SIZES)]
    dtype = helpers.DTYPES[number // len(GRADIENT_SIZES) % len(helpers.DTYPES)]
    # Half of them are of one type.
    case = losses.random_case(
        number,
        batch=2 if size > 2**16 else (1, 3, 17)[number % 3],
        shape=(size,),
        dtype=dtype,
        sample_dtype=dtype if number % 2 else None,
        with_sample=number % 3 > 0,
    )
    own = {
        name: value.clone().to(comparison.device) if isinstance(value, Tensor) else value
        for name, value in vars(case).items()
    }
    expected, actual = case.results(), losses.TrainingCase(**own).results()
    for name, tensor in expected.items():
        comparison.compare(f"training, {type_name(dtype)}", f"case {number}, {name}", actual[name], tensor)


# ---- large cases ----


def random_values(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, generator: torch.Generator
) -> Tensor:
    """Return normals, or numbers of random bits: every exponent, subnormals, infinities and NaN among them."""
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    integer = INTEGERS[dtype.itemsize]
    limits = torch.iinfo(integer)
    bits = torch.randint(
        limits.min, limits.max, shape, generator=generator, dtype=integer, device=generator.device
    )
    return bits.view(dtype)


EXTRAS = ("plain", "in place", "guidance", "history", "prediction", "mixed types", "random bits")


def large_cases() -> Iterator[tuple[torch.dtype, str, str]]:
    """Yield type, mixture and extra of every large case, in a shuffled but fixed order."""
    combinations = list(itertools.product(helpers.DTYPES, ("none", "K8", "vub", "K1024"), EXTRAS))
    random.Random(0).shuffle(combinations)
    yield from combinations


def large_case(
    comparison: Comparison, number: int, dtype: torch.dtype, mixture: str, extra: str, elements: int
) -> None:
    """Compare one step of about `elements` elements."""
    rng = np.random.default_rng(number)
    generator = torch.Generator(comparison.device).manual_seed(number)
    samples = min(4096, elements // 64) if mixture == "K1024" else 61
    # Every third size has samples of no multiple of 16 bytes, which takes another kernel.
    size = elements // samples // 16 * 16 + (0, 0, int(rng.integers(1, 16)))[number % 3]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    others = [other for own, other in helpers.DTYPE_PAIRS if own == dtype and other != dtype]
    other_dtype = others[number % len(others)] if extra == "mixed types" else dtype
    kind = "random bits" if extra == "random bits" else "normal"

    def values(of: torch.dtype) -> Tensor:
        return random_values((samples, size), of, kind, generator)

    tables = None
    if mixture != "none":
        components = 1024 if mixture == "K1024" else 8
        removed = size if mixture != "vub" else int(rng.integers(1, size))
        offsets = torch.randn(
            1, components, size, generator=generator, dtype=arithmetic, device=comparison.device
        )
        std = torch.rand(1, 1, removed, generator=generator, dtype=arithmetic, device=comparison.device)
        tables = MixtureTables(helpers.random_cdf(rng, ROWS, components), offsets.cpu(), std.cpu())
    coefficients = helpers.random_coefficients(rng, ROWS, arithmetic)
    case = helpers.StepCase(
        sample=values(dtype).cpu(),
        model_output=values(other_dtype).cpu(),
        coefficients=coefficients,
        row=torch.from_numpy(rng.integers(ROWS, size=samples)),
        step=torch.from_numpy(rng.integers(2**32, size=samples)),
        seeds=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size=samples)),
        mixture=tables,
        model_output_uncond=values(other_dtype).cpu() if extra == "guidance" else None,
        history=[values(other_dtype).cpu() for _ in range(2)] if extra == "history" else [],
        prediction=("x0", "epsilon", "model_output")[number % 3] if extra == "prediction" else None,
    )
    own = layouts.moved(case, comparison.device)
    actual = own.run(out=own.sample if extra == "in place" else None)
    expected = case.run()
    category, label = f"large, {type_name(dtype)}, mixture {mixture}", f"{extra}, {samples} x {size}"
    comparison.compare(category, label, actual.prev_sample, expected.prev_sample)
    comparison.compare(category, f"{label}, prediction", actual.prediction, expected.prediction)
    comparison.compare("components of large steps", label, actual.components, expected.components)


def noise_case(comparison: Comparison, number: int, elements: int) -> None:
    """Compare noise of one stream and type."""
    stream, dtype = list(itertools.product(Stream, helpers.DTYPES))[number]
    rng = np.random.default_rng(number)
    samples = 31
    size = elements // samples + number % 3
    seeds = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size=samples))
    step = torch.from_numpy(rng.integers(2**32, size=samples))
    options = {"stream": stream, "dtype": dtype}
    actual = standard_normal(seeds.to(comparison.device), (size,), step=step.to(comparison.device), **options)
    expected = standard_normal(seeds, (size,), step=step, **options)
    comparison.compare(f"noise, {type_name(dtype)}", stream.name, actual, expected)


def component_case(comparison: Comparison, components: int, elements: int) -> None:
    """Compare component draws for many seeds."""
    rng = np.random.default_rng(components)
    seeds = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size=elements))
    row = torch.from_numpy(rng.integers(ROWS, size=elements))
    cdf = helpers.random_cdf(rng, ROWS, components)
    expected = draw_components(seeds, cdf, row=row, step=7)
    device = comparison.device
    actual = draw_components(seeds.to(device), cdf.to(device), row=row.to(device), step=7)
    comparison.compare(f"components, K={components}", "draws", actual, expected)


def compare_all(comparison: Comparison, options: argparse.Namespace) -> None:
    """Go through noise, small and large cases, each kind within its share of the time."""
    start, elements = time.monotonic(), 2**options.log2_elements
    alone = options.only is not None

    def within(share: float) -> bool:
        return bool(time.monotonic() - start < share * options.seconds)

    def tell(what: str) -> None:
        print(f"{what}: {comparison.elements:,} elements after {time.monotonic() - start:.1f} s", flush=True)

    if options.only in (None, "noise"):
        for components in (1, 2, 8, 1024):
            draws = partial(component_case, comparison, components, min(2**17, elements))
            comparison.attempt(f"components {components}", draws)
        for number in range(len(Stream) * len(helpers.DTYPES)):
            if not within(1 if alone else 0.25):
                tell(f"the time for noise was over after {number} cases")
                break
            comparison.attempt(f"noise {number}", partial(noise_case, comparison, number, elements))
        tell("noise")
    if options.only in (None, "small"):
        number = 0
        while within(1 if alone else 0.45) and number != options.most_small:
            comparison.attempt(f"small case {number}", partial(small_case, comparison, number))
            number += 1
        tell(f"{number} small cases")
    for only, share, case_of in (
        ("gradients", 0.55, gradient_case),
        ("exact", 0.65, exact_case),
        ("training", 0.7, training_case),
    ):
        if options.only not in (None, only):
            continue
        number = 0
        while within(1 if alone else share) and number != options.most_small:
            comparison.attempt(f"{only} {number}", partial(case_of, comparison, number))
            number += 1
        tell(f"{only}: {number} cases")
    if options.only in (None, "large"):
        for number, (dtype, mixture, extra) in enumerate(large_cases()):
            if not within(1):
                tell(f"the time was over after {number} large cases")
                break
            case = partial(large_case, comparison, number, dtype, mixture, extra, elements)
            comparison.attempt(f"large case {number}, {dtype}, {mixture}, {extra}", case)
        tell("large cases")


def main() -> int:
    """Compare, print a table, and return 1 if any bit differs or any call failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path, help="JSON file, written as the comparison goes on")
    parser.add_argument("--only", choices=["noise", "small", "gradients", "exact", "training", "large"])
    parser.add_argument(
        "--most-small",
        type=int,
        default=-1,
        help="no more cases of each kind than this, but for noise and large ones",
    )
    parser.add_argument("--log2-elements", type=int, default=25, help="size of a large case")
    options = parser.parse_args()
    torch.set_num_threads(max(1, min(os.cpu_count() or 1, len(os.sched_getaffinity(0)))))
    comparison = Comparison(torch.device(options.device), options.output)
    try:
        compare_all(comparison, options)
    except TooManyErrors:
        print("too many errors: stopped", flush=True)
    comparison.write()
    for name, tally in sorted(comparison.tallies.items()):
        print(f"{name:40} {tally.cases:6} cases {tally.elements:14,} elements {tally.mismatches:8} differ")
    mismatches = sum(tally.mismatches for tally in comparison.tallies.values())
    print(f"{comparison.elements:,} elements compared, {mismatches} differ, {len(comparison.errors)} errors")
    if options.only is None and comparison.elements < GOAL:
        print(f"fewer than {GOAL:,}: give it more time")
    return 1 if mismatches or comparison.errors or not comparison.elements else 0


if __name__ == "__main__":
    sys.exit(main())
