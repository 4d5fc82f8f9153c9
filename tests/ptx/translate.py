"""Basic blocks of a kernel as Python functions over arrays: one line for each result of an instruction.

A register holds its bits, unsigned, of all threads, or one NumPy scalar where all have the same. A function takes the
registers, the threads' surroundings (`machine.Threads`), the constants and the mask of the threads that run, and says
which block comes next: a number, or one for each thread. -1 ends a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptx import arithmetic
from ptx.arithmetic import DTYPES
from ptx.operands import Operands
from ptx.parse import (
    ENDS_BLOCK,
    Address,
    Constant,
    Instruction,
    Kernel,
    Operand,
    PTXError,
    Register,
    Symbol,
)

SPACES = ("param", "global", "shared", "const")
DONE = -1
NARROW = ("bf16", "f16")


@dataclass(frozen=True)
class Literal:
    """A constant of the kernel's text: what it is for, its bits and their number."""

    role: str  # "float", "address", or of an integer the instruction's name
    bits: int
    width: int

    def value(self) -> Any:
        """Return it as registers hold it."""
        return DTYPES[f"u{self.width}"].type(self.bits)


class Program:
    """A kernel, translated block by block as it runs."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.literals: dict[Literal, int] = {}  # places in `constants`
        self.constants: list[Any] = []
        self._functions: dict[tuple[int, bool], Callable[..., Any]] = {}

    def function(self, block: int, masked: bool) -> Callable[..., Any]:
        """Return a block's function; `masked` says whether some threads may be elsewhere."""
        key = block, masked
        if key not in self._functions:
            lines = _Block(self, block, masked).lines()
            source = "def run(R, T, K, mask):\n" + "\n".join(f"  {line}" for line in lines)
            namespace = {**vars(arithmetic), **DTYPES}
            exec(compile(source, f"{self.kernel.name}, block {block}", "exec"), namespace)
            self._functions[key] = namespace["run"]
        return self._functions[key]

    def constant(self, role: str, bits: int, width: int) -> str:
        """Return the expression of a constant."""
        literal = Literal(role, bits & (1 << width) - 1, width)
        if literal not in self.literals:
            self.literals[literal] = len(self.constants)
            self.constants.append(literal.value())
        return f"K[{self.literals[literal]}]"


class _Block(Operands):
    """One block's lines."""

    def __init__(self, program: Program, block: int, masked: bool) -> None:
        super().__init__(program.kernel, program.constant)
        self.block, self.masked = block, masked

    def lines(self) -> list[str]:
        instructions = self.kernel.blocks[self.block]
        for instruction in instructions:
            self.instruction(instruction)
        if not instructions or instructions[-1].name not in ENDS_BLOCK:
            self.made.append(f"return {self.next_block}")
        return self.made

    @property
    def next_block(self) -> int:
        following = self.block + 1
        return following if following < len(self.kernel.blocks) else DONE

    # ------------------------------------------------------------------------------- instructions

    def instruction(self, instruction: Instruction) -> None:
        self.mask, self.name = "mask" if self.masked else "", instruction.name
        if instruction.name in ENDS_BLOCK:
            self.end(instruction)
            return
        if instruction.guard is not None:
            guard = self.value(instruction.guard, "pred")
            self.made.append(f"guard = {guard} & mask" if self.masked else f"guard = {guard}")
            self.mask = "guard"
        handler = getattr(self, f"do_{instruction.name}", None)
        if handler is None:
            raise PTXError(f"unknown instruction: {instruction.text}")
        handler(instruction, instruction.opcode.split(".")[1:])

    def arithmetic(self, instruction: Instruction, parts: list[str], allowed: set[str]) -> str:
        """Return an instruction's type; floating-point instructions must round to nearest, and no other way."""
        *options, kind = parts
        if (kind[0] == "f" and "rn" not in options) or set(options) - allowed:
            raise PTXError(f"not arithmetic of the contract: {instruction.text}")
        return kind

    def binary(self, instruction: Instruction, parts: list[str], sign: str) -> None:
        if parts[-1] == "f32x2":
            self.pairs(instruction, parts, lambda a, b: f"{a} {sign} {b}")
            return
        if parts[-1] in NARROW:
            self.widening(instruction, parts, lambda a, b: f"{a} {sign} {b}")
            return
        kind = self.arithmetic(instruction, parts, {"rn"} if parts[-1][0] == "f" else set())
        kind = kind if kind[0] == "f" else f"u{kind[1:]}"
        a, b = self.values(instruction, kind)
        self.set(instruction.operands[0], f"{a} {sign} {b}", kind)

    def widening(self, instruction: Instruction, parts: list[str], expression: Callable[..., str]) -> None:
        """All operands but the last have 16 bits and are widened first."""
        if parts[:-1] != ["rn", "f32"]:
            raise PTXError(f"not arithmetic of the contract: {instruction.text}")
        *narrow, last = instruction.operands[1:]
        operands = [*(self.widened(operand, parts[-1]) for operand in narrow), self.value(last, "f32")]
        self.set(instruction.operands[0], expression(*operands), "f32")

    def widened(self, operand: Operand, kind: str) -> str:
        """Return a number of 16 bits as float32."""
        if kind == "bf16":
            return f"from_bfloat16({self.bits(operand, 16)})"
        return f"{self.value(operand, kind)}.astype(f32)"

    def pairs(self, instruction: Instruction, parts: list[str], expression: Callable[..., str]) -> None:
        """Two float32 in one register of 64 bits."""
        if parts != ["rn", "f32x2"]:
            raise PTXError(f"not arithmetic of the contract: {instruction.text}")
        operands = [f"np.asarray({bits})[..., None].view(f32)" for bits in self.values(instruction, "b64")]
        self.set(instruction.operands[0], f"({expression(*operands)}).view(u64)[..., 0]", "b64")

    def do_add(self, instruction: Instruction, parts: list[str]) -> None:
        self.binary(instruction, parts, "+")

    def do_sub(self, instruction: Instruction, parts: list[str]) -> None:
        self.binary(instruction, parts, "-")

    def do_mul(self, instruction: Instruction, parts: list[str]) -> None:
        if parts[-1][0] == "f":
            self.binary(instruction, parts, "*")
        else:
            self.set(instruction.operands[0], *self.product(instruction, parts))

    def do_mad(self, instruction: Instruction, parts: list[str]) -> None:
        product, kind = self.product(instruction, parts)
        self.set(instruction.operands[0], f"{product} + {self.value(instruction.operands[3], kind)}", kind)

    def product(self, instruction: Instruction, parts: list[str]) -> tuple[str, str]:
        half, kind = parts
        width = int(kind[1:])
        if half == "wide":
            wide = f"{kind[0]}{2 * width}"
            a, b = (f"{self.value(operand, kind)}.astype({wide})" for operand in instruction.operands[1:3])
            return f"{a} * {b}", wide
        a, b = (self.bits(operand, width) for operand in instruction.operands[1:3])
        if half == "hi" and kind[0] == "u":
            return f"high_product({a}, {b})", kind
        if half == "lo":
            return f"{a} * {b}", f"u{width}"
        raise PTXError(f"unknown product: {instruction.text}")

    def do_fma(self, instruction: Instruction, parts: list[str]) -> None:
        if parts[-1] == "f32x2":
            self.pairs(instruction, parts, lambda a, b, c: f"fma({a}, {b}, {c})")
            return
        if parts[-1] in NARROW:
            self.widening(instruction, parts, lambda a, b, c: f"fma({a}, {b}, {c})")
            return
        kind = self.arithmetic(instruction, parts, {"rn"})
        self.set(instruction.operands[0], f"fma({', '.join(self.values(instruction, kind))})", kind)

    def do_div(self, instruction: Instruction, parts: list[str]) -> None:
        kind = self.arithmetic(instruction, parts, {"rn"} if parts[-1][0] == "f" else set())
        a, b = self.values(instruction, kind)
        divided = f"{a} / {b}" if kind[0] == "f" else f"quotient({a}, {b}, False)"
        self.set(instruction.operands[0], divided, kind)

    def do_rem(self, instruction: Instruction, parts: list[str]) -> None:
        (kind,) = parts
        a, b = self.values(instruction, kind)
        self.set(instruction.operands[0], f"quotient({a}, {b}, True)", kind)

    def do_rcp(self, instruction: Instruction, parts: list[str]) -> None:
        kind = self.arithmetic(instruction, parts, {"rn"})
        self.set(instruction.operands[0], f"{kind}.type(1) / {self.values(instruction, kind)[0]}", kind)

    def do_sqrt(self, instruction: Instruction, parts: list[str]) -> None:
        kind = self.arithmetic(instruction, parts, {"rn"})
        self.set(instruction.operands[0], f"np.sqrt({self.values(instruction, kind)[0]})", kind)

    def do_rsqrt(self, instruction: Instruction, parts: list[str]) -> None:
        if parts != ["approx", "ftz", "f32"]:
            raise PTXError(f"not the one approximation that is corrected: {instruction.text}")
        self.set(instruction.operands[0], f"T.reciprocal_root({self.values(instruction, 'f32')[0]})", "f32")

    def do_neg(self, instruction: Instruction, parts: list[str]) -> None:
        (kind,) = parts
        width = int(kind[1:])
        bits = self.bits(instruction.operands[1], width)
        sign = f"{bits} ^ u{width}.type(1 << {width - 1})"
        self.set(
            instruction.operands[0], sign if kind[0] == "f" else f"~{bits} + u{width}.type(1)", f"b{width}"
        )

    def do_abs(self, instruction: Instruction, parts: list[str]) -> None:
        (kind,) = parts
        self.set(instruction.operands[0], f"abs({self.values(instruction, kind)[0]})", kind)

    def do_min(self, instruction: Instruction, parts: list[str]) -> None:
        *options, kind = parts
        if set(options) - {"NaN"}:
            raise PTXError(f"unknown option: {instruction.text}")
        expression, *others = self.values(instruction, kind)  # from sm_100 on, two or three
        for other in others:
            if kind[0] == "f":
                expression = (
                    f"extreme({expression}, {other}, {instruction.name == 'max'}, {'NaN' in options})"
                )
            else:
                expression = f"np.{instruction.name}imum({expression}, {other})"
        self.set(instruction.operands[0], expression, kind)

    do_max = do_min

    def do_setp(self, instruction: Instruction, parts: list[str]) -> None:
        how, *combined, kind = parts
        result, a, b, *other = instruction.operands
        kind = kind.replace("b", "u")
        expression = f"compare({self.value(a, kind)}, {self.value(b, kind)}, {how!r})"
        if combined:
            sign = {"and": "&", "or": "|", "xor": "^"}[combined[0]]
            expression = f"{expression} {sign} {self.value(other[0], 'pred')}"
        elif other:
            raise PTXError(f"two predicates at once: {instruction.text}")
        self.set(result, expression, "pred")

    def do_selp(self, instruction: Instruction, parts: list[str]) -> None:
        result, a, b, chosen = instruction.operands
        kind = f"b{parts[0][1:]}"
        chooses = f"np.where({self.value(chosen, 'pred')}, {self.value(a, kind)}, {self.value(b, kind)})"
        self.set(result, chooses, kind)

    def logic(self, instruction: Instruction, parts: list[str], sign: str) -> None:
        a, b = self.values(instruction, parts[0])
        self.set(instruction.operands[0], f"{a} {sign} {b}", parts[0])

    def do_and(self, instruction: Instruction, parts: list[str]) -> None:
        self.logic(instruction, parts, "&")

    def do_or(self, instruction: Instruction, parts: list[str]) -> None:
        self.logic(instruction, parts, "|")

    def do_xor(self, instruction: Instruction, parts: list[str]) -> None:
        self.logic(instruction, parts, "^")

    def do_not(self, instruction: Instruction, parts: list[str]) -> None:
        self.set(instruction.operands[0], f"~{self.values(instruction, parts[0])[0]}", parts[0])

    def do_lop3(self, instruction: Instruction, parts: list[str]) -> None:
        result, *words, table = instruction.operands
        assert isinstance(table, Constant)
        a, b, c = (self.bits(word, 32) for word in words)
        self.set(result, f"by_table({a}, {b}, {c}, {table.bits})", "b32")

    def do_shl(self, instruction: Instruction, parts: list[str]) -> None:
        kind = parts[0].replace("b", "u")
        result, a, by = instruction.operands
        right = instruction.name == "shr"
        if isinstance(by, Constant) and by.bits < int(kind[1:]):
            number = self.constant(self.name, by.bits, int(kind[1:]))
            expression = f"{self.value(a, kind)} {'>>' if right else '<<'} {number}.view({kind})"
        else:
            expression = f"shift({self.value(a, kind)}, {self.bits(by, 32)}, {right})"
        self.set(result, expression, kind)

    do_shr = do_shl

    def do_shf(self, instruction: Instruction, parts: list[str]) -> None:
        direction, mode, _ = parts
        low, high, by = self.values(instruction, "b32")
        wrap = mode == "wrap"
        self.set(instruction.operands[0], f"funnel({low}, {high}, {by}, {direction == 'r'}, {wrap})", "b32")

    def do_clz(self, instruction: Instruction, parts: list[str]) -> None:
        self.set(instruction.operands[0], f"leading_zeros({self.values(instruction, parts[0])[0]})", "u32")

    def do_popc(self, instruction: Instruction, parts: list[str]) -> None:
        (a,) = self.values(instruction, parts[0])
        self.set(instruction.operands[0], f"np.bitwise_count({a}).astype(u32)", "u32")

    def do_prmt(self, instruction: Instruction, parts: list[str]) -> None:
        if parts != ["b32"]:
            raise PTXError(f"unknown option: {instruction.text}")
        self.set(instruction.operands[0], f"permute({', '.join(self.values(instruction, 'b32'))})", "b32")

    def do_bfe(self, instruction: Instruction, parts: list[str]) -> None:
        (kind,) = parts
        result, a, *place = instruction.operands
        start, length = (self.bits(number, 32) for number in place)
        word = self.bits(a, int(kind[1:]))
        self.set(result, f"extract({word}, {start}, {length}, {kind[0] == 's'})", f"b{kind[1:]}")

    def do_cvt(self, instruction: Instruction, parts: list[str]) -> None:
        *options, to, of = parts
        result, *sources = instruction.operands
        if set(options) - {"rn", "rni", "rzi", "rmi", "rpi"}:
            raise PTXError(f"unknown option: {instruction.text}")
        nearest = options == ["rn"]
        if to in ("bf16x2", "f16x2") and nearest:
            high, low = (self.narrowed(self.value(source, "f32"), to[:-2]) for source in sources)
            self.set(result, f"{high}.astype(u32) << u32.type(16) | {low}.astype(u32)", "b32")
            return
        if of == "bf16" and to == "f32":
            self.set(result, self.widened(sources[0], of), "f32")
            return
        if to == "bf16":
            if not nearest or of != "f32":
                raise PTXError(f"unknown conversion: {instruction.text}")
            self.set(result, self.narrowed(self.value(sources[0], "f32"), to), "b16")
            return
        value = self.value(sources[0], of)
        if of[0] == "f" and to[0] == "f":
            if of == to and options == ["rni"]:
                expression = f"np.rint({value})"
            elif (int(to[1:]) > int(of[1:]) and not options) or (int(to[1:]) < int(of[1:]) and nearest):
                expression = f"{value}.astype({to})"
            else:
                raise PTXError(f"unknown conversion: {instruction.text}")
        elif of[0] == "f":
            expression = f"to_integer({value}, {to}, {options[0]!r})"
        elif to[0] == "f" and not nearest:
            raise PTXError(f"not rounded to nearest: {instruction.text}")
        else:
            expression = f"{value}.astype({to})"
        self.set(result, expression, to)

    def narrowed(self, value: str, to: str) -> str:
        """Return the bits of a float32 rounded to 16 bits."""
        return f"to_bfloat16({value})" if to == "bf16" else f"{value}.astype(f16).view(u16)"

    # ------------------------------------------------------------------------------- moves and memory

    def do_mov(self, instruction: Instruction, parts: list[str]) -> None:
        result, source = instruction.operands
        kind = parts[0]
        if kind == "pred":
            self.set(result, self.value(source, kind), kind)
            return
        width = int(kind[1:])
        if isinstance(source, tuple):
            part = width // len(source)
            pieces = [
                f"({self.bits(piece, part)}.astype(u{width}) << u{width}.type({i * part}))"
                for i, piece in enumerate(source)
            ]
            self.set(result, " | ".join(pieces), f"b{width}")
        elif isinstance(result, tuple):
            part = width // len(result)
            self.made.append(f"whole = {self.bits(source, width)}")
            for i, piece in enumerate(result):
                self.set(piece, f"(whole >> u{width}.type({i * part})).astype(u{part})", f"b{part}")
        else:
            self.set(result, self.bits(source, width), f"b{width}")

    def do_cvta(self, instruction: Instruction, parts: list[str]) -> None:
        if parts != ["to", "global", "u64"]:
            raise PTXError(f"unknown address space: {instruction.text}")
        self.set(instruction.operands[0], self.values(instruction, "b64")[0], "b64")

    def access(self, parts: list[str], place: Operand) -> tuple[str, str, int, int]:
        """Return the arguments of an access: space, address, bytes of a word, words."""
        assert isinstance(place, Address)
        space = next((part for part in parts if part in SPACES), "global")
        width = 64
        if space == "shared" and isinstance(place.base, Register | Symbol):
            width = place.base.width if isinstance(place.base, Register) else 32
        address = self.bits(place.base, width)
        if place.offset:
            address = f"{address} + {self.constant('address', place.offset, width)}"
        vectors = [int(part[1:]) for part in parts if part in ("v2", "v4", "v8")]
        return repr(space), address, int(parts[-1][1:]) // 8, vectors[0] if vectors else 1

    def do_ld(self, instruction: Instruction, parts: list[str]) -> None:
        result, place = instruction.operands
        space, address, width, words = self.access(parts, place)
        arguments = f"{space}, {address}, {width}, {words}, {self.mask or None}, {instruction.text!r}"
        self.made.append(f"loaded = T.load({arguments})")
        kind = parts[-1] if parts[-1][0] == "s" else f"b{8 * width}"
        for i, word in enumerate(result if isinstance(result, tuple) else (result,)):
            self.set(word, f"loaded[{i}].view({kind})" if kind[0] == "s" else f"loaded[{i}]", kind)

    def do_st(self, instruction: Instruction, parts: list[str]) -> None:
        place, source = instruction.operands
        space, address, width, words = self.access(parts, place)
        values = ", ".join(
            self.bits(word, 8 * width) for word in (source if isinstance(source, tuple) else (source,))
        )
        arguments = f"{space}, {address}, {width}, {words}, {self.mask or None}, {instruction.text!r}"
        self.made.append(f"T.store({arguments}, [{values}])")

    # ------------------------------------------------------------------------------- ends of blocks

    def end(self, instruction: Instruction) -> None:
        name, parts = instruction.name, instruction.opcode.split(".")[1:]
        if name in ("bra", "ret", "exit"):
            target = DONE
            if name == "bra":
                assert isinstance(instruction.operands[0], Symbol)
                target = self.kernel.labels[instruction.operands[0].name]
            if instruction.guard is None:
                self.made.append(f"return {target}")
            else:
                guard = self.value(instruction.guard, "pred")
                self.made.append(f"return np.where({guard}, {target}, {self.next_block})")
            return
        if instruction.guard is not None or name == "trap":
            raise PTXError(f"not with a guard: {instruction.text}")
        if name in ("bar", "barrier"):
            self.made.append(f"return T.wait({self.next_block})")
            return
        mask = "mask" if self.masked else None
        if name == "shfl":
            *results, a, b, c, lanes = instruction.operands
            words = ", ".join(self.bits(word, 32) for word in (a, b, c, lanes))
            self.made.append(f"moved, valid = T.shuffle({parts[1]!r}, {words}, {mask})")
            self.set(results[0], "moved", "b32")
            if len(results) > 1:
                self.set(results[1], "valid", "pred")
        elif name == "redux" and parts in (
            ["sync", "add", "u32"],
            ["sync", "add", "s32"],
            ["sync", "max", "f32"],
        ):
            result, a, lanes = instruction.operands
            kind = parts[2].replace("s", "u")
            words = f"{self.value(a, kind)}, {self.bits(lanes, 32)}, {mask}, {kind == 'f32'}"
            self.made.append(f"reduced = T.reduce({words})")
            self.set(result, "reduced", kind)
        elif name == "vote" and parts == ["sync", "ballot", "b32"]:
            result, a, lanes = instruction.operands
            self.made.append(f"votes = T.ballot({self.value(a, 'pred')}, {self.bits(lanes, 32)}, {mask})")
            self.set(result, "votes", "b32")
        else:
            raise PTXError(f"unknown instruction: {instruction.text}")
        self.made.append(f"return {self.next_block}")
