"""The least time that a launch's arithmetic, issue slots and memory traffic allow it, from its machine code.

    python tools/sass_bound.py                          # on an A100, H100, H200 and B200; no GPU is needed
    python tools/sass_bound.py --beside results.json    # beside what the benchmarks measured on one

A launch is followed through its kernel's loop over elements: of the ways through the loop's branches, the shortest one
that loads and stores what the launch does, draws noise if it does, and clips if it does. Its instructions go to the
pipes that execute them, and the times are clocks of a multiprocessor for 32 elements, one of each lane of a warp:

    issue     all instructions, what a thread executes outside of the loop included, at 4 warps a clock
    a pipe    the instructions that need it, at its lanes a clock
    LSU       the bytes that the loop loads and stores, at 128 a clock
    memory    the bytes that one pass has to move, at the bandwidth of the data sheet

The largest is the least time: nothing overlaps better than that, and latencies, the tail of the grid and a clock below
the largest come on top. `share` is the memory's part of it, the share of the data sheet's bandwidth that can be reached
at best.

What an instruction under a predicate loads or adds may count or not, as a launch needs it. So launches that differ by
a block that ptxas has put under a predicate, instead of a branch around it, may get each other's turn: on sm_100
float32's guidance, and with it stored tensors. The bound holds, but for those it is too low by the difference.

**Sources**, the first two as others quote them. Lanes a clock: CUDA C++ Best Practices Guide, 12.1.1, "Throughput of
Native Arithmetic Instructions". Which instruction needs which pipe: Nsight Compute's documentation, "Pipelines"; that
an integer product of 64 bits takes a pipe for two instructions' time was measured on an A100 by others, and is taken
for all. Multiprocessors, largest clocks and bandwidths are those NVIDIA gives for each device. None was measured here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import operator
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from cuda_binary import MissingTool, find_extension, read_sass
from sass_code import (
    Instruction,
    Loop,
    find_loops,
    outside,
    parse_resources,
    parse_sass,
    parse_tables,
    successors,
)

BLOCK_THREADS = 256
ELEMENTS_PER_THREAD = 64  # of a full tile
ROW = 32  # elements that times are of
REGISTERS = 65536  # of a multiprocessor
MOST_WARPS = 64
LSU_BYTES = 128  # a clock

BYTES = {"float32": 4, "bfloat16": 2}  # of an element


@dataclass(frozen=True)
class Pipe:
    """A pipe: how many lanes it executes a clock, and how many passes an instruction of each class takes."""

    lanes: int
    passes: Mapping[str, int]


ALU = Pipe(64, {"alu": 1})
XU = Pipe(16, {"xu": 1})
PIPES: dict[str, dict[str, Pipe]] = {  # by architecture
    "80": {
        "FMA": Pipe(64, {"float": 1, "integer": 1, "wide": 2}),
        "FP16": Pipe(128, {"half": 1}),
        "ALU": ALU,
        "XU": Pipe(16, {"xu": 1, "integer to float": 1}),
    },
    **{
        architecture: {
            "FMA": Pipe(128, {"float": 1, "two floats": 2, "integer": 1, "half": 1, "wide": 2}),
            "FMA heavy": Pipe(64, {"integer": 1, "half": 1, "wide": 2}),
            "ALU": Pipe(64, {"alu": 1, "integer to float": 1}),
            "XU": XU,
        }
        for architecture in ("90", "100")
    },
}

CLASSES = {
    "float": "FADD FMUL FFMA",
    "two floats": "FADD2 FMUL2 FFMA2",  # of sm_100
    "half": "HADD2 HMUL2 HFMA2",
    "integer": "IMAD IMUL",
    "alu": "IADD3 LOP3 SHF ISETP FSETP FMNMX SEL FSEL PRMT LEA MOV F2FP PLOP3 IMNMX VIADD VIMNMX P2R R2P IABS SGXT",
    "xu": "MUFU FLO F2I F2F POPC BREV FRND",
    "integer to float": "I2F I2FP",
    "memory": "LD LDG LDS LDC LDL ST STG STS STL",
    "issue": "BRA BRX BSSY BSYNC CALL EXIT RET NOP WARPSYNC BAR S2R CS2R S2UR R2UR ULDC LDCU",
}
CLASS_OF = {root: name for name, roots in CLASSES.items() for root in roots.split()}


def class_of(instruction: Instruction) -> str:
    """Return what an instruction is to `PIPES`, "memory" or "issue" for what needs none of them.

    Raises:
        ValueError: it is not known.
    """
    root = instruction.root
    if root == "IMAD" and instruction.opcode.startswith(("IMAD.WIDE", "IMAD.HI")):
        return "wide"
    if root in CLASS_OF:
        return CLASS_OF[root]
    if root.startswith("U"):  # one for a warp, beside the lanes' pipes
        return "issue"
    raise ValueError(f"no pipe is known for {instruction.opcode}")


@dataclass(frozen=True)
class Device:
    """A device, by its data sheet: compute capability, multiprocessors, largest clock, bytes a second."""

    architecture: str
    multiprocessors: int
    hertz: float
    bandwidth: float

    def row_of_bytes(self, count: float) -> float:
        """Return the clocks in which memory moves `count` bytes for each element of a row."""
        return ROW * count * self.multiprocessors * self.hertz / self.bandwidth

    def seconds(self, clocks: float, elements: int) -> float:
        """Return how long all multiprocessors take for so many elements, at `clocks` for each row."""
        return clocks * elements / ROW / self.multiprocessors / self.hertz


DEVICES = {
    "A100 80 GB": Device("80", 108, 1.41e9, 2.039e12),
    "H100 SXM": Device("90", 132, 1.98e9, 3.35e12),
    "H200": Device("90", 132, 1.98e9, 4.8e12),
    "B200": Device("100", 148, 1.965e9, 8e12),
}


@dataclass(frozen=True)
class Launch:
    """What a launch does for each element.

    Attributes:
        kernel: name and types, as in the report.
        loads: bytes of the tensors read.
        stores: bytes of those written.
        tables: bytes of offsets and standard deviations, which the batch shares: from the L2 cache, mostly.
        noise: whether noise is drawn.
        clamps: how often a value is clamped.
        sums: fmas and additions of the mathematics, all in float32: what else is added is integers.
    """

    kernel: str
    loads: int
    stores: int
    sums: int
    tables: int = 0
    noise: bool = False
    clamps: int = 0

    @property
    def bytes(self) -> int:
        """What memory has to move."""
        return self.loads + self.stores


def step(
    types: str, *, mixture: bool = False, stored: int = 0, x0: bool = False, noise: bool = True, **more: int
) -> Launch:
    """Return a step of types "sample output", or of one type; `more`: guided, free (of clipping)."""
    sample, output = (BYTES[word] for word in (types.split() * 2)[:2])
    guided = more.get("guided", 0)
    plain = " " not in types and not (stored or x0 or guided)
    return Launch(
        f"step_plain {types}" if plain else f"step_typed {(types if ' ' in types else f'{types} {types}')}",
        loads=(1 + stored) * sample + (1 + guided) * output,
        stores=(1 + x0) * sample,
        # The mean has three, two normals eighteen, adding noise or anything else one, and guiding two.
        sums=3 + 10 * noise + mixture + stored + 2 * guided,
        tables=8 * mixture,
        noise=noise,
        clamps=0 if more.get("free") else 2,
    )


def launches() -> dict[str, Launch]:
    """Return the launches that are followed, by name."""
    made: dict[str, Launch] = {}
    for dtype, size in BYTES.items():
        other = "bfloat16" if dtype == "float32" else "float32"
        made |= {
            f"step {dtype}": step(dtype),
            f"step {dtype}, no clipping": step(dtype, free=1),
            f"step {dtype}, mixture": step(dtype, mixture=True),
            f"step {dtype}, mixture, x0": step(dtype, mixture=True, x0=True),
            f"step {dtype}, mixture, guided": step(dtype, mixture=True, guided=1),
            f"step {dtype}, x0": step(dtype, x0=True),
            f"step {dtype}, {other} output": step(f"{dtype} {other}"),
            f"step {dtype}, one stored": step(dtype, stored=1),
            f"step {dtype}, two stored, x0": step(dtype, stored=2, x0=True),
            f"step {dtype}, two stored, x0, no noise": step(dtype, stored=2, x0=True, noise=False),
            f"noise {dtype}": Launch(f"standard_normal_common {dtype}", 0, size, sums=9, noise=True),
            f"gradients {dtype}": Launch(f"backward_plain {dtype}", 3 * size, 2 * size, sums=3),
            f"gradients {dtype}, no clipping": Launch(f"backward_plain {dtype}", size, 2 * size, sums=2),
        }
    return made


@dataclass(frozen=True)
class Turn:
    """A way through a loop: its elements, and the instructions on it."""

    elements: int
    instructions: int
    classes: Counter[str]

    def of_class(self, name: str) -> float:
        """Return the instructions of a class for each element."""
        return self.classes[name] / self.elements


Totals = tuple[int, ...]  # bits loaded, bits stored, roots, clamps, sums
NOTHING: Totals = (0,) * 5


def _totals(instruction: Instruction) -> list[Totals]:
    """Return what an instruction adds; of one with a predicate, also nothing. No way leads by a narrow access."""
    root = instruction.root
    if root in ("LDG", "STG") and instruction.bits != 128:
        return [NOTHING] if instruction.predicate else []
    own = (
        instruction.bits if root == "LDG" else 0,
        instruction.bits if root == "STG" else 0,
        int(instruction.opcode == "MUFU.RSQ"),
        int(root == "FMNMX"),
        {"FFMA": 1, "FADD": 1, "FFMA2": 2, "FADD2": 2}.get(root, 0),
    )
    return [own, NOTHING] if instruction.predicate and any(own) else [own]


def least_turn(
    code: Sequence[Instruction],
    after: Sequence[Sequence[int]],
    loops: Sequence[Loop],
    loop: Loop,
    wanted: Totals,
) -> Counter[str] | None:
    """Return the classes on the shortest turn of a loop with exactly these totals, or None where there is none."""
    adds = {i: _totals(code[i]) for i in loop.body}
    most = [sum(column) for column in zip(*(own[0] for own in adds.values() if own), strict=True)]
    if any(map(operator.lt, most, wanted)):
        return None
    headers = {other.header: other.body for other in loops}
    before: dict[int, list[int]] = {i: [] for i in loop.body}
    for i in loop.body:
        for j in after[i]:
            if j in before and i not in headers.get(j, ()):
                before[j].append(i)
    # By totals so far: how many instructions, the one before, and the totals there.
    found: dict[int, dict[Totals, tuple[int, int, Totals]]] = {}
    for i in TopologicalSorter(before).static_order():
        starts = [(0, -1, NOTHING)] if i == loop.header else []
        starts += [(count, j, totals) for j in before[i] for totals, (count, _, _) in found[j].items()]
        states: dict[Totals, tuple[int, int, Totals]] = {}
        for (count, j, totals), own in itertools.product(starts, adds[i]):
            here = tuple(map(operator.add, totals, own))
            fits = all(map(operator.le, here, wanted))
            if fits and (here not in states or count + 1 < states[here][0]):
                states[here] = (count + 1, j, totals)
        found[i] = states
    ends = [(found[i][wanted][0], i) for i in loop.body if loop.header in after[i] and wanted in found[i]]
    if not ends:
        return None
    classes: Counter[str] = Counter()
    i, totals = min(ends)[1], wanted
    while i >= 0:
        classes[class_of(code[i])] += 1
        _, i, totals = found[i][totals]
    return classes


@dataclass(frozen=True)
class Kernel:
    """A kernel's code as a graph."""

    code: Sequence[Instruction]
    after: Sequence[Sequence[int]]
    loops: Sequence[Loop]
    registers: int

    def turn(self, launch: Launch) -> tuple[Turn, float]:
        """Return the shortest turn of a launch for each element, and a thread's instructions outside of the loop.

        Raises:
            ValueError: no loop loads and stores what the launch does.
        """
        for elements in (16, 8, 4):  # the unrolled loop before the one for what is left
            wanted = (
                8 * (launch.loads + launch.tables) * elements,
                8 * launch.stores * elements,
                elements // 2 if launch.noise else 0,
                *(each * elements for each in (launch.clamps, launch.sums)),
            )
            turns = [
                (least_turn(self.code, self.after, self.loops, loop, wanted), loop) for loop in self.loops
            ]
            found = [(classes.total(), classes, loop) for classes, loop in turns if classes]
            if found:
                instructions, classes, loop = min(found, key=lambda one: one[0])
                turn = Turn(elements, instructions, classes)
                return turn, outside(self.code, self.after, self.loops, loop).of_thread
        raise ValueError(f"no loop for {launch}")

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor holds, by their registers."""
        of_warp = -(-self.registers * 32 // 256) * 256
        blocks = min(REGISTERS // (of_warp * BLOCK_THREADS // 32), MOST_WARPS * 32 // BLOCK_THREADS)
        return blocks * BLOCK_THREADS // 32


@dataclass(frozen=True)
class Bound:
    """The least clocks of a row, by what takes them."""

    launch: Launch
    instructions: float
    clocks: Mapping[str, float]  # "issue", the pipes, "LSU"
    registers: int
    warps: int

    def share(self, memory: float) -> float:
        """Return the part of the least time that memory takes, if it takes `memory` clocks."""
        return memory / max(memory, *self.clocks.values())


def bound(kernel: Kernel, launch: Launch, architecture: str) -> Bound:
    """Return what a launch takes at least on an architecture.

    Raises:
        ValueError: the kernel has no loop for it, or an instruction of no known pipe.
    """
    turn, beside = kernel.turn(launch)
    instructions = turn.instructions / turn.elements + beside / ELEMENTS_PER_THREAD
    clocks = {"issue": ROW * instructions / 128}
    for name, pipe in PIPES[architecture].items():
        passes = sum(count * turn.of_class(of) for of, count in pipe.passes.items())
        clocks[name] = ROW * passes / pipe.lanes
    clocks["LSU"] = ROW * (launch.bytes + launch.tables) / LSU_BYTES
    return Bound(launch, instructions, clocks, kernel.registers, kernel.warps)


def bounds(architecture: str, printed: tuple[str, str, str] | None = None) -> dict[str, Bound]:
    """Return the bound of every launch, from the extension as it was built.

    Args:
        architecture: one of `PIPES`.
        printed: what `read_sass` returned of it, or None to call that.

    Raises:
        MissingTool: there is no extension, or no program to read it.
        ValueError: a launch is not found in its kernel.
    """
    sass, elf, said = printed or read_sass(find_extension(), architecture)
    codes, tables, resources = parse_sass(sass), parse_tables(elf), parse_resources(said)
    kernels: dict[str, Kernel] = {}
    found = {}
    for name, launch in launches().items():
        if launch.kernel not in kernels:
            code = codes[launch.kernel]
            after = successors(code, tables.get(launch.kernel, {}))
            kernels[launch.kernel] = Kernel(
                code, after, find_loops(after), resources[launch.kernel].registers
            )
        found[name] = bound(kernels[launch.kernel], launch, architecture)
    return found


def table(architecture: str, found: Mapping[str, Bound]) -> str:
    """Return one architecture's bounds to read, with the share of each of its devices' bandwidth."""
    devices = {name: device for name, device in DEVICES.items() if device.architecture == architecture}
    columns = ["issue", *PIPES[architecture], "LSU"]
    words = ["bytes", "instr.", *columns, "registers", "warps"]
    for name in devices:
        words += [f"{name}: memory", "share"]
    lines = [f"sm_{architecture}, clocks of a multiprocessor for 32 elements", " " * 44 + "  ".join(words)]
    for name, one in found.items():
        cells = [f"{one.launch.bytes}", f"{one.instructions:.1f}", *(f"{one.clocks[c]:.1f}" for c in columns)]
        cells += [f"{one.registers}", f"{one.warps}"]
        for device in devices.values():
            memory = device.row_of_bytes(one.launch.bytes)
            cells += [f"{memory:.1f}", f"{one.share(memory):.0%}"]
        lines.append(f"{name:44}" + "  ".join(c.rjust(len(w)) for c, w in zip(cells, words, strict=True)))
    return "\n".join(lines)


# Cases of the benchmarks on a GPU, and the launches that they measure.
CASES = {
    "gmm_step/K1-cuda/out": "step {dtype}",
    "gmm_step/K8-cuda/out": "step {dtype}, mixture",
    "gmm_step/K8-cuda-guided/out": "step {dtype}, mixture, guided",
    "gmm_step/K1-cuda-x0/out": "step {dtype}, x0",
    "gmm_step/K1-cuda-mixed/out": "step {dtype}, {other} output",
    "gmm_step/K1-cuda-stored2-x0/out": "step {dtype}, two stored, x0",
    "standard_normal/cuda/out": "noise {dtype}",
}


def compared(data: Mapping[str, Any]) -> str:
    """Return the largest measured launches beside their bounds, memory's from the copy of the same run.

    Args:
        data: `results.json` of the benchmarks.

    Raises:
        MissingTool: as for `bounds`.
        ValueError: no data sheet is known of the device.
    """
    gpu = data["environment"]["gpu"]["name"]
    device = next((device for name, device in DEVICES.items() if name.split()[0] in gpu), None)
    if device is None:
        raise ValueError(f"no data sheet is known of {gpu}, only of {', '.join(DEVICES)}")
    found = bounds(device.architecture)
    shape = max((figure["shape"] for figure in data["figures"]), key=math.prod)
    figures = {figure["case"]: figure for figure in data["figures"] if figure["shape"] == shape}
    lines = [
        f"{gpu}, {'x'.join(map(str, shape))}: the least times and the measured one, us",
        f"{'launch':40}arithmetic      copy  measured  ratio",
    ]
    for dtype, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        copy = figures.get(f"copy/out/{dtype}")
        for case, name in CASES.items():
            launch = name.format(dtype=dtype, other=other)
            figure = figures.get(f"{case}/{dtype}")
            if figure is None or copy is None:
                continue
            arithmetic = device.seconds(max(found[launch].clocks.values()), math.prod(shape))
            memory = math.prod(shape) * found[launch].launch.bytes / (1e9 * copy["gigabytes_per_second"])
            ratio = figure["median_s"] / max(arithmetic, memory)
            times = [f"{1e6 * seconds:10.1f}" for seconds in (arithmetic, memory, figure["median_s"])]
            lines.append(f"{launch:40}{''.join(times)}{ratio:7.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bounds; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--architectures", nargs="+", default=list(PIPES), choices=list(PIPES), metavar="N")
    parser.add_argument(
        "--beside", type=Path, metavar="FILE", help="results.json of benchmarks on a GPU: compare their times"
    )
    options = parser.parse_args(arguments)
    try:
        if options.beside:
            print(compared(json.loads(options.beside.read_text(encoding="utf-8"))))
        else:
            print("\n\n".join(table(a, bounds(a)) for a in options.architectures))
    except (MissingTool, ValueError) as error:
        print(f"sass_bound: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
