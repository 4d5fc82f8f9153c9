"""The report on SASS: what it makes of a few lines, and of a budget."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sass_code
import sass_report

KINDS = [f"{kind}{free}" for free in (" free", "") for kind in ("mixture", "shifted", "gaussian")]
HOT_LOOPS = [f"{kind}{rest}" for kind in KINDS for rest in ("", " remainder")]
ARCHITECTURES = [f"sm_{number}" for number in sass_report.ARCHITECTURES]

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
STEP = f"{MANGLED}17step_plain_kernelILi0EEEv18gmm_step_argumentsNS_6TilingE"

RESOURCES = f"""
Resource usage:
 Common:
  GLOBAL:0
 Function {STEP}:
  REG:64 STACK:16 SHARED:240 LOCAL:0 CONSTANT[2]:16 CONSTANT[0]:816 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {MANGLED}22draw_components_kernelE23gmm_component_arguments:
  REG:20 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:448 TEXTURE:0 SURFACE:0 SAMPLER:0
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


def vector_loop(label: str, vectors: int, loads: int, *, clips: bool = False) -> list[str]:
    """Return a loop of `vectors` times (loads + 4) instructions and a branch; 4 elements of float32 each.

    A loop that clips has one instruction more for each vector.
    """
    body = [
        *["LDG.E.128 R4, desc[UR4][R2.64]"] * loads,
        *["FMNMX.NAN R4, R4, R5, PT"] * clips,
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
    "clipping:@P1 BRA <c_shifted>",
    "@P2 BRA <c_mixture>",
    *vector_loop("cg_all", 4, 2, clips=True),
    *vector_loop("cg_one", 1, 2, clips=True),
    "EXIT",
    "c_shifted:MOV R1, R2",
    *vector_loop("cs_all", 4, 3, clips=True),
    *vector_loop("cs_one", 1, 3, clips=True),
    "EXIT",
    "c_mixture:MOV R1, R2",
    *vector_loop("cm_all", 4, 4, clips=True),
    *vector_loop("cm_one", 1, 4, clips=True),
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
		Offset of Indirect Branch: 0xb0	 Number of targets: 4
		Targets: {PLACES["choice"]:#x} {PLACES["shifted"]:#x} {PLACES["mixture"]:#x} {PLACES["clipping"]:#x}

	<0x14>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x100 0x1 0x1
.nv.constant2.{STEP}
""".replace("\t\n", "\n")


def report_of(lines: list[str], resources: Any) -> Any:
    """Return the report of the lines as the step kernel of float32."""
    (code,) = sass_code.parse_sass(sass(STEP, lines)).values()
    tables = {
        PLACES["choice"] - 16: [addresses(lines)[to] for to in ("choice", "shifted", "mixture", "clipping")]
    }
    return sass_report.report_kernel("step_plain float32", code, resources, tables)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        (STEP, "step_plain float32"),
        (STEP.replace("ILi0EE", "ILi2ELi0EE"), "step_plain float16 float32"),
        (f"{MANGLED}15step_any_kernelIdEEv18gmm_step_argumentsNS_6TilingE", "step_any float64"),
        (
            f"{MANGLED}29standard_normal_common_kernelILi2EEEv20gmm_normal_argumentsNS_6TilingE",
            "standard_normal_common float16",
        ),
        (f"{MANGLED}26standard_normal_any_kernelE20gmm_normal_argumentsNS_6TilingE", "standard_normal_any"),
        ("_Z22draw_components_kernel23gmm_component_arguments", "draw_components"),
        (
            f"{MANGLED}21backward_typed_kernelILi1ELi0EEEv27gmm_step_backward_argumentsNS_6TilingE",
            "backward_typed bfloat16 float32",
        ),
        (f"{MANGLED}14sum_std_kernelIdEEv27gmm_step_backward_argumentsNS_6TilingE", "sum_std float64"),
    ],
)
def test_kernel_names(symbol: str, name: str) -> None:
    assert sass_code.kernel_name(symbol) == name


def test_resources() -> None:
    assert sass_code.parse_resources(RESOURCES) == {
        "step_plain float32": sass_code.Resources(64, 16, 240),
        "draw_components": sass_code.Resources(20, 0, 0),
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
    tables = [PLACES[label] for label in ("choice", "shifted", "mixture", "clipping")]
    assert sass_code.parse_tables(ELF) == {"step_plain float32": {0xB0: tables}}


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
    report = report_of(STEP_LINES, sass_code.parse_resources(RESOURCES)["step_plain float32"])
    assert list(report.loops) == [*HOT_LOOPS, "mixed"]
    sizes = {kind: (loop.elements, loop.instructions) for kind, loop in report.loops.items()}
    assert sizes == {
        "mixture free": (16, 33),
        "mixture free remainder": (4, 9),
        "shifted free": (16, 29),
        "shifted free remainder": (4, 8),
        "gaussian free": (16, 25),
        "gaussian free remainder": (4, 7),
        "mixture": (16, 37),
        "mixture remainder": (4, 10),
        "shifted": (16, 33),
        "shifted remainder": (4, 9),
        "gaussian": (16, 29),
        "gaussian remainder": (4, 8),
        "mixed": (4, 6),
    }
    assert report.loops["mixture free"].memory == {"LDG.E.128": 16, "STG.E.128": 4}
    assert report.loops["mixture"].loaded_bits == 16 * 128
    assert (report.loops["mixture"].square_roots, report.loops["mixture"].wide_products) == (8, 4)
    assert report.gather == 7
    # 3 before the barrier, the barrier and BRX, the prologue of 2; 7 of warp 0 alone; 4 turns; BSYNC and EXIT.
    assert report.per_element["mixture free"] == (3 + 2 + 2 + 7 / 8 + 4 * 33 + 2) / 64
    assert report.per_element["shifted free"] == (3 + 2 + 1 + 7 / 8 + 4 * 29 + 1) / 64
    assert report.per_element["gaussian free"] == (3 + 3 + 1 + 7 / 8 + 4 * 25 + 1) / 64
    assert report.outside == report.instructions - sum(instructions for _, instructions in sizes.values())


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
    resources = sass_code.Resources(64, 0, 0)
    report = sass_report.report_kernel("backward_plain float32", code, resources)
    assert {kind: (loop.elements, loop.instructions) for kind, loop in report.loops.items()} == {
        "clipped": (16, 21),
        "clipped remainder": (4, 6),
        "free": (16, 13),
        "free remainder": (4, 4),
    }
    # The barrier and the branch before it, four turns, the remainder once and EXIT.
    assert report.per_element["free"] == (2 + 4 * 13 + 4 + 1) / 64


def test_a_narrow_store_is_seen() -> None:
    narrow = "STG.E.64 desc[UR4][R2.64], R4"
    lines = [half for line in STEP_LINES for half in ([narrow] * 2 if line.startswith("STG") else [line])]
    report = report_of(lines, sass_code.Resources(64, 0, 0))
    assert report.loops["mixture"].memory == {"LDG.E.128": 16, "STG.E.64": 8}
    assert report.loops["mixture"].elements == 16


def test_a_kernel_without_its_loops_is_an_error() -> None:
    resources = sass_code.Resources(64, 0, 0)
    (code,) = sass_code.parse_sass(sass(STEP, ["MOV R1, R2", "EXIT"])).values()
    with pytest.raises(ValueError, match=r"expected hot loops .* found {}"):
        sass_report.report_kernel("step_plain float32", code, resources)
    half = ["LDG.E.64" + line[9:] if line.startswith("LDG.E.128") else line for line in STEP_LINES]
    with pytest.raises(ValueError, match="a loop of 16 elements loads"):
        report_of(half, resources)
    with pytest.raises(ValueError, match="SASS of kernels"):
        sass_report.report(sass(STEP, STEP_LINES), ELF, RESOURCES)


def test_over_budget_names_each_figure() -> None:
    name = "step_plain float32"
    spilling = ["STL [R1], R2" if line == "S2R R3, SR_TID.X" else line for line in STEP_LINES]
    report = report_of(spilling, sass_code.parse_resources(RESOURCES)[name])
    reports = {"sm_90": {name: report}}
    budgets = sass_report.to_budget(reports)
    figures = budgets["sm_90"][name]
    assert figures["instructions"] == 288
    assert figures["mixture_per_element"] == 3
    # A spill is never within budget.
    assert sass_report.over_budget(reports, budgets) == [
        "sm_90 step_plain float32: stack is 16, budget 0",
        "sm_90 step_plain float32: spill_stores is 1, budget 0",
    ]
    figures.update(stack=16, spill_stores=1)
    assert sass_report.over_budget(reports, budgets) == []
    figures.update(registers=63, mixture_per_element=2.0)
    del figures["shared"]
    assert sass_report.over_budget(reports, budgets) == [
        "sm_90 step_plain float32: registers is 64, budget 63",
        "sm_90 step_plain float32: shared is 240, no budget",
        f"sm_90 step_plain float32: mixture_per_element is {report.per_element['mixture']:.6g}, budget 2",
    ]


def test_what_is_required_limits_the_budget() -> None:
    name = "step_plain float32"
    reports = {"sm_90": {name: report_of(STEP_LINES, sass_code.Resources(64, 0, 0))}}
    required = {("sm_90", name): 2.25}
    assert sass_report.to_budget(reports, required)["sm_90"][name]["mixture_per_element"] == 2.25
    (line,) = sass_report.over_required(reports, required)
    assert line.endswith("at most 2.25 required")
