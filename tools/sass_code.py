"""SASS, the machine code of NVIDIA's GPUs, as instructions, a graph of them, its loops and paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

DTYPES = {"0": "float32", "1": "bfloat16", "2": "float16"}  # template arguments of step_plain_kernel
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
TEMPLATE_TYPES = {"f": "float32", "d": "float64"}


def kernel_name(mangled: str) -> str:
    """Return a kernel's name and template arguments from its symbol, as in `KERNELS`.

    `_ZN9gmmkernel...17step_plain_kernelILi1EEEv...` gives "step_plain bfloat16".
    """
    nested = mangled.startswith("_ZN")
    rest = mangled.removeprefix("_ZN" if nested else "_Z")
    name = ""
    while (nested or not name) and (length := re.match(r"\d+", rest)):
        end = length.end() + int(length.group())
        name, rest = rest[length.end() : end], rest[end:]
    words = [name.removesuffix("_kernel")]
    arguments = re.match(r"I((?:L[a-z]\w+?E|[fd])+)E", rest)
    if arguments:
        for literal, plain in re.findall(r"L([a-z]\w+?)E|([fd])", arguments.group(1)):
            if plain:
                words.append(TEMPLATE_TYPES[plain])
            else:
                words.append(DTYPES.get(literal[1:], literal[1:]))
    return " ".join(words)


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    address: int
    predicate: str  # "P0", "!UP1"; empty: none
    opcode: str  # with its modifiers
    operands: str

    @property
    def root(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def bits(self) -> int:
        """Width of a load or store: 8, 16, 64, 128 or 256 by a modifier, else 32."""
        return next((int(w) for w in re.findall(r"\.[US]?(8|16|64|128|256)(?![0-9])", self.opcode)), 32)


def parse_sass(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each kernel in the output of `cuobjdump -sass`, without the padding at the end."""
    kernels = {}
    for part in text.split("Function : ")[1:]:
        code = [
            Instruction(int(address, 16), predicate, opcode, operands)
            for address, predicate, opcode, operands in INSTRUCTION.findall(part)
        ]
        while code and (code[-1].root == "NOP" or _is_endless(code[-1])):
            code.pop()
        kernels[kernel_name(part.split(maxsplit=1)[0])] = code
    return kernels


def parse_tables(text: str) -> dict[str, dict[int, list[int]]]:
    """Return for each kernel where its branches by a table lead, from the output of `cuobjdump -elf`."""
    tables: dict[str, dict[int, list[int]]] = {}
    for section in re.split(r"^\.nv\.info\.", text, flags=re.MULTILINE)[1:]:
        section = re.split(r"^\.", section, maxsplit=1, flags=re.MULTILINE)[0]
        found = re.findall(r"Indirect Branch: 0x(\w+)[^\n]*\s+Targets:((?:\s+0x[0-9a-f]+)+)", section)
        tables[kernel_name(section.split(maxsplit=1)[0])] = {
            int(address, 16): [int(target, 16) for target in targets.split()] for address, targets in found
        }
    return tables


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, bytes of its stack, and of a block's shared memory."""

    registers: int
    stack: int
    shared: int


def parse_resources(text: str) -> dict[str, Resources]:
    """Return the resources of each kernel in the output of `cuobjdump --dump-resource-usage`."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return {
        kernel_name(name): Resources(int(registers), int(stack) + int(local), int(shared))
        for name, registers, stack, shared, local in found
    }


def _target(instruction: Instruction) -> int | None:
    """Return where a branch leads, None for anything that is not one."""
    if instruction.root not in ("BRA", "CALL") or instruction.opcode.startswith("BRA.DIV"):
        return None
    address = re.search(r"0x([0-9a-f]+)\s*$", instruction.operands)
    if address is None:
        raise ValueError(f"a branch without a target: {instruction}")
    return int(address.group(1), 16)


def _is_endless(instruction: Instruction) -> bool:
    """Whether it is a branch to itself: one follows the last instruction of a kernel."""
    return instruction.root == "BRA" and _target(instruction) == instruction.address


def successors(code: Sequence[Instruction], tables: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Return for each instruction the indices of those that may come next.

    Args:
        code: a kernel's instructions
        tables: the addresses that a branch by a table may lead to, by its own address
    """
    index = {instruction.address: i for i, instruction in enumerate(code)}
    after = []
    for i, instruction in enumerate(code):
        target = _target(instruction)
        # BRA.U has its condition among the operands.
        conditional = bool(instruction.predicate) or "," in instruction.operands
        following = [] if target is None else [index[target]]
        if instruction.root in ("BRX", "BRXU"):
            following = [index[address] for address in tables[instruction.address]]
        ends = bool(following) or instruction.root in ("EXIT", "RET")
        if (conditional or not ends) and i + 1 < len(code):
            following.append(i + 1)
        after.append(following)
    return after


def reach(after: Sequence[Sequence[int]], start: Iterable[int], stop: int = -1) -> dict[int, int]:
    """Return what is reached from `start` and in how many steps; nothing is followed beyond `stop`."""
    steps = dict.fromkeys(start, 0)
    queue = list(steps)
    for i in queue:  # grows while it is gone through
        if i == stop:
            continue
        for j in after[i]:
            if j not in steps:
                steps[j] = steps[i] + 1
                queue.append(j)
    return steps


@dataclass(frozen=True)
class Loop:
    """A loop: the index of its first instruction, and those of all its instructions."""

    header: int
    body: frozenset[int]


def find_loops(after: Sequence[Sequence[int]]) -> list[Loop]:
    """Return the loops that can be reached from the first instruction."""
    before: list[list[int]] = [[] for _ in after]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)
    bodies: dict[int, set[int]] = {}
    for i in sorted(reach(after, [0])):
        for header in after[i]:
            if header <= i and i in (forward := reach(after, [header])):
                bodies.setdefault(header, set()).update(
                    reach(before, [i], stop=header).keys() & forward.keys()
                )
    return [Loop(header, frozenset(body)) for header, body in sorted(bodies.items())]


def longest(after: Sequence[Sequence[int]], loops: Sequence[Loop], start: int, end: int) -> int:
    """Return the number of steps of the longest path from `start` to `end` that goes back in no loop."""
    bodies = {loop.header: loop.body for loop in loops}
    before: dict[int, list[int]] = {i: [] for i in reach(after, [start], stop=end)}
    for i in before:
        if i == end:
            continue
        for j in after[i]:
            if not (j <= i and i in bodies.get(j, ())):
                before[j].append(i)
    steps: dict[int, int] = {}
    for i in TopologicalSorter(before).static_order():
        reached = [steps[j] + 1 for j in before[i] if j in steps]
        if i == start or reached:
            steps[i] = max(reached, default=0)
    return steps[end]


WARPS = 8  # of a block, one of which gathers


@dataclass(frozen=True)
class Outside:
    """What is executed outside of a loop: by every warp before it, by the one that gathers besides, and after it."""

    before: int
    gather: int
    after: int

    @property
    def of_thread(self) -> float:
        """Instructions of a thread, the gathering shared out among all."""
        return self.before + self.gather / WARPS + self.after


def outside(
    code: Sequence[Instruction], after: Sequence[Sequence[int]], loops: Sequence[Loop], loop: Loop
) -> Outside:
    """Return what is executed outside of a loop, as the report's text says.

    Raises:
        ValueError: there is not the one barrier behind which the gathered numbers are read.
    """
    from_entry = reach(after, [0])
    barriers = [i for i in from_entry if code[i].opcode.startswith("BAR.SYNC")]
    if len(barriers) != 1:
        raise ValueError(f"expected 1 barrier, found {len(barriers)}")
    to_barrier = from_entry[barriers[0]]
    leaving = {j for i in loop.body for j in after[i] if j not in loop.body}
    beyond = reach(after, leaving)
    return Outside(
        before=to_barrier + reach(after, barriers)[loop.header],
        gather=longest(after, loops, 0, barriers[0]) - to_barrier,
        after=min(steps for i, steps in beyond.items() if code[i].root == "EXIT") + 1,
    )
