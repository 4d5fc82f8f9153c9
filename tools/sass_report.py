"""Report what nvcc made of the CUDA kernels: registers, spills, widths of loads, instructions per element.

The machine code (SASS) is that of the extension as it was built, read with cuobjdump. No GPU is needed, and nothing is
timed: the report says what the code is, not how fast it runs. Run

    python tools/sass_report.py                      # a table for sm_80, sm_90 and sm_100
    python tools/sass_report.py --check              # compare with csrc/cuda/budget.json, exit 1 when over
    python tools/sass_report.py --write-budget       # after a deliberate change, with the budget's compiler

**Graph.** Each instruction is a node. BRA leads to its target, and on to the next instruction when it has a
condition; so does CALL, which ptxas also writes for a jump. EXIT and RET end a path. BRX leads to the
targets that `cuobjdump -elf` lists. BRA.DIV, taken where a warp
must be put together again, is counted as not taken. BSYNC is taken to go on with what follows it.

**Loops.** A loop is what lies on the cycles through a backward branch. A *hot* loop is one that stores results,
draws noise, has no branch inside but its own and loads nothing but by LDG. A turn's elements are the bits that it
stores over the bits of an element. What a step's hot loop loads besides the tensors tells its kind: `mixture` two
tables, `shifted` one, `gaussian` none; `free` ones do not clip. Each kind has an unrolled loop and a remainder loop,
one vector a turn: the unrolled one has more elements or, if equal, comes first. `mixed`, the largest loop with
branches, is given by its size alone: every side of every branch is counted. The kernels of noise have one hot loop,
`noise`. Those of gradients draw none; their hot loops, unrolled and remainder, are `free`, which reads the result's
gradient alone, and `clipped`, which reads the step's inputs too. All stores count, also those of gradients that are
not wanted.

**Instructions per element**, prologue included, of a thread that has a full tile's 64 elements:

    (all + gather / 8 + turns * loop + exit) / 64

    all     the shortest path from the entry to the barrier, which leaves out warp 0's gathering, and from there
            to the unrolled loop
    gather  what warp 0, one of eight, executes besides before the barrier: the longest path there less the
            shortest
    loop    instructions of the unrolled loop, for turns = 64 / elements of a turn
    exit    the shortest path from the loop to the end

Every instruction is one, whatever it costs, a predicated one also where its predicate is false. `gather` takes
each of its loops once, which is more than happens with few components and less than with very many: the loop over
cdf adds a turn per 128 components from about 160 on, some 0.08 instructions per element each. Of a branch
with two sides one is counted, the longer, although the lanes of a warp may take both.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_binary import ROOT, MissingTool, find_extension, nvcc_release, read_sass
from sass_code import (
    DTYPES,
    Instruction,
    Loop,
    Resources,
    find_loops,
    outside,
    parse_resources,
    parse_sass,
    parse_tables,
    reach,
    successors,
)

BUDGET = ROOT / "csrc" / "cuda" / "budget.json"
ARCHITECTURES = ("80", "90", "100")

ELEMENTS_PER_THREAD = 64  # of a full tile
ELEMENT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
TABLE_BITS = 32  # of an element of the offsets and of the standard deviations

STEP_KERNELS = tuple(f"step_plain {dtype}" for dtype in DTYPES.values())
TYPES = (
    *(f"{dtype} {dtype}" for dtype in DTYPES.values()),
    *(f"float32 {dtype}" for dtype in ("bfloat16", "float16")),
    *(f"{dtype} float32" for dtype in ("bfloat16", "float16")),
)
NOISE_KERNELS = tuple(f"standard_normal_common {dtype}" for dtype in DTYPES.values())
BACKWARD_KERNELS = tuple(f"backward_plain {dtype}" for dtype in DTYPES.values())
OTHER_KERNELS = (
    "backward_any",
    "backward_sums",
    "sum_offsets",
    "sum_std",
    "sum_level",
    "add_samples",
    "density_sums",
    "log_prob",
    "density_backward",
    "density_backward_sums",
    "density_offsets",
    "density_std",
    "add_shares",
    "step_density",
    "step_log_prob",
    "ratio_sums",
    "log_ratio",
    "ratio_backward",
    "project_sums",
    "project",
)
TRAINING_KERNELS = (
    *(
        f"{name}_{kind} {dtype}"
        for name in ("add_noise", "skip_loss", "skip_loss_backward")
        for kind, dtypes in (("common", DTYPES.values()), ("any", ("float32", "float64")))
        for dtype in dtypes
    ),
    *(f"{name} {dtype}" for name in ("finish_loss", "scale_residual") for dtype in ("float32", "float64")),
)
COMMON_KERNELS = (*STEP_KERNELS, *NOISE_KERNELS, *BACKWARD_KERNELS)
KERNELS = (
    *STEP_KERNELS,
    *(f"step_typed {types}" for types in TYPES),
    "step_any float32",
    "step_any float64",
    *NOISE_KERNELS,
    "standard_normal_any",
    "draw_components",
    *BACKWARD_KERNELS,
    *(f"backward_typed {types}" for types in TYPES),
    *(f"{name} {dtype}" for dtype in ("float32", "float64") for name in OTHER_KERNELS),
    *TRAINING_KERNELS,
)
KINDS = ("gaussian", "shifted", "mixture")  # by the number of tables that a step's loop reads
STEP_LOOPS = (*KINDS, *(f"{kind} free" for kind in KINDS))  # the latter where the row clips nothing
FLOWS = ("free", "clipped")  # of gradients: whether the loop reads sample and model output

Required = Mapping[tuple[str, str], float]  # by architecture and kernel

# What the mixture step may cost on sm_90, whatever the budget file says: instructions per element, prologue included.
REQUIRED: Required = {
    ("sm_90", "step_plain float32"): 42.5,
    ("sm_90", "step_plain bfloat16"): 45.0,
    ("sm_90", "step_plain float16"): 45.0,
}

NEVER = ("stack", "spill_stores", "spill_loads")  # no kernel may have any


@dataclass(frozen=True)
class HotLoop:
    """A loop that goes over the elements of a tile, per turn."""

    kind: str  # one of `KINDS` or `FLOWS`, the same with " remainder", "mixed" or "noise"
    elements: int
    instructions: int
    opcodes: Counter[str]
    memory: Counter[str]  # loads and stores, but those of constants
    loaded_bits: int

    @property
    def square_roots(self) -> int:
        """How many estimates of a reciprocal root there are: one for two normals."""
        return self.opcodes["MUFU.RSQ"]

    @property
    def wide_products(self) -> int:
        """How many products of 64 bits there are: Philox has 20 for four normals, and ptxas takes some out."""
        return self.opcodes["IMAD.WIDE.U32"] + self.opcodes["UIMAD.WIDE.U32"]

    @property
    def per_element(self) -> float:
        """Instructions of the loop per element."""
        return self.instructions / self.elements


@dataclass(frozen=True)
class KernelReport:
    """All that is known of one kernel."""

    name: str
    resources: Resources
    instructions: int
    opcodes: Counter[str]
    loops: Mapping[str, HotLoop]  # by kind; of the common kernels only
    per_element: Mapping[str, float]  # by kind, prologue included
    gather: int  # instructions of warp 0 alone

    @property
    def spill_stores(self) -> int:
        """Stores to a thread's own memory."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith("STL"))

    @property
    def spill_loads(self) -> int:
        """Loads from it."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith("LDL"))

    @property
    def outside(self) -> int:
        """Instructions in none of the loops."""
        return self.instructions - sum(loop.instructions for loop in self.loops.values())

    def figures(self) -> dict[str, float]:
        """Return what is budgeted."""
        of_resources = {
            "registers": self.resources.registers,
            "shared": self.resources.shared,
            "stack": self.resources.stack,
            "spill_stores": self.spill_stores,
            "spill_loads": self.spill_loads,
            "instructions": self.instructions,
        }
        return {**of_resources, **{f"{kind}_per_element": value for kind, value in self.per_element.items()}}

    def to_json(self) -> dict[str, object]:
        """Return everything, for `--json`."""
        loops = {
            kind: {
                "elements": loop.elements,
                "instructions": loop.instructions,
                "instructions_per_element": round(loop.per_element, 3),
                "memory": dict(loop.memory),
                "opcodes": dict(loop.opcodes.most_common()),
            }
            for kind, loop in self.loops.items()
        }
        figures = {name: round(value, 3) for name, value in self.figures().items()}
        rest = {"outside": self.outside, "gather": self.gather}
        return {**figures, **rest, "loops": loops}


MEMORY = re.compile(r"(LD|ST)([GSL]?)$|ATOM|RED$|LDGSTS")


def _stored_bits(name: str) -> int:
    """Return the bits that a common kernel stores for each element."""
    outputs = 2 if name in BACKWARD_KERNELS else 1
    return outputs * ELEMENT_BITS[name.split()[1]]


def _hot_loop(kind: str, code: Iterable[Instruction], element_bits: int) -> HotLoop:
    body = list(code)
    memory = [i for i in body if MEMORY.match(i.root)]
    return HotLoop(
        kind=kind,
        elements=sum(i.bits for i in memory if i.root == "STG") // element_bits,
        instructions=len(body),
        opcodes=Counter(i.opcode for i in body),
        memory=Counter(i.opcode for i in memory),
        loaded_bits=sum(i.bits for i in memory if i.root == "LDG"),
    )


def _is_hot(code: Sequence[Instruction], after: Sequence[Sequence[int]], loop: Loop, name: str) -> bool:
    """Whether a loop has no branch but its own, draws noise if the kernel does, stores, and loads only by LDG."""
    roots = {code[i].root for i in loop.body}
    straight = all(sum(j in loop.body for j in after[i]) == 1 for i in loop.body)
    noisy = "MUFU" in roots or name in BACKWARD_KERNELS
    return straight and noisy and "STG" in roots and "LD" not in roots


def _kinds(name: str) -> tuple[str, ...]:
    """Return the kinds of hot loops of a common kernel."""
    return FLOWS if name in BACKWARD_KERNELS else ("noise",) if name in NOISE_KERNELS else STEP_LOOPS


def _kind(name: str, hot: HotLoop) -> str:
    """Return the kind of a hot loop, by what it loads for each element and whether it clips."""
    bits = ELEMENT_BITS[name.split()[1]]
    expected = {"noise": 0}
    if name in BACKWARD_KERNELS:
        expected = {"free": bits, "clipped": 3 * bits}
    elif name in STEP_KERNELS:
        free = "" if any(opcode.startswith("FMNMX") for opcode in hot.opcodes) else " free"
        expected = {f"{kind}{free}": 2 * bits + tables * TABLE_BITS for tables, kind in enumerate(KINDS)}
    for kind, loaded in expected.items():
        if hot.loaded_bits == hot.elements * loaded:
            return kind
    raise ValueError(f"{name}: a loop of {hot.elements} elements loads {hot.loaded_bits} bits")


def _named_loops(
    code: Sequence[Instruction], after: Sequence[Sequence[int]], loops: Sequence[Loop], name: str
) -> dict[str, Loop]:
    """Return the loops of a common kernel by kind.

    Raises:
        ValueError: they are not the loops that such a kernel must have.
    """
    places: dict[str, list[tuple[int, Loop]]] = {}
    branching: list[Loop] = []
    for loop in loops:
        body = [code[i] for i in sorted(loop.body)]
        if _is_hot(code, after, loop, name):
            hot = _hot_loop("", body, _stored_bits(name))
            places.setdefault(_kind(name, hot), []).append((hot.elements, loop))
        elif any(i.opcode == "MUFU.RSQ" for i in body):
            branching.append(loop)

    counts = {kind: len(found) for kind, found in places.items()}
    expected = dict.fromkeys(_kinds(name), 1 if name in NOISE_KERNELS else 2)
    if counts != expected:
        raise ValueError(f"{name}: expected hot loops {expected}, found {counts}")
    named: dict[str, Loop] = {}
    for kind in reversed(_kinds(name)):
        (elements, loop), *others = places[kind]
        named[kind] = loop
        for other_elements, other in others:
            comes_first = loop.header in reach(after, [other.header])
            if other_elements > elements or (other_elements == elements and comes_first):
                named[kind], other = other, loop
            named[f"{kind} remainder"] = other
    if name in STEP_KERNELS:
        if not branching:
            raise ValueError(f"{name}: no loop for mixed tiles")
        named["mixed"] = max(branching, key=lambda loop: len(loop.body))
    return named


def report_kernel(
    name: str,
    code: Sequence[Instruction],
    resources: Resources,
    tables: Mapping[int, Sequence[int]] | None = None,
) -> KernelReport:
    """Work out the figures of one kernel; `tables` as for `successors`.

    Raises:
        ValueError: a common kernel has not the loops, or not the one barrier, that it must have.
    """
    hot_loops: dict[str, HotLoop] = {}
    per_element: dict[str, float] = {}
    gather = 0
    if name in COMMON_KERNELS:
        after = successors(code, tables or {})
        loops = find_loops(after)
        named = _named_loops(code, after, loops, name)
        for kind, loop in named.items():
            hot = hot_loops[kind] = _hot_loop(kind, (code[i] for i in sorted(loop.body)), _stored_bits(name))
            around = outside(code, after, loops, loop)
            gather = around.gather
            if kind in _kinds(name):
                turns = ELEMENTS_PER_THREAD / hot.elements
                total = around.of_thread + turns * hot.instructions
                per_element[kind] = total / ELEMENTS_PER_THREAD
    return KernelReport(
        name=name,
        resources=resources,
        instructions=len(code),
        opcodes=Counter(i.opcode for i in code),
        loops=hot_loops,
        per_element=per_element,
        gather=gather,
    )


def report(sass: str, elf: str, resources: str) -> dict[str, KernelReport]:
    """Return the report of each kernel, in the order of `KERNELS`.

    Args:
        sass: what `cuobjdump -sass` prints
        elf: what `cuobjdump -elf` prints
        resources: what `cuobjdump --dump-resource-usage` prints

    Raises:
        ValueError: the kernels are not those of `KERNELS`.
    """
    codes, said = parse_sass(sass), parse_resources(resources)
    for what, found in (("SASS", codes.keys()), ("resources", said.keys())):
        if found != set(KERNELS):
            raise ValueError(f"{what} of kernels {sorted(found)}, expected {sorted(KERNELS)}")
    tables = parse_tables(elf)
    return {name: report_kernel(name, codes[name], said[name], tables.get(name)) for name in KERNELS}


# ------------------------------------------------------------------------------------------------------ budget

Reports = Mapping[str, Mapping[str, KernelReport]]  # by architecture ("sm_90"), then by kernel


def load_budget(path: Path = BUDGET) -> dict[str, dict[str, dict[str, float]]]:
    """Return the budgets by architecture, then by kernel."""
    budgets: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["budgets"]
    return budgets


def budget_release(path: Path = BUDGET, compiler: str = "nvcc") -> str:
    """Return the release of the compiler that the budget was measured with."""
    release: str = json.loads(path.read_text(encoding="utf-8"))[compiler]
    return release


def over_required(reports: Reports, required: Required = REQUIRED) -> list[str]:
    """Return a line for each mixture step above what is required of it, with any compiler."""
    return [
        f"{architecture} {name}: mixture_per_element is {reports[architecture][name].per_element['mixture']:.2f}, "
        f"at most {most:g} required"
        for (architecture, name), most in required.items()
        if name in reports.get(architecture, {}) and reports[architecture][name].per_element["mixture"] > most
    ]


def over_budget(reports: Reports, budgets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return a line for each figure above its budget, or without one."""
    lines = []
    for architecture, kernels in reports.items():
        for name, kernel in kernels.items():
            budget = budgets.get(architecture, {}).get(name, {})
            for figure, value in kernel.figures().items():
                if figure not in budget:
                    lines.append(f"{architecture} {name}: {figure} is {value:g}, no budget")
                elif value > budget[figure]:
                    lines.append(f"{architecture} {name}: {figure} is {value:.6g}, budget {budget[figure]:g}")
    return lines


def to_budget(reports: Reports, required: Required = REQUIRED) -> dict[str, dict[str, dict[str, float]]]:
    """Return budgets that these reports just keep, unless they spill or cost more than required.

    Instructions are rounded up to a multiple of 32, and by element to one of 0.5.
    """
    steps = {"instructions": 32.0, **{f"{kind}_per_element": 0.5 for kind in (*KINDS, *FLOWS, "noise")}}

    def budget(architecture: str, name: str, figure: str, value: float) -> float:
        if figure in NEVER:
            return 0
        step = steps.get(figure, 1.0)
        up = math.ceil(value / step) * step
        if figure == "mixture_per_element":
            up = min(up, required.get((architecture, name), up))
        return int(up) if up == int(up) else up

    return {
        architecture: {
            name: {
                figure: budget(architecture, name, figure, value)
                for figure, value in kernel.figures().items()
            }
            for name, kernel in kernels.items()
        }
        for architecture, kernels in reports.items()
    }


# ---------------------------------------------------------------------------------------------------- commands


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {opcode}" for opcode, count in sorted(counter.items()))


def table(architecture: str, kernels: Mapping[str, KernelReport]) -> str:
    """Return one architecture's report to read."""
    lines = [
        architecture,
        "  kernel                        registers  stack  spills st/ld  shared  instructions  outside loops  gather",
    ]
    for name, kernel in kernels.items():
        of = kernel.resources
        spills = f"{kernel.spill_stores}/{kernel.spill_loads}"
        outside, gather = (kernel.outside, kernel.gather) if kernel.loops else ("-", "-")
        lines.append(
            f"  {name:<30}{of.registers:>9}{of.stack:>7}{spills:>14}{of.shared:>8}{kernel.instructions:>14}"
            f"{outside:>15}{gather:>8}"
        )
    lines += [
        "",
        "  loop                                           turn  elements  each  with prologue  memory",
    ]
    for name, kernel in kernels.items():
        for kind, loop in kernel.loops.items():
            each = f"{loop.per_element:.2f}" if kind != "mixed" else "-"
            elements = loop.elements if kind != "mixed" else "-"
            whole = f"{kernel.per_element[kind]:.2f}" if kind in kernel.per_element else ""
            lines.append(
                f"  {name + ', ' + kind:<45}{loop.instructions:>6}{elements:>10}{each:>6}{whole:>15}"
                f"  {_counts(loop.memory)}"
            )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=list(ARCHITECTURES),
        metavar="N",
        help="compute capabilities without the dot (80 90 100)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    parser.add_argument("--check", action="store_true", help="compare with the budget; exit 1 when over it")
    parser.add_argument("--write-budget", action="store_true", help="write what is measured, rounded up")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="the budget file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report, and compare it if asked; return the exit status."""
    options = parse_arguments(arguments)
    release = nvcc_release()
    reports: dict[str, dict[str, KernelReport]] = {}
    try:
        for architecture in options.architectures:
            reports[f"sm_{architecture}"] = report(*read_sass(find_extension(), architecture))
            print(table(f"sm_{architecture}, nvcc {release}", reports[f"sm_{architecture}"]) + "\n")
    except MissingTool as missing:
        print(f"sass_report: {missing}", file=sys.stderr)
        return 2

    if options.json:
        kernels = {
            architecture: {name: kernel.to_json() for name, kernel in of.items()}
            for architecture, of in reports.items()
        }
        options.json.write_text(json.dumps({"nvcc": release, "reports": kernels}, indent=2) + "\n", "utf-8")
    if options.write_budget:
        content = {"nvcc": release, "budgets": to_budget(reports)}
        options.budget.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        print(f"budget written to {options.budget}")
    if not options.check:
        return 0
    lines = over_required(reports)
    if release == budget_release(options.budget):
        lines += over_budget(reports, load_budget(options.budget))
    else:
        print(f"The budget is nvcc {budget_release(options.budget)}'s: only what is required is compared.")
    print("\n".join(["Over budget:", *lines]) if lines else "Within budget.")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
