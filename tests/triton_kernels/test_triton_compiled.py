"""What Triton compiles, without a GPU: machine code for each architecture, and how often it compiles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sass_code
import sass_compile
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
import triton.language as tl  # noqa: E402
from elementary_kernel import elementary_kernel  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gmmkernel.backends.triton import launch  # noqa: E402
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel  # noqa: E402
from gmmkernel.backends.triton.step import step_kernel  # noqa: E402

ARCHITECTURES = (80, 90, 100)
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
THREADS = 32 * launch.WARPS
STEP = {
    "T": tl.float32,
    "TILE": launch.LARGE_TILE,
    "ROWS": False,
    "STEPS": False,
    "UNCOND": False,
    "HISTORY": 0,
    "PREDICTION": 0,
    "COMPONENTS": False,
    "MIXTURE": True,
    "MOST": 64,
    "WHOLE": True,
    "PTX": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mixture": {},
    "gaussian": {"MIXTURE": False},
    "everything": {
        "TILE": launch.SMALL_TILE,
        "ROWS": True,
        "STEPS": True,
        "UNCOND": True,
        "HISTORY": 4,
        "PREDICTION": 2,
        "COMPONENTS": True,
        "MOST": 1024,
        "WHOLE": False,
    },
}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    ptx: str
    code: list[sass_code.Instruction]
    resources: str

    def count(self, pattern: str) -> int:
        """Return how many instructions match a pattern."""
        return sum(re.match(pattern, instruction.opcode) is not None for instruction in self.code)


def _dump(cubin: bytes, folder: Path) -> tuple[list[sass_code.Instruction], str]:
    try:
        cuobjdump = sass_compile.find_cuobjdump(Path("/nowhere/nvcc"))
    except sass_compile.MissingTool as missing:
        pytest.skip(str(missing))
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    text, _ = sass_compile.run([cuobjdump, "-sass", file])
    resources, _ = sass_compile.run([cuobjdump, "--dump-resource-usage", file])
    (code,) = sass_code.parse_sass(text).values()
    return code, resources


@cache
def compile_kernel(
    kernel: Any, architecture: int, pointer: str, constants: tuple[Any, ...], folder: Path
) -> Compiled:
    """Compile as a launch would: sizes are 64-bit, nothing is known of addresses."""
    known = dict(constants)
    index_pointers = {"components", "rows", "steps", "seeds", "thresholds"}
    if kernel is draw_components_kernel:
        index_pointers.add("result")
    table_pointers = {"coefficients", "offsets", "std"}
    signature = {}
    for parameter in kernel.params:
        name = parameter.name
        if name in known:
            signature[name] = "constexpr"
        elif "int64" in str(parameter._param.annotation):
            signature[name] = "i64"
        elif name in index_pointers:
            signature[name] = "*i64"
        else:
            signature[name] = "*fp32" if name in table_pointers and pointer != "fp64" else f"*{pointer}"
    source = ASTSource(fn=kernel, signature=signature, constexprs=known)
    made = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.WARPS, "enable_fp_fusion": False},
    )
    code, resources = _dump(made.asm["cubin"], folder)
    return Compiled(made.asm["ptx"], code, resources)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for compiled code."""
    return tmp_path_factory.mktemp("triton")


def hot_path(code: list[sass_code.Instruction]) -> int:
    """Return the instructions of the shortest path by every wide load, root and store, in their order."""
    after = sass_code.successors(code, {})
    stops = [n for n, line in enumerate(code) if re.match(r"LDG\.E\.128|MUFU|STG", line.opcode)]
    end = next(n for n, line in enumerate(code) if line.root == "EXIT" and n > stops[-1])
    path = [0, *stops, end]
    return 1 + sum(sass_code.reach(after, [here])[there] for here, there in pairwise(path))


def compile_step(architecture: int, dtype: str, variant: str, folder: Path) -> Compiled:
    width = {"WIDTH": 4 if dtype == "float32" else 8}
    constants = tuple((STEP | width | VARIANTS[variant]).items())
    return compile_kernel(step_kernel, architecture, TYPES[dtype], constants, folder)


each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_type = pytest.mark.parametrize("dtype", TYPES)


@each_architecture
@each_type
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_spills_and_nothing_is_fused_or_approximated(
    architecture: int, dtype: str, variant: str, folder: Path
) -> None:
    made = compile_step(architecture, dtype, variant, folder)
    used = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", made.resources)
    assert used is not None
    assert (int(used[2]), int(used[3])) == (0, 0), made.resources
    assert made.count(r"LDL|STL") == 0
    # Every rounding is spelled out, and the one approximation is the root's, corrected by what follows it.
    assert set(re.findall(r"\S*\.approx\S*", made.ptx)) == {"rsqrt.approx.ftz.f32"}
    assert set(re.findall(r"\S*\.ftz\S*", made.ptx)) == {"rsqrt.approx.ftz.f32"}
    assert set(re.findall(r"\b(?:fma|mad)\.\S*f32", made.ptx)) == {"fma.rn.f32"}
    tile = VARIANTS[variant].get("TILE", launch.LARGE_TILE)
    assert made.count(r"MUFU") == made.count(r"MUFU\.RSQ") == tile // THREADS // 2
    # Without a rounding mode the assembler might fuse a product and a sum.
    assert not re.search(r"\b(?:mul|add|sub)\.f32", made.ptx)


@each_architecture
@each_type
@pytest.mark.parametrize("variant", ["mixture", "gaussian"])
def test_tensors_are_read_and_written_16_bytes_at_a_time(
    architecture: int, dtype: str, variant: str, folder: Path
) -> None:
    made = compile_step(architecture, dtype, variant, folder)
    vectors = launch.LARGE_TILE // THREADS // (4 if dtype == "float32" else 8)
    assert made.count(r"STG\.E\.128") == vectors == made.count(r"STG")
    tables = 2 * launch.LARGE_TILE // THREADS // 4 if variant == "mixture" else 0
    assert made.count(r"LDG\.E\.128") == 2 * vectors + tables


# Instructions per element, everything included, at 32 elements a thread.
BUDGET = {"float32": 48, "bfloat16": 52, "float16": 52}


@each_architecture
@each_type
def test_a_mixture_step_costs_no_more_than_budgeted(architecture: int, dtype: str, folder: Path) -> None:
    per_element = (
        hot_path(compile_step(architecture, dtype, "mixture", folder).code) * THREADS / launch.LARGE_TILE
    )
    assert 38 < per_element <= BUDGET[dtype]


@each_architecture
def test_noise_and_components_compile(architecture: int, folder: Path) -> None:
    constants = {
        "STREAM": 2,
        "TILE": launch.LARGE_TILE,
        "WIDTH": 4,
        "STEPS": True,
        "WHOLE": True,
        "PTX": True,
    }
    noise = compile_kernel(standard_normal_kernel, architecture, "fp32", tuple(constants.items()), folder)
    assert noise.count(r"STG\.E\.128") == launch.LARGE_TILE // THREADS // 4 == noise.count(r"STG")
    drawn = {"ROWS": True, "STEPS": False, "MOST": 1024}
    components = compile_kernel(draw_components_kernel, architecture, "i64", tuple(drawn.items()), folder)
    assert components.count(r"STG") == 1


@each_architecture
def test_logarithms_and_exponentials_are_exact_operations(architecture: int, folder: Path) -> None:
    made = compile_kernel(elementary_kernel, architecture, "fp32", (("N", 1024),), folder)
    assert made.count(r"MUFU|CALL") == 0
    assert not re.search(r"\.approx|\.ftz|\bcall", made.ptx)
    assert set(re.findall(r"\b(?:fma|mad)\.\S*f32", made.ptx)) == {"fma.rn.f32"}
    assert not re.search(r"\b(?:mul|add|sub)\.f32", made.ptx)


def test_float64_compiles_without_fusion(folder: Path) -> None:
    constants = STEP | {"T": tl.float64, "WIDTH": 4, "PREDICTION": 1}
    made = compile_kernel(step_kernel, 90, "fp64", tuple(constants.items()), folder)
    assert made.count(r"DFMA") == 0
    assert made.count(r"DMUL") > 0


@pytest.mark.parametrize("kernel", [step_kernel, standard_normal_kernel, draw_components_kernel])
def test_no_argument_is_looked_into(kernel: Any) -> None:
    for parameter in kernel.params:
        if not parameter.is_constexpr:
            number = "int64" in str(parameter._param.annotation)
            assert parameter.do_not_specialize if number else parameter.do_not_specialize_on_alignment, (
                parameter.name
            )


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
            out, out.stride(0), seeds, seeds, 0, step, elements, first,
            STREAM=0, TILE=launch.SMALL_TILE, WIDTH=4, STEPS=False, WHOLE=whole, PTX=True,
            num_warps=launch.WARPS, enable_fp_fusion=False, grid=(1,),
        )  # fmt: skip
        return len(kernel.device_caches[0][0])

    assert warm_up(1024, 0, 0) == 1
    for step in (1, 16, 2**31, 2**32 - 1):
        assert warm_up(1024, step, 0) == 1
    assert warm_up(2048, 3, 65535) == 1
    assert warm_up(1024, 3, 0, offset=1) == 1
    assert warm_up(1000, 3, 0, whole=False) == 2
