"""The CUDA kernels' machine code, without a GPU: tools/sass_report.py on them, and on a few lines of SASS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sass_code
import sass_compile
import sass_report

pytestmark = pytest.mark.xdist_group("sass")

ARCHITECTURES = [f"sm_{number}" for number in sass_report.ARCHITECTURES]
HOT_LOOPS = tuple(
    f"{kind}{rest}" for kind in ("mixture", "shifted", "gaussian") for rest in ("", " remainder")
)
TABLES = {"mixture": 2, "shifted": 1, "gaussian": 0}  # that a loop of the kind reads

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_kernel = pytest.mark.parametrize("kernel", sass_report.KERNELS)
each_common = pytest.mark.parametrize("kernel", sass_report.COMMON_KERNELS)
each_noisy = pytest.mark.parametrize("kernel", [*sass_report.STEP_KERNELS, *sass_report.NOISE_KERNELS])
each_step = pytest.mark.parametrize("kernel", sass_report.STEP_KERNELS)
each_training = pytest.mark.parametrize(
    "kernel", [name for name in sass_report.TRAINING_KERNELS if "_common " in name]
)
each_backward = pytest.mark.parametrize("kernel", sass_report.BACKWARD_KERNELS)

# Those that draw noise, and those that divide: elsewhere no instruction is approximate.
NOISY = (
    "step_",
    "standard_normal_",
    "project_noise ",
    "backward_sums ",
    "sum_std ",
    "add_noise_",
    "skip_loss_common ",
    "skip_loss_any ",
)
DIVIDING = ("density_", "log_prob ", "add_shares ", "skip_loss_backward_", "finish_loss ", "scale_pull ")


class Compiled:
    """The kernels, compiled for all architectures."""

    def __init__(self, folder: Path) -> None:
        nvcc = sass_compile.find_nvcc()
        cuobjdump = sass_compile.find_cuobjdump(nvcc)
        self.release = sass_compile.nvcc_release(nvcc)
        self.reports = {
            f"sm_{number}": sass_report.report(*sass_compile.compile_sass(nvcc, cuobjdump, number, folder))
            for number in sass_report.ARCHITECTURES
        }
        self.ptx = sass_compile.compile_ptx(nvcc, sass_report.ARCHITECTURES[0], folder)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    try:
        return Compiled(tmp_path_factory.mktemp("sass"))
    except sass_compile.MissingTool as missing:
        pytest.skip(str(missing))


def hot_loops(report: Any) -> dict[str, Any]:
    """Return the loops that a kernel is for: of a step's those without `mixed`, of noise the only one."""
    expected = ("noise",) if report.name in sass_report.NOISE_KERNELS else HOT_LOOPS
    if report.name in sass_report.BACKWARD_KERNELS:
        expected = ("clipped", "clipped remainder", "free", "free remainder")
    assert [kind for kind in report.loops if kind != "mixed"] == list(expected)
    return {kind: report.loops[kind] for kind in expected}


# ------------------------------------------------------------------------------------------ the kernels' code


@each_kernel
@each_architecture
def test_nothing_is_spilled(compiled: Compiled, architecture: str, kernel: str) -> None:
    report = compiled.reports[architecture][kernel]
    of = report.resources
    assert (of.stack, of.spill_stores, of.spill_loads, report.local) == (0, 0, 0, 0)


@each_common
@each_architecture
def test_a_hot_loop_touches_memory_only_128_bits_at_a_time(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    for kind, loop in hot_loops(compiled.reports[architecture][kernel]).items():
        allowed = {"STG.E.128"} if kind == "noise" else {"LDG.E.128", "STG.E.128"}
        assert set(loop.memory) == allowed, kind


@each_step
@each_architecture
def test_a_hot_loop_reads_every_input_once(compiled: Compiled, architecture: str, kernel: str) -> None:
    tensors = 3 if kernel.endswith("guided") else 2
    bits = sass_report.ELEMENT_BITS[kernel.split()[1]]
    loops = compiled.reports[architecture][kernel].loops
    for kind in HOT_LOOPS:
        per_element = tensors * bits + TABLES[kind.split()[0]] * 32
        assert loops[kind].loaded_bits == loops[kind].elements * per_element, kind
        vector = 128 // bits
        unrolled = vector if kind.endswith("remainder") else 8 if kernel.endswith("guided") else 16
        assert loops[kind].elements == unrolled, kind


@each_backward
@each_architecture
def test_gradients_read_what_they_need_and_write_each_once(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    inputs = 3 if kernel.endswith("guided") else 2
    bits = sass_report.ELEMENT_BITS[kernel.split()[1]]
    for kind, loop in hot_loops(compiled.reports[architecture][kernel]).items():
        assert loop.elements == (128 // bits if kind.endswith("remainder") else 16), kind
        of_vector = loop.elements * bits // 128
        loads = of_vector * (1 if kind.startswith("free") else 1 + inputs)
        assert loop.memory == {"LDG.E.128": loads, "STG.E.128": of_vector * inputs}, kind


@each_backward
@each_architecture
def test_gradients_are_fused_where_the_reference_says_so(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    """Two fmas for each element, one more to clip, one more of the guidance pair there."""
    guided = kernel.endswith("guided")
    for kind, loop in hot_loops(compiled.reports[architecture][kernel]).items():
        each = 2 if kind.startswith("free") else 4 if guided else 3
        fused = sum(count for opcode, count in loop.opcodes.items() if opcode.startswith("FFMA"))
        assert fused == each * loop.elements, kind


@each_noisy
@each_architecture
def test_a_hot_loop_draws_a_normal_for_each_element(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    for kind, loop in hot_loops(compiled.reports[architecture][kernel]).items():
        assert loop.square_roots == loop.elements / 2, kind
        # Ten rounds of two products for four elements; the compiler takes out what is the same for all elements,
        # and may make one product more of an address.
        blocks = loop.elements // 4
        assert 18 * blocks <= loop.wide_products <= 20 * blocks + 1, kind


@each_training
@each_architecture
def test_training_draws_what_it_needs_and_reads_it_wide(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    """Two normals for each root; e2 where the row wants it; of the 16-bit types, a loss has four elements at once."""
    report = compiled.reports[architecture][kernel]
    streams = 1 if kernel.startswith("add_noise") else 2
    vector = 8 if kernel == "add_noise_common bfloat16" or kernel == "add_noise_common float16" else 4
    of_division = 1 if kernel.startswith("skip_loss_backward") else 0  # on a path of its own
    assert report.opcodes["MUFU.RSQ"] == streams * vector / 2 + of_division
    narrow = vector == 4 and not kernel.endswith("float32")
    wide = "LDG.E.64" if narrow else "LDG.E.128"
    assert report.opcodes[wide] >= 1
    assert report.opcodes["STG.E.64" if narrow else "STG.E.128"] >= (
        0 if kernel.startswith("skip_loss_c") else 1
    )


@pytest.mark.parametrize("kernel", sass_report.DIRECTED_KERNELS)
@each_architecture
def test_offsets_that_are_added_last_are_read_wide(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    """Four samples' inputs, 16 numbers of the offsets that they share, and nothing through a generic address."""
    opcodes = compiled.reports[architecture][kernel].opcodes
    inputs = 3 if kernel.endswith("guided") else 2
    assert opcodes["LDG.E.128"] >= 4 * inputs + 4
    assert opcodes["STG.E.128"] >= 4
    assert not {"LD.E", "LD.E.64", "LD.E.128"} & opcodes.keys()


@each_kernel
@each_architecture
def test_the_only_approximate_instruction_is_the_named_one(
    compiled: Compiled, architecture: str, kernel: str
) -> None:
    """A division begins with an estimate of its own, and handles special cases with more; the PTX asks for div.rn."""
    opcodes = compiled.reports[architecture][kernel].opcodes
    approximate = {opcode for opcode in opcodes if opcode.startswith("MUFU")}
    if kernel.startswith(DIVIDING):
        assert approximate <= {"MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H"}
        return
    assert approximate == ({"MUFU.RSQ"} if kernel.startswith(NOISY) else set())
    assert [opcode for opcode in opcodes if "FTZ" in opcode.split(".")] == []


def test_ptx_spells_out_every_rounding(compiled: Compiled) -> None:
    """Without a rounding of its own, the assembler may fuse a product into a sum."""
    opcodes = set(
        re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[\w:]+)*)\s", compiled.ptx, re.MULTILINE)
    )
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
    named = {
        opcode for opcode in opcodes if {"approx", "ftz", "full", "relu", "sat"} & set(opcode.split("."))
    }
    assert named == {"rsqrt.approx.ftz.f32"}


def test_the_mixture_step_costs_no_more_than_required(compiled: Compiled) -> None:
    assert sass_report.over_required(compiled.reports) == []


def test_budget_is_kept(compiled: Compiled) -> None:
    release = sass_report.budget_release()
    if compiled.release != release:
        pytest.skip(f"the budget is nvcc {release}'s, this is {compiled.release}")
    assert sass_report.over_budget(compiled.reports, sass_report.load_budget()) == []


def test_a_lack_of_registers_is_noticed(compiled: Compiled, tmp_path: Path) -> None:
    """The same kernels, told to leave room for eight blocks: they spill, and the report says so."""
    bounds = r"__launch_bounds__\(block_threads[^)]*\)"
    squeezed = [tmp_path / source.name for source in sass_compile.SOURCES]
    for source, copy in zip(sass_compile.SOURCES, squeezed, strict=True):
        text, places = re.subn(bounds, "__launch_bounds__(block_threads, 8)", source.read_text("utf-8"))
        assert places > 0
        copy.write_text(text, "utf-8")
    nvcc = sass_compile.find_nvcc()
    reports = sass_report.report(
        *sass_compile.compile_sass(nvcc, sass_compile.find_cuobjdump(nvcc), "90", tmp_path, squeezed)
    )
    for name in sass_report.STEP_KERNELS:
        of = reports[name].resources
        assert of.registers == 32
        assert min(of.stack, of.spill_stores, of.spill_loads, reports[name].local) > 0
        assert any(opcode.startswith("LDL") for opcode in reports[name].loops["mixture"].memory)
    lines = sass_report.over_budget({"sm_90": reports}, sass_report.load_budget())
    for name in sass_report.STEP_KERNELS:
        assert any(line.startswith(f"sm_90 {name}: spill_loads is ") for line in lines)


# -------------------------------------------------------------------------------------------- the budget file


def test_budget_file_is_complete() -> None:
    budgets = sass_report.load_budget()
    assert list(budgets) == ARCHITECTURES
    for kernels in budgets.values():
        assert list(kernels) == list(sass_report.KERNELS)
        for name, figures in kernels.items():
            assert ("mixture_per_element" in figures) == (name in sass_report.STEP_KERNELS)
            assert ("free_per_element" in figures) == (name in sass_report.BACKWARD_KERNELS)


# ---------------------------------------------------------------------------- the parser, on a few lines of SASS

MANGLED = "_ZN9gmmkernel43_GLOBAL__N__618bbb7b_10_kernels_cu_f1f54336"
STEP = f"{MANGLED}18step_common_kernelILi0ELb0EEEv18gmm_step_argumentsNS_6TilingE"

RESOURCES = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{STEP}' for 'sm_90'
ptxas info    : Function properties for {STEP}
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 240 bytes smem
ptxas info    : Compiling entry function '{MANGLED}22draw_components_kernelE23gmm_component_arguments' for 'sm_90'
ptxas info    : Function properties for {MANGLED}22draw_components_kernelE23gmm_component_arguments
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""


def addresses(lines: list[str]) -> dict[str, int]:
    """Return the labels' addresses: `name:` before an instruction labels it."""
    return {line.split(":")[0]: 16 * i for i, line in enumerate(lines) if ":" in line}


def sass(function: str, lines: list[str]) -> str:
    """Write instructions as cuobjdump does; `<name>` stands for a label's address."""
    labels = addresses(lines)
    text = f'\n\tcode for sm_90\n\n\t\tFunction : {function}\n\t.headerflags\t@"EF_CUDA_SM90"\n'
    for i, line in enumerate(lines):
        instruction = re.sub(r"<(\w+)>", lambda found: f"{labels[found.group(1)]:#x}", line.split(":")[-1])
        text += (
            f"        /*{16 * i:04x}*/                   {instruction} ;        /* 0x00000a00ff017b82 */\n"
        )
        text += " " * 90 + "/* 0x000fe20000000800 */\n"
    return text + "\t\t..........\n"


def vector_loop(label: str, vectors: int, loads: int) -> list[str]:
    """Return a loop of `vectors` times (loads + 4) instructions and a branch; 4 elements of float32 each."""
    body = [
        *["LDG.E.128 R4, desc[UR4][R2.64]"] * loads,
        *["MUFU.RSQ R9, R8"] * 2,
        "IMAD.WIDE.U32 R4, R4, -0x326172a9, RZ",
        "STG.E.128 desc[UR4][R2.64], R4",
    ] * vectors
    return [f"{label}:{body[0]}", *body[1:], f"@!P0 BRA <{label}>"]


# A step kernel in little: 3 instructions, warp 0's part, the barrier, the choice among the kinds of tiles.
STEP_LINES = [
    "S2R R3, SR_TID.X",
    "ISETP.GT.U32.AND P0, PT, R3, 0x1f, PT",
    "@P0 BRA <barrier>",
    "LDC.64 R8, c[0x0][0x348]",
    "@P1 BRA <short>",
    "LDG.E R8, desc[UR4][R8.64]",
    "turn:LDG.E R8, desc[UR4][R8.64]",
    "@P2 BRA <turn>",
    "short:BRA.DIV ~URZ, <apart>",
    "STS [UR4], R8",
    "barrier:BAR.SYNC.DEFER_BLOCKING 0x0",
    "BRX R4 -0xb0",
    "choice:@!P1 BRA <gaussian>",
    "@P2 BRA <invalid>",
    "mixed:LDG.E.128 R4, desc[UR4][R2.64]",
    "@P0 BRA <skip>",
    "LD.E R4, desc[UR4][R2.64]",
    "skip:MUFU.RSQ R9, R8",
    "STG.E.128 desc[UR4][R2.64], R4",
    "@!P0 BRA <mixed>",
    "EXIT",
    "invalid:STG.E.128 desc[UR4][R2.64], R4",
    "@!P0 BRA <invalid>",
    "EXIT",
    "shifted:MOV R1, R2",
    *vector_loop("s_all", 4, 3),
    "@P0 EXIT",
    *vector_loop("s_one", 1, 3),
    "EXIT",
    "gaussian:@P0 BRA <g_rest>",
    *vector_loop("g_all", 4, 2),
    "g_rest:@P0 EXIT",
    *vector_loop("g_one", 1, 2),
    "EXIT",
    "mixture:MOV R1, R2",
    "@P0 BRA <m_rest>",
    *vector_loop("m_all", 4, 4),
    "m_rest:BSYNC B0",
    "@P0 EXIT",
    *vector_loop("m_one", 1, 4),
    "EXIT",
    "apart:CALL.REL.NOINC <apart>",
    "end:BRA <end>",
    "NOP",
]


PLACES = addresses(STEP_LINES)
ELF = f""".section .symtab
.nv.info.{STEP}
	<0x13>
	Attribute:	EIATTR_INDIRECT_BRANCH_TARGETS
	Format:	EIFMT_SVAL
	Value:
		Offset of Indirect Branch: 0xb0	 Number of targets: 3
		Targets: {PLACES["choice"]:#x} {PLACES["shifted"]:#x} {PLACES["mixture"]:#x}

	<0x14>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x100 0x1 0x1
.nv.constant2.{STEP}
""".replace("\t\n", "\n")


def report_of(lines: list[str], resources: Any) -> Any:
    """Return the report of the lines as the step kernel of float32."""
    (code,) = sass_code.parse_sass(sass(STEP, lines)).values()
    tables = {PLACES["choice"] - 16: [addresses(lines)[to] for to in ("choice", "shifted", "mixture")]}
    return sass_report.report_kernel("step_common float32", code, resources, tables)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        (STEP, "step_common float32"),
        (STEP.replace("ILi0ELb0E", "ILi1ELb1E"), "step_common bfloat16 guided"),
        (STEP.replace("ILi0ELb0E", "ILi2ELb0E"), "step_common float16"),
        (f"{MANGLED}15step_any_kernelIdEEv18gmm_step_argumentsNS_6TilingE", "step_any float64"),
        (
            f"{MANGLED}29standard_normal_common_kernelILi2EEEv20gmm_normal_argumentsNS_6TilingE",
            "standard_normal_common float16",
        ),
        (f"{MANGLED}26standard_normal_any_kernelE20gmm_normal_argumentsNS_6TilingE", "standard_normal_any"),
        ("_Z22draw_components_kernel23gmm_component_arguments", "draw_components"),
        (
            f"{MANGLED}22backward_common_kernelILi1ELb1EEEv27gmm_step_backward_argumentsNS_6TilingE",
            "backward_common bfloat16 guided",
        ),
        (f"{MANGLED}14sum_std_kernelIdEEv27gmm_step_backward_argumentsNS_6TilingE", "sum_std float64"),
    ],
)
def test_kernel_names(symbol: str, name: str) -> None:
    assert sass_code.kernel_name(symbol) == name


def test_resources() -> None:
    assert sass_code.parse_resources(RESOURCES) == {
        "step_common float32": sass_code.Resources(64, 16, 12, 8, 240),
        "draw_components": sass_code.Resources(20, 0, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [("LDG.E", 32), ("LDG.E.U8", 8), ("LDG.E.S16", 16), ("LDG.E.64", 64), ("LDG.E.128.CONSTANT", 128),
     ("LDG.E.ENL2.256", 256), ("STG.E.U16", 16)],
)  # fmt: skip
def test_widths(opcode: str, bits: int) -> None:
    assert sass_code.Instruction(0, "", opcode, "").bits == bits


def test_instructions_are_read_and_padding_is_not() -> None:
    (code,) = sass_code.parse_sass(sass(STEP, STEP_LINES)).values()
    assert len(code) == len(STEP_LINES) - 2
    assert code[2] == sass_code.Instruction(0x20, "P0", "BRA", "0xa0")
    assert code[10] == sass_code.Instruction(0xA0, "", "BAR.SYNC.DEFER_BLOCKING", "0x0")
    assert code[8].root == "BRA"


def test_tables_of_branches() -> None:
    tables = [PLACES[label] for label in ("choice", "shifted", "mixture")]
    assert sass_code.parse_tables(ELF) == {"step_common float32": {0xB0: tables}}


def test_branches_lead_where_they_say() -> None:
    lines = [
        "BRA.U !UP0, <end>",
        "@P0 EXIT",
        "BRA.DIV ~URZ, <end>",
        "@!P1 CALL.REL.NOINC <end>",
        "BRX R10 -0x22e0",
        "MOV R1, R2",
        "end:RET.REL.NODEC R16 0x0",
        "BRA <end>",
    ]
    (code,) = sass_code.parse_sass(sass("_Z1f", lines)).values()
    assert sass_code.successors(code, {0x40: [0x50, 0x70]}) == [
        [6, 1],
        [2],
        [3],
        [6, 4],
        [5, 7],
        [6],
        [],
        [6],
    ]


def test_loops_are_found() -> None:
    #        0 -> 1 -> 2 -> 3 -> 4 -> 5, an inner loop 2-3 and an outer one 1-4; 6 jumps back but into no loop.
    after = [[1], [2], [3], [2, 4], [1, 5], [], [5]]
    assert sass_code.find_loops(after) == [
        sass_code.Loop(1, frozenset({1, 2, 3, 4})),
        sass_code.Loop(2, frozenset({2, 3})),
    ]
    assert sass_code.longest(after, sass_code.find_loops(after), 0, 5) == 5


def test_a_step_kernel_is_taken_apart() -> None:
    report = report_of(STEP_LINES, sass_code.parse_resources(RESOURCES)["step_common float32"])
    assert list(report.loops) == [*HOT_LOOPS, "mixed"]
    sizes = {kind: (loop.elements, loop.instructions) for kind, loop in report.loops.items()}
    assert sizes == {
        "mixture": (16, 33),
        "mixture remainder": (4, 9),
        "shifted": (16, 29),
        "shifted remainder": (4, 8),
        "gaussian": (16, 25),
        "gaussian remainder": (4, 7),
        "mixed": (4, 6),
    }
    assert report.loops["mixture"].memory == {"LDG.E.128": 16, "STG.E.128": 4}
    assert report.loops["mixture"].loaded_bits == 16 * 128
    assert (report.loops["mixture"].square_roots, report.loops["mixture"].wide_products) == (8, 4)
    assert report.gather == 7
    # 3 before the barrier, the barrier and BRX, the prologue of 2; 7 of warp 0 alone; 2 turns; BSYNC and EXIT.
    assert report.per_element["mixture"] == (3 + 2 + 2 + 7 / 8 + 2 * 33 + 2) / 32
    assert report.per_element["shifted"] == (3 + 2 + 1 + 7 / 8 + 2 * 29 + 1) / 32
    assert report.per_element["gaussian"] == (3 + 3 + 1 + 7 / 8 + 2 * 25 + 1) / 32
    assert report.outside == report.instructions - 33 - 9 - 29 - 8 - 25 - 7 - 6


def test_gradients_are_told_apart_by_what_they_read() -> None:
    def loop(label: str, vectors: int, loads: int) -> list[str]:
        body = [
            *["LDG.E.128 R4, desc[UR4][R2.64]"] * loads * vectors,
            *["@P1 STG.E.128 desc[UR4][R2.64], R4"] * 2 * vectors,
        ]
        return [f"{label}:{body[0]}", *body[1:], f"@!P0 BRA <{label}>"]

    lines = [
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "@P2 BRA <clipped>",
        *loop("free", 4, 1),
        *loop("rest", 1, 1),
        "EXIT",
        *loop("clipped", 4, 3),
        *loop("more", 1, 3),
        "EXIT",
    ]
    (code,) = sass_code.parse_sass(sass(STEP, lines)).values()
    resources = sass_code.Resources(64, 0, 0, 0, 0)
    report = sass_report.report_kernel("backward_common float32", code, resources)
    assert {kind: (loop.elements, loop.instructions) for kind, loop in report.loops.items()} == {
        "clipped": (16, 21),
        "clipped remainder": (4, 6),
        "free": (16, 13),
        "free remainder": (4, 4),
    }
    # The barrier and the branch before it, two turns, the remainder once and EXIT.
    assert report.per_element["free"] == (2 + 2 * 13 + 4 + 1) / 32


def test_a_narrow_store_is_seen() -> None:
    narrow = "STG.E.64 desc[UR4][R2.64], R4"
    lines = [half for line in STEP_LINES for half in ([narrow] * 2 if line.startswith("STG") else [line])]
    report = report_of(lines, sass_code.Resources(64, 0, 0, 0, 0))
    assert report.loops["mixture"].memory == {"LDG.E.128": 16, "STG.E.64": 8}
    assert report.loops["mixture"].elements == 16


def test_a_kernel_without_its_loops_is_an_error() -> None:
    resources = sass_code.Resources(64, 0, 0, 0, 0)
    (code,) = sass_code.parse_sass(sass(STEP, ["MOV R1, R2", "EXIT"])).values()
    with pytest.raises(ValueError, match=r"expected hot loops .* found {}"):
        sass_report.report_kernel("step_common float32", code, resources)
    half = ["LDG.E.64" + line[9:] if line.startswith("LDG.E.128") else line for line in STEP_LINES]
    with pytest.raises(ValueError, match="a loop of 16 elements loads"):
        report_of(half, resources)
    with pytest.raises(ValueError, match="SASS of kernels"):
        sass_report.report(sass(STEP, STEP_LINES), ELF, RESOURCES)


def test_over_budget_names_each_figure() -> None:
    name = "step_common float32"
    report = report_of(STEP_LINES, sass_code.parse_resources(RESOURCES)[name])
    reports = {"sm_90": {name: report}}
    budgets = sass_report.to_budget(reports)
    figures = budgets["sm_90"][name]
    assert figures["instructions"] == 160
    assert figures["mixture_per_element"] == 2.5
    # A spill is never within budget.
    assert sass_report.over_budget(reports, budgets) == [
        "sm_90 step_common float32: stack is 16, budget 0",
        "sm_90 step_common float32: spill_stores is 12, budget 0",
        "sm_90 step_common float32: spill_loads is 8, budget 0",
    ]
    figures.update(stack=16, spill_stores=12, spill_loads=8)
    assert sass_report.over_budget(reports, budgets) == []
    figures.update(registers=63, mixture_per_element=2.0)
    del figures["shared"]
    assert sass_report.over_budget(reports, budgets) == [
        "sm_90 step_common float32: registers is 64, budget 63",
        "sm_90 step_common float32: shared is 240, no budget",
        f"sm_90 step_common float32: mixture_per_element is {report.per_element['mixture']:.6g}, budget 2",
    ]


def test_what_is_required_limits_the_budget() -> None:
    name = "step_common float32"
    reports = {"sm_90": {name: report_of(STEP_LINES, sass_code.Resources(64, 0, 0, 0, 0))}}
    required = {("sm_90", name): 2.25}
    assert sass_report.to_budget(reports, required)["sm_90"][name]["mixture_per_element"] == 2.25
    (line,) = sass_report.over_required(reports, required)
    assert line.endswith("at most 2.25 required")
