"""What Triton compiles, without a GPU: machine code for each architecture, and how often it compiles."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import check_all
from cuda_binary import MissingTool
from sass_report import ARCHITECTURES, KernelReport, load_budget, over_budget, over_required, to_budget

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
import triton_report  # noqa: E402
from ptx.elementary_kernel import elementary_kernel  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton_report import ELEMENTS_PER_THREAD, KERNELS, REQUIRED, memory  # noqa: E402

from gmmkernel.backends.triton import launch  # noqa: E402
from gmmkernel.backends.triton.noise import standard_normal_kernel  # noqa: E402
from gmmkernel.backends.triton.program import WARPS  # noqa: E402

BUDGET_RELEASE = triton_report.budget_release(triton_report.BUDGET, "triton")

LARGE = [
    name for name in KERNELS if name.split()[0] in ("mixture", "gaussian", "whole", "noise", "add-noise")
]

# What draws noise takes roots; the others fuse only what the contract asks for, and nothing in float64.
DRAWING = {
    *("mixture", "gaussian", "whole", "everything", "scored", "noise", "coefficient-sums", "add-std"),
    *("add-noise", "skip-loss", "skip-loss-backward"),
}
TWICE = {"skip-loss"}  # e1 and e2
# What the assembler makes of a division starts from an estimate.
DIVIDING = {
    *(
        "scored",
        "density-sums",
        "log-prob",
        "ratio-sums",
        "density-backward",
        "ratio-backward",
        "add-density-offsets",
        "add-density-std",
        "add-weights",
        "finish-loss",
        "scale-residual",
        "skip-loss-backward",
    ),
}
FUSING = {
    "backward",
    "backward-all",
    "add-offsets",
    *(DIVIDING - {"add-weights", "finish-loss", "scale-residual"}),
}
WIDE = {"backward": (3, 2), "add-offsets": (1, 1), "add-std": (1, 1)}  # tensors read and written
KERNEL_FUNCTIONS = {kernel.function.__name__: kernel.function for kernel in KERNELS.values()}

# Those that large batches launch, for one architecture; all of them for all in the slow tier.
each_architecture = pytest.mark.parametrize(
    ("architecture", "names"),
    [
        pytest.param("90", [*LARGE, *(f"{kind} float32" for kind in WIDE)], id="large-sm_90"),
        *(
            pytest.param(number, list(KERNELS), id=f"sm_{number}", marks=pytest.mark.slow)
            for number in ARCHITECTURES
        ),
    ],
)


@cache
def made(architecture: str, name: str, folder: Path) -> tuple[KernelReport, str]:
    """Return the report of a kernel, and its PTX."""
    try:
        return triton_report.report(name, architecture, folder)
    except MissingTool as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for compiled code."""
    return tmp_path_factory.mktemp("triton")


def counted(report: KernelReport, pattern: str) -> int:
    """Return how many instructions match a pattern."""
    return sum(count for opcode, count in report.opcodes.items() if re.match(pattern, opcode))


@each_architecture
def test_nothing_spills_and_nothing_is_fused_or_approximated(
    architecture: str, names: list[str], folder: Path
) -> None:
    """Other releases than the budget's may spill a few numbers outside the steps: 3.7 does in sums of float64."""

    def check(name: str) -> None:
        report, ptx = made(architecture, name, folder)
        of = report.resources
        if name in LARGE or triton.__version__ == BUDGET_RELEASE:
            assert (of.stack, report.spill_stores, report.spill_loads) == (0, 0, 0)
        # Every rounding is spelled out, and the one approximation is the root's, corrected by what follows it.
        kind = name.split()[0]
        draws = kind in DRAWING
        named = {"rsqrt.approx.ftz.f32"} if draws else set()
        assert set(re.findall(r"\S*\.approx\S*", ptx)) == set(re.findall(r"\S*\.ftz\S*", ptx)) == named
        assert set(re.findall(r"\b(?:fma|mad)\.\S*f(?:32|64)", ptx)) == (
            {"fma.rn.f32"} if draws or (kind in FUSING and not name.endswith("float64")) else set()
        )
        elements = ELEMENTS_PER_THREAD if name in LARGE else launch.SMALL_TILE // (32 * WARPS)
        divisions = (
            {"div.rn.f64" if name.endswith("float64") else "div.rn.f32"} if kind in DIVIDING else set()
        )
        assert set(re.findall(r"\b(?:div|rcp|sqrt|ex2|lg2)\.\S*f(?:32|64)", ptx)) == divisions
        if not divisions:
            assert (
                counted(report, r"MUFU")
                == counted(report, r"MUFU\.RSQ")
                == (elements // (1 if kind in TWICE else 2) if draws else 0)
            )
            assert counted(report, r"DFMA") == 0
        # Without a rounding mode the assembler might fuse a product and a sum.
        assert not re.search(r"\b(?:mul|add|sub)\.f(?:32|64)", ptx)
        multiplies = kind in DRAWING | FUSING | DIVIDING | {"project"}
        assert (counted(report, r"DMUL") > 0) == (name.endswith("float64") and multiplies)

    check_all(check, [{"name": name} for name in names])


@each_architecture
def test_tensors_are_read_and_written_16_bytes_at_a_time(
    architecture: str, names: list[str], folder: Path
) -> None:
    def check(name: str) -> None:
        report, _ = made(architecture, name, folder)
        kind, dtype = name.split()
        vectors = ELEMENTS_PER_THREAD // (4 if dtype == "float32" else 8)
        accesses = memory(report)
        written = {op: count for op, count in accesses.items() if op.startswith("STG")}
        written.pop("STG.E.64", None)  # the component
        assert written == {"STG.E.128": vectors * (2 if kind == "whole" else 1)}
        # The offset of the component drawn, and its std.
        tables = 2 * (kind in ("mixture", "whole")) * ELEMENTS_PER_THREAD // 4
        tensors = {"noise": 0, "add-noise": 1, "whole": 7}.get(kind, 2)
        assert accesses.get("LDG.E.128", 0) == tensors * vectors + tables

    check_all(check, [{"name": name} for name in names if name in LARGE])


@each_architecture
def test_gradients_are_read_and_written_16_bytes_at_a_time(
    architecture: str, names: list[str], folder: Path
) -> None:
    def check(name: str) -> None:
        report, _ = made(architecture, name, folder)
        kind, dtype = name.split()
        read, written = WIDE[kind]
        elements = (launch.LARGE_TILE if kind == "backward" else launch.SMALL_TILE) // (32 * WARPS)
        bytes_each = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}[dtype]
        stored = bytes_each if kind == "backward" else max(bytes_each, 4)  # a table, in the arithmetic's type
        accesses = memory(report)
        assert {op: count for op, count in accesses.items() if op.startswith("STG")} == {
            "STG.E.128": written * elements * stored // 16
        }
        # Of the loop over samples, some versions of Triton write several turns.
        assert accesses["LDG.E.128"] % (read * elements * bytes_each // 16) == 0

    check_all(check, [{"name": name} for name in names if name.split()[0] in WIDE])


@each_architecture
def test_what_is_required_and_the_budget_are_kept(architecture: str, names: list[str], folder: Path) -> None:
    kernels = {name: made(architecture, name, folder)[0] for name in names}
    reports = {f"sm_{architecture}": kernels}
    large = [name for name in names if name in LARGE]
    assert [name for name in large if kernels[name].per_element[name.split()[0]] <= 30] == []
    assert over_required(reports, REQUIRED) == []
    if triton.__version__ != BUDGET_RELEASE:
        pytest.skip(f"the budget is Triton {BUDGET_RELEASE}'s, this is {triton.__version__}")
    assert over_budget(reports, load_budget(triton_report.BUDGET)) == []


def test_the_report_says_what_is_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = made("90", "components", folder)
    monkeypatch.setattr(triton_report, "KERNELS", {"components": KERNELS["components"]})
    budget = folder / "budget.json"
    options = ["--architectures", "90", "--budget", str(budget)]
    assert triton_report.main([*options, "--write-budget", "--check"]) == 0
    assert load_budget(budget) == to_budget({"sm_90": {"components": report}})
    registers = report.resources.registers
    budget.write_text(budget.read_text().replace(f'"registers": {registers}', '"registers": 7'))
    assert triton_report.main([*options, "--check"]) == 1
    said = capsys.readouterr().out
    assert f"sm_90 components: registers is {registers}, budget 7" in said
    assert re.search(rf"components +{registers} +0 +0/0 ", said)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logarithms_and_exponentials_are_exact_operations(architecture: str) -> None:
    source = ASTSource(
        elementary_kernel,
        dict.fromkeys(("x", "logarithm", "exponential"), "*fp32") | {"N": "constexpr"},
        {"N": 1024},
    )
    target = GPUTarget("cuda", int(architecture), 32)
    ptx = triton.compile(source, target=target, options={"num_warps": WARPS, "enable_fp_fusion": False}).asm[
        "ptx"
    ]
    assert not re.search(r"\.approx|\.ftz|\bcall", ptx)
    assert set(re.findall(r"\b(?:fma|mad)\.\S*f32", ptx)) == {"fma.rn.f32"}
    assert not re.search(r"\b(?:mul|add|sub)\.f32", ptx)


def test_no_argument_is_looked_into() -> None:
    looked_into = [
        f"{name}: {parameter.name}"
        for name, kernel in KERNEL_FUNCTIONS.items()
        for parameter in kernel.params
        if not parameter.is_constexpr
        and not (
            parameter.do_not_specialize
            if "int64" in str(parameter._param.annotation)
            else parameter.do_not_specialize_on_alignment
        )
    ]
    assert looked_into == []


class Driver:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_seeds_steps_sizes_and_addresses_compile_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    kernel = standard_normal_kernel
    kernel.device_caches.clear()
    memory, seeds = torch.empty(20000), torch.arange(3)

    def warm_up(elements: int, step: int, first: int, offset: int = 0, whole: bool = True) -> int:
        out = memory[offset : offset + 3 * elements].view(3, elements)
        kernel.warmup(
            out, seeds, None, None, out.stride(0), 0, step, 0, 0, elements, first,
            STREAM=0, SHARD=False, TILE=launch.SMALL_TILE, WHOLE=whole, PTX=True,
            num_warps=WARPS, enable_fp_fusion=False, grid=(1,),
        )  # fmt: skip
        return len(kernel.device_caches[0][0])

    assert warm_up(1024, 0, 0) == 1
    for step in (1, 16, 2**31, 2**32 - 1):
        assert warm_up(1024, step, 0) == 1
    assert warm_up(2048, 3, 65535) == 1
    assert warm_up(1024, 3, 0, offset=1) == 1
    assert warm_up(1000, 3, 0, whole=False) == 2
