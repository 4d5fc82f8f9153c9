"""PTX text as kernels: parameters, shared memory, registers, and basic blocks of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Instructions that end a basic block: threads part ways, leave, or wait for others.
ENDS_BLOCK = {"bra", "ret", "exit", "trap", "bar", "barrier", "shfl", "redux", "vote"}

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|^\s*\.(?:loc|file|section)\b[^\n]*", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.DOTALL)
_STATEMENT = re.compile(r"\s*(?:([{}])|([\w$]+):(?!:)|([^;]*);)")
_INSTRUCTION = re.compile(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_REGISTERS = re.compile(r"([%\w$]+)(?:<(\d+)>)?")
_VARIABLE = re.compile(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.\w+\s+(?:\d+\s+)?)*([\w$]+)(?:\[(\d*)\])?")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_WIDTHS = {"pred": 1}


class PTXError(Exception):
    """A kernel did what it must not do, or what the interpreter does not know."""


@dataclass(frozen=True)
class Register:
    """A register: its number in the kernel and its bits, 1 for a predicate."""

    number: int
    width: int


@dataclass(frozen=True)
class Constant:
    """A literal; `width` is the bits of a floating-point one, None of an integer, whose width its use decides."""

    bits: int
    width: int | None = None


@dataclass(frozen=True)
class Symbol:
    """The address of a parameter or of shared memory, or a special register."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Negated:
    """A predicate's opposite."""

    predicate: Register


Operand = Register | Constant | Symbol | Address | Negated | tuple["Operand", ...] | None  # None: thrown away


@dataclass(frozen=True)
class Instruction:
    """One instruction; `operands` holds the results first."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str

    @property
    def name(self) -> str:
        """What stands before the first dot."""
        return self.opcode.partition(".")[0]


@dataclass
class Kernel:
    """A kernel as it is written."""

    name: str
    threads: int | None  # most in a block
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and bytes
    shared: dict[str, int] = field(default_factory=dict)  # offset
    shared_bytes: int = 0  # what comes with a launch lies after them
    widths: list[int] = field(default_factory=list)  # of each register
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)  # the block that each begins

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters."""
        return max((offset + size for offset, size in self.parameters.values()), default=0)

    def place_shared(self, alignment: int, name: str, size: int) -> None:
        """Give shared memory to a variable."""
        self.shared[name] = aligned(self.shared_bytes, alignment)
        self.shared_bytes = self.shared[name] + size


def aligned(offset: int, alignment: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-offset // alignment) * alignment


def width_of(name: str) -> int:
    """Return the bits of a type's name such as "b32"."""
    return _WIDTHS.get(name) or int(re.sub(r"\D", "", name))


def parse(text: str) -> dict[str, Kernel]:
    """Return a module's kernels by name."""
    text = _COMMENT.sub("", text)
    kernels = {}
    end = 0
    outside = []
    for head in _ENTRY.finditer(text):
        outside.append(text[end : head.start()])
        end = _closing(text, head.end())
        kernels[head.group(1)] = (head, text[head.end() : end])
    shared = [found for part in outside for found in _shared_variables(part)]
    return {name: _parse_kernel(head, body, shared) for name, (head, body) in kernels.items()}


def _closing(text: str, start: int) -> int:
    """Return where the brace before `start` is closed."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise PTXError("a kernel's body does not end")


def _shared_variables(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield alignment, name and bytes of what is declared; 0 bytes: a launch says how many."""
    for declared in re.findall(r"\.shared\s+([^;]*);", text):
        yield _variable(declared)


def _variable(declared: str) -> tuple[int, str, int]:
    found = _VARIABLE.match(declared.strip())
    if found is None:
        raise PTXError(f"not a variable: {declared}")
    alignment, kind, name, count = found.groups()
    size = width_of(kind) // 8
    return int(alignment or size), name, size * (1 if count is None else int(count or 0))


def _parse_kernel(head: re.Match[str], body: str, shared: list[tuple[int, str, int]]) -> Kernel:
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", head.group(3))
    kernel = Kernel(head.group(1), int(threads.group(1)) if threads else None)
    for declared in filter(str.strip, head.group(2).split(",")):
        alignment, name, size = _variable(declared.strip().removeprefix(".param"))
        kernel.parameters[name] = aligned(kernel.parameter_bytes, alignment), size
    _Body(kernel).read(body)
    # What a launch sizes comes last.
    for alignment, name, size in sorted(shared, key=lambda variable: variable[2] == 0):
        kernel.place_shared(alignment, name, size)
    return kernel


class _Body:
    """The body of a kernel, read statement by statement."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[dict[str, Register]] = [{}]

    def read(self, body: str) -> None:
        position = 0
        body = body.rstrip()
        while position < len(body):
            found = _STATEMENT.match(body, position)
            if found is None:
                raise PTXError(f"not a statement: {body[position : position + 80]}")
            position = found.end()
            brace, label, statement = found.groups()
            if brace == "{":
                self.scopes.append({})
            elif brace == "}":
                self.scopes.pop()
            elif label:
                self.kernel.blocks.append([])
                self.kernel.labels[label] = len(self.kernel.blocks) - 1
            else:
                self.statement(statement.strip())

    def statement(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word == ".reg":
            kind, _, names = rest.strip().partition(" ")
            for name, count in _REGISTERS.findall(names):
                for one in (f"{name}{i}" for i in range(int(count))) if count else (name,):
                    self.scopes[-1][one] = Register(len(self.kernel.widths), width_of(kind[1:]))
                    self.kernel.widths.append(width_of(kind[1:]))
        elif word == ".shared":
            self.kernel.place_shared(*_variable(rest))
        elif word == ".local":
            raise PTXError(f"memory of a thread's own: {text}")
        elif not text.startswith(".") and text:
            self.instruction(text)

    def instruction(self, text: str) -> None:
        found = _INSTRUCTION.match(text)
        if found is None:
            raise PTXError(f"not an instruction: {text}")
        negated, guard, opcode, rest = found.groups()
        predicate = None if guard is None else self.register(guard)
        instruction = Instruction(
            opcode,
            tuple(self.operand(part) for part in _split(rest.replace("|", ","))),
            Negated(predicate) if negated and predicate else predicate,
            " ".join(text.split()),
        )
        self.kernel.blocks[-1].append(instruction)
        if instruction.name in ENDS_BLOCK:
            self.kernel.blocks.append([])

    def register(self, name: str) -> Register:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise PTXError(f"no register {name}")

    def operand(self, text: str) -> Operand:
        text = text.strip()
        if text[0] == "{":
            return tuple(self.operand(part) for part in _split(text[1:-1]))
        if text[0] == "[":
            base, _, offset = text[1:-1].partition("+")
            return Address(self.operand(base), int(offset or "0", 0))
        if text[0] == "!":
            return Negated(self.register(text[1:]))
        if text == "_":
            return None
        if found := _FLOAT.fullmatch(text):
            single, double = found.groups()
            return Constant(int(single or double, 16), 32 if single else 64)
        if _INTEGER.fullmatch(text):
            return Constant(int(text.rstrip("U"), 0))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        return Symbol(text)


def _split(text: str) -> list[str]:
    """Return what commas part, outside of braces and brackets."""
    return [part for part in re.findall(r"\s*((?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+)", text) if part.strip()]
