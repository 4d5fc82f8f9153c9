"""The CUDA kernels' machine code, read out of the extension: nothing spilled, loads wide, nothing approximate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cuda_binary
import pytest
import sass_bound
import sass_report

HOT_LOOPS = tuple(f"{kind}{free}" for free in (" free", "") for kind in ("mixture", "shifted", "gaussian"))
TABLES = {"mixture": 2, "shifted": 1, "gaussian": 0}  # that a loop of the kind reads

# Those that draw noise, and those that divide: elsewhere no instruction is approximate.
NOISY = (
    "step_plain ",
    "step_typed ",
    "step_any ",
    "step_density ",
    "standard_normal_",
    "backward_sums ",
    "sum_std ",
    "add_noise_",
    "skip_loss_common ",
    "skip_loss_any ",
)
DIVIDING = (
    "step_density ",
    "density_",
    "log_prob ",
    "ratio_",
    "add_shares ",
    "skip_loss_backward_",
    "finish_loss ",
    "scale_residual ",
)

Reports = dict[str, dict[str, Any]]
Printed = tuple[str, str, str]


@pytest.fixture(
    scope="module",
    params=[
        number if number == "90" else pytest.param(number, marks=pytest.mark.slow)
        for number in sass_report.ARCHITECTURES
    ],
)
def printed(request: pytest.FixtureRequest) -> tuple[str, Printed]:
    """An architecture, and what cuobjdump prints of it."""
    try:
        return request.param, cuda_binary.read_sass(cuda_binary.find_extension(), request.param)
    except cuda_binary.MissingTool as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def reports(printed: tuple[str, Printed]) -> Reports:
    """The report of each kernel by architecture, of which this is one."""
    architecture, sass = printed
    return {f"sm_{architecture}": sass_report.report(*sass)}


@pytest.fixture(scope="module")
def bounds(printed: tuple[str, Printed]) -> dict[str, sass_bound.Bound]:
    """The least that each launch costs on that architecture."""
    return sass_bound.bounds(*printed)


def offenders(
    reports: Reports, kernels: Iterable[str], faults: Callable[[str, Any], Iterable[Any]]
) -> list[str]:
    """Return a line for each fault of each of the kernels, on the architecture."""
    return [
        f"{architecture} {name}: {fault}"
        for architecture, of in reports.items()
        for name in kernels
        for fault in faults(name, of[name])
    ]


def hot_loops(report: Any) -> dict[str, Any]:
    """Return the loops that a kernel is for: of a step's those without `mixed`, of noise the only one."""
    kinds = ("noise",) if report.name in sass_report.NOISE_KERNELS else HOT_LOOPS
    if report.name in sass_report.BACKWARD_KERNELS:
        kinds = ("clipped", "free")
    rest = ("",) if report.name in sass_report.NOISE_KERNELS else ("", " remainder")
    expected = [f"{kind}{which}" for kind in kinds for which in rest]
    assert [kind for kind in report.loops if kind != "mixed"] == expected
    return {kind: report.loops[kind] for kind in expected}


def test_nothing_is_spilled(reports: Reports) -> None:
    def faults(name: str, report: Any) -> Iterator[Any]:
        found = report.resources.stack, report.spill_stores, report.spill_loads
        if any(found):
            yield found

    assert offenders(reports, sass_report.KERNELS, faults) == []


def test_a_hot_loop_touches_memory_only_128_bits_at_a_time(reports: Reports) -> None:
    def faults(name: str, report: Any) -> Iterator[Any]:
        for kind, loop in hot_loops(report).items():
            if set(loop.memory) != {"STG.E.128"} | ({"LDG.E.128"} if kind != "noise" else set()):
                yield kind, loop.memory

    assert offenders(reports, sass_report.COMMON_KERNELS, faults) == []


def test_a_hot_loop_reads_every_input_once(reports: Reports) -> None:
    def faults(name: str, report: Any) -> Iterator[Any]:
        bits = sass_report.ELEMENT_BITS[name.split()[1]]
        for kind, loop in hot_loops(report).items():
            per_element = 2 * bits + TABLES[kind.split()[0]] * 32
            elements = 128 // bits if kind.endswith("remainder") else 16
            if (loop.loaded_bits, loop.elements) != (elements * per_element, elements):
                yield kind, loop.loaded_bits, loop.elements

    assert offenders(reports, sass_report.STEP_KERNELS, faults) == []


def test_gradients_read_what_they_need_and_write_each_once(reports: Reports) -> None:
    def faults(name: str, report: Any) -> Iterator[Any]:
        bits = sass_report.ELEMENT_BITS[name.split()[1]]
        for kind, loop in hot_loops(report).items():
            elements = 128 // bits if kind.endswith("remainder") else 16
            vectors = elements * bits // 128
            expected = {
                "LDG.E.128": vectors * (1 if kind.startswith("free") else 3),
                "STG.E.128": vectors * 2,
            }
            if (loop.elements, loop.memory) != (elements, expected):
                yield kind, loop.elements, loop.memory

    assert offenders(reports, sass_report.BACKWARD_KERNELS, faults) == []


def test_gradients_are_fused_where_the_reference_says_so(reports: Reports) -> None:
    """Two fmas for each element, one more to clip."""

    def faults(name: str, report: Any) -> Iterator[Any]:
        for kind, loop in hot_loops(report).items():
            each = 2 if kind.startswith("free") else 3
            fused = sum(count for opcode, count in loop.opcodes.items() if opcode.startswith("FFMA"))
            if fused != each * loop.elements:
                yield kind, fused, loop.elements

    assert offenders(reports, sass_report.BACKWARD_KERNELS, faults) == []


def test_a_hot_loop_draws_a_normal_for_each_element(reports: Reports) -> None:
    def faults(name: str, report: Any) -> Iterator[Any]:
        for kind, loop in hot_loops(report).items():
            # Ten rounds of two products for four elements; the compiler takes out what is the same for all elements,
            # and may make one product more of an address.
            blocks = loop.elements // 4
            within = 18 * blocks <= loop.wide_products <= 20 * blocks + 1
            if loop.square_roots != loop.elements / 2 or not within:
                yield kind, loop.square_roots, loop.wide_products, loop.elements

    kernels = (*sass_report.STEP_KERNELS, *sass_report.NOISE_KERNELS)
    assert offenders(reports, kernels, faults) == []


def test_training_draws_what_it_needs_and_reads_it_wide(reports: Reports) -> None:
    """Two normals for each root; e2 where the row wants it; of the 16-bit types, a loss has four elements at once."""

    def faults(name: str, report: Any) -> Iterator[Any]:
        streams = 1 if name.startswith("add_noise") else 2
        vector = 8 if name in ("add_noise_common bfloat16", "add_noise_common float16") else 4
        of_division = 1 if name.startswith("skip_loss_backward") else 0  # on a path of its own
        narrow = vector == 4 and not name.endswith("float32")
        width = 64 if narrow else 128
        if (
            report.opcodes["MUFU.RSQ"] != streams * vector / 2 + of_division
            or report.opcodes[f"LDG.E.{width}"] < 1
            or report.opcodes[f"STG.E.{width}"] < (0 if name.startswith("skip_loss_c") else 1)
        ):
            yield report.opcodes

    kernels = [name for name in sass_report.TRAINING_KERNELS if "_common " in name]
    assert offenders(reports, kernels, faults) == []


def test_the_only_approximate_instruction_is_the_named_one(reports: Reports) -> None:
    """A division begins with an estimate of its own, and handles special cases with more; the PTX asks for div.rn."""

    def faults(name: str, report: Any) -> Iterator[Any]:
        approximate = {opcode for opcode in report.opcodes if opcode.startswith("MUFU")}
        of_noise = {"MUFU.RSQ"} if name.startswith(NOISY) else set()
        if name.startswith(DIVIDING):
            yield from approximate - {"MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H"}
            yield from of_noise - approximate
            return
        yield from approximate ^ of_noise
        yield from (opcode for opcode in report.opcodes if "FTZ" in opcode.split("."))

    assert offenders(reports, sass_report.KERNELS, faults) == []


@pytest.mark.parametrize("architecture", ["80", pytest.param("120", marks=pytest.mark.slow)])
def test_ptx_spells_out_every_rounding(architecture: str) -> None:
    """Without a rounding of its own, the assembler may fuse a product into a sum."""
    try:
        ptx = cuda_binary.read_ptx(cuda_binary.find_extension(), architecture)
    except cuda_binary.MissingTool as missing:
        pytest.skip(str(missing))
    opcodes = set(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[\w:]+)*)\s", ptx, re.MULTILINE))
    floating = {
        opcode
        for opcode in opcodes
        if re.match(r"(add|sub|mul|fma|mad|div|rcp|sqrt|rsqrt|tanh|sin|cos|ex2|lg2)\b", opcode)
        and re.search(r"\.(b?f16|b?f16x2|f32|f64)\b", opcode)
    }
    assert "fma.rn.f32" in floating
    assert floating <= {
        *(
            f"{name}.rn.{dtype}"
            for name in ("add", "sub", "mul", "fma", "div", "rcp")
            for dtype in ("f32", "f64")
        ),
        "rsqrt.approx.ftz.f32",
    }
    inexact = {"approx", "ftz", "full", "relu", "sat"}
    assert {opcode for opcode in opcodes if inexact & set(opcode.split("."))} == {"rsqrt.approx.ftz.f32"}


def test_the_mixture_step_costs_no_more_than_required(reports: Reports) -> None:
    assert sass_report.over_required(reports) == []


def test_budget_is_kept(reports: Reports) -> None:
    release, here = sass_report.budget_release(), cuda_binary.nvcc_release()
    if here != release:
        pytest.skip(f"the budget is nvcc {release}'s, this is {here}")
    assert sass_report.over_budget(reports, sass_report.load_budget()) == []


def test_the_shortest_path_is_the_loop_where_there_is_no_branch(
    reports: Reports, bounds: dict[str, sass_bound.Bound]
) -> None:
    """Two ways to the same figure: by what a loop's turn must load and compute, and by the loop's name."""
    (of,) = reports.values()
    kinds = {"": "gaussian", ", no clipping": "gaussian free", ", mixture": "mixture"}
    for dtype in ("float32", "bfloat16"):
        for launch, kind in kinds.items():
            expected = of[f"step_plain {dtype}"].per_element[kind]
            assert bounds[f"step {dtype}{launch}"].instructions == pytest.approx(expected), kind
        for launch, kind in (("", "clipped"), (", no clipping", "free")):
            expected = of[f"backward_plain {dtype}"].per_element[kind]
            assert bounds[f"gradients {dtype}{launch}"].instructions == pytest.approx(expected), kind


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_launches_of_pipelines_cost_little_more_than_the_plain_one(
    printed: tuple[str, Printed], bounds: dict[str, sass_bound.Bound], dtype: str
) -> None:
    """At most 1.12 times its instructions and, of each tensor more, what moves, converts and adds it.

    On sm_100 1.2 times: two products at once make what both have in common less.
    """
    most = 1.2 if printed[0] == "100" else 1.12
    for launch, rest in {
        "x0": "",
        "one stored": "",
        "two stored, x0": "",
        "mixture, x0": ", mixture",
        "mixture, guided": ", mixture",
    }.items():
        own, plain = bounds[f"step {dtype}, {launch}"], bounds[f"step {dtype}{rest}"]
        size = sass_bound.BYTES[dtype]
        loads, stores = own.launch.loads - plain.launch.loads, own.launch.stores - plain.launch.stores
        more = (loads + stores) / 16 + own.launch.sums - plain.launch.sums
        more += 3 / 8 * (loads + stores) / size  # whether it is there, for eight elements
        if dtype == "bfloat16":
            more += loads / size + stores / size / 2  # an instruction widens one, or narrows two
        assert own.instructions <= most * plain.instructions + more, launch


def test_an_architecture_that_was_not_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_binary, "find_cuobjdump", lambda: Path("cuobjdump"))
    monkeypatch.setattr(cuda_binary, "run", lambda command: "")
    with pytest.raises(cuda_binary.MissingTool, match=r"_cuda\.so has no code for sm_75: build it with"):
        cuda_binary.read_sass(Path("_cuda.so"), "75")
    assert cuda_binary.read_sass(Path("a.cubin")) == ("", "", "")
