"""Operands of instructions as Python expressions, and results as lines that write registers."""

from __future__ import annotations

from collections.abc import Callable

from ptx.parse import Constant, Instruction, Kernel, Negated, Operand, PTXError, Register, Symbol


class Operands:
    """The lines of some instructions, so far.

    Args:
        kernel: theirs.
        constant: returns the expression of a constant, given what it is for, its bits and their number.
    """

    def __init__(self, kernel: Kernel, constant: Callable[[str, int, int], str]) -> None:
        self.kernel, self.constant = kernel, constant
        self.made: list[str] = []
        self.mask = ""  # of the instruction at hand
        self.name = ""  # its name

    def bits(self, operand: Operand, width: int) -> str:
        """Return the expression of an operand's bits; a wider register gives its lower ones."""
        if isinstance(operand, Register):
            if operand.width < width:
                raise PTXError(f"{width} bits of a register of {operand.width}")
            return f"R[{operand.number}]" + ("" if operand.width == width else f".astype(u{width})")
        if isinstance(operand, Constant):
            if operand.width not in (None, width):
                raise PTXError(f"a constant of {operand.width} bits for {width}")
            return self.constant("float" if operand.width else self.name, operand.bits, width)
        if isinstance(operand, Symbol):
            if operand.name in self.kernel.parameters:
                offset, _ = self.kernel.parameters[operand.name]
                return f"(T.parameters + {self.constant('address', offset, 64)})"
            if operand.name in self.kernel.shared:
                return self.constant("address", self.kernel.shared[operand.name], width)
            return f"T.special[{operand.name!r}]"
        raise PTXError(f"not an operand: {operand}")

    def value(self, operand: Operand, kind: str) -> str:
        """Return the expression of an operand as a type's numbers, "pred" for a predicate."""
        if kind == "pred":
            if isinstance(operand, Negated):
                return f"~R[{operand.predicate.number}]"
            if isinstance(operand, Constant):
                return f"np.bool_({bool(operand.bits)})"
            assert isinstance(operand, Register)
            return f"R[{operand.number}]"
        bits = self.bits(operand, int(kind[1:]))
        return bits if kind[0] in "bu" else f"{bits}.view({kind})"

    def values(self, instruction: Instruction, kind: str) -> list[str]:
        """Return all of an instruction's operands but the result."""
        return [self.value(operand, kind) for operand in instruction.operands[1:]]

    def set(self, result: Operand, expression: str, kind: str) -> None:
        """Write a result for the threads that run; a wider register takes it extended."""
        if result is None:
            return
        assert isinstance(result, Register)
        if kind != "pred":
            width = int(kind[1:])
            if result.width < width:
                raise PTXError(f"a result of {width} bits for a register of {result.width}")
            if result.width > width:
                if kind[0] == "f":
                    raise PTXError(f"{kind} for a register of {result.width} bits")
                expression, kind = (
                    f"({expression}).astype({kind[0]}{result.width})",
                    f"{kind[0]}{result.width}",
                )
            if kind[0] in "sf":
                expression = f"({expression}).view(u{result.width})"
        target = f"R[{result.number}]"
        masked = f"np.where({self.mask}, {expression}, {target})" if self.mask else expression
        self.made.append(f"{target} = {masked}")
