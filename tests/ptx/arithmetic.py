"""What instructions compute, on arrays of one entry for each thread, as the PTX manual defines it.

NumPy rounds to nearest even, and so does every arithmetic instruction of the kernels: `translate` refuses another.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ptx.parse import PTXError

Array = Any  # an array, or a NumPy scalar where all threads have the same

DTYPES: dict[str, Any] = {
    **{f"{kind}{width}": np.dtype(f"u{width // 8}") for kind in "bu" for width in (8, 16, 32, 64)},
    **{f"s{width}": np.dtype(f"i{width // 8}") for width in (8, 16, 32, 64)},
    **{f"f{width}": np.dtype(f"f{width // 8}") for width in (16, 32, 64)},
}
_NAN = {32: np.uint32(0x7FFFFFFF), 64: np.uint64(0x7FFFFFFFFFFFFFFF)}  # what an instruction returns


@cache
def library() -> ctypes.CDLL:
    """Return machine.c, compiled."""
    source = Path(__file__).with_name("machine.c")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "machine.so"
        subprocess.run(
            ["cc", "-O2", "-march=native", "-shared", "-fPIC", "-o", made, source, "-lm"], check=True
        )
        loaded = ctypes.CDLL(str(made))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    for function in (loaded.fma_f32, loaded.fma_f64):
        function.argtypes = [*[pointer, number] * 4]
    for function in (loaded.load, loaded.store):
        function.restype = number
        function.argtypes = [pointer, pointer, number, number, number, pointer, pointer, number]
    return loaded


def address(array: np.ndarray[Any, Any]) -> int:
    """Return where an array begins."""
    place: int = array.__array_interface__["data"][0]
    return place


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a b + c, rounded once."""
    shapes = {x.shape for x in (a, b, c) if x.ndim}
    if len(shapes) > 1:
        a, b, c = np.broadcast_arrays(a, b, c)
    result = np.zeros(np.broadcast_shapes(*shapes), a.dtype)
    steps = []
    for x in (a, b, c):
        x = np.ascontiguousarray(x)
        steps += [x, int(x.size > 1)]
    (a, a_step, b, b_step, c, c_step) = steps
    function = library().fma_f32 if a.dtype == np.float32 else library().fma_f64
    function(address(a), a_step, address(b), b_step, address(c), c_step, address(result), result.size)
    return result


def extreme(a: Array, b: Array, largest: bool, nan: bool) -> Array:
    """Return min or max: -0 is less than +0, and a NaN is left out unless `nan` or both are."""
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    a_bits, b_bits = a.view(unsigned), b.view(unsigned)
    result = np.where(a > b, a, b) if largest else np.where(a < b, a, b)
    zeros = (a_bits & b_bits) if largest else (a_bits | b_bits)
    bits = np.where((a == 0) & (b == 0), zeros, result.view(unsigned))
    no_a, no_b = a != a, b != b
    bits = np.where(no_a, b_bits, np.where(no_b, a_bits, bits))
    return np.where(no_a | no_b if nan else no_a & no_b, _NAN[a.dtype.itemsize * 8], bits).view(a.dtype)


def compare(a: Array, b: Array, how: str) -> Array:
    """Return a comparison's predicate; false for a NaN, but true where its name ends in u ("unordered")."""
    names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}  # of unsigned numbers
    operations: dict[str, Callable[[Array, Array], Array]] = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }
    unordered = (a != a) | (b != b)
    if how in ("num", "nan"):
        return unordered if how == "nan" else ~unordered
    if how[:-1] in operations and how[-1] == "u":
        return operations[how[:-1]](a, b) | unordered
    return operations[names.get(how, how)](a, b) & ~unordered


def shift(a: Array, by: Array, right: bool) -> Array:
    """Return a shift by an unsigned number that may exceed the width."""
    width = a.dtype.itemsize * 8
    within = np.minimum(by, by.dtype.type(width - 1)).astype(a.dtype)
    shifted = a >> within if right else a << within
    if right and a.dtype.kind == "i":
        return shifted
    return np.where(by >= width, a.dtype.type(0), shifted)


def funnel(low: Array, high: Array, by: Array, right: bool, wrap: bool) -> Array:
    """Return 32 bits of the 64 of two words, shifted."""
    by = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(np.uint64)
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    shifted = both >> by if right else (both << by) >> np.uint64(32)
    return shifted.astype(np.uint32)


def high_product(a: Array, b: Array) -> Array:
    """Return the upper half of an unsigned product."""
    if a.dtype.itemsize == 4:
        return (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    middle = (a_low * b_low >> half) + a_high * b_low
    lower = (middle & low) + a_low * b_high
    return a_high * b_high + (middle >> half) + (lower >> half)


def quotient(a: Array, b: Array, remainder: bool) -> Array:
    """Return a quotient rounded to zero, or its remainder; of a division by 0 what hardware gives."""
    by_zero = b == 0
    divisor = np.where(by_zero, b.dtype.type(1), b)
    rest = np.fmod(a, divisor)
    if remainder:
        return np.where(by_zero, a, rest)
    return np.where(by_zero, ~b.dtype.type(0), (a - rest) // divisor)


def leading_zeros(a: Array) -> Array:
    """Return how many zeros come before the first one bit."""
    width = a.dtype.itemsize * 8
    for distance in (1 << k for k in range((width - 1).bit_length())):
        a = a | a >> a.dtype.type(distance)
    return np.uint32(width) - np.bitwise_count(a).astype(np.uint32)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """Return four bytes chosen from the eight of two words."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.uint32(0)
    for position in range(4):
        chosen = selector >> np.uint32(4 * position) & np.uint32(15)
        byte = both >> (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(chosen & np.uint32(8), sign, byte)
        result = result | byte.astype(np.uint32) << np.uint32(8 * position)
    return result


def by_table(a: Array, b: Array, c: Array, table: int) -> Array:
    """Return what a truth table says of three words' bits."""
    result = np.uint32(0)
    for row in (row for row in range(8) if table >> row & 1):
        result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def extract(a: Array, position: Array, length: Array, signed: bool) -> Array:
    """Return a field of an unsigned word; beyond its end, and of a signed one above it, lies its sign."""
    width = a.dtype.itemsize * 8
    position, length = (np.minimum(x & np.uint32(255), np.uint32(width)) for x in (position, length))
    above = shift(~np.zeros_like(a), length, right=False)
    last = np.minimum(np.maximum(position + length, np.uint32(1)), np.uint32(width)) - np.uint32(1)
    negative = signed & (length > 0) & (shift(a, last, right=True) & a.dtype.type(1)).astype(bool)
    field = shift(a.view(f"i{width // 8}") if signed else a, position, right=True).view(a.dtype)
    return np.where(negative, field | above, field & ~above)


def to_bfloat16(a: Array) -> Array:
    """Return the bits of a float32 rounded to bfloat16."""
    bits = a.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd >> np.uint32(16)).astype(np.uint16)
    return np.where(a != a, np.uint16(0x7FFF), rounded)


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 of a bfloat16's bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_integer(a: Array, dtype: Any, mode: str) -> Array:
    """Return a number as an integer: the nearest that there is, 0 for a NaN."""
    rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
    whole = rounding[mode](np.where(a != a, a.dtype.type(0), a).astype(np.float64))
    limits = np.iinfo(dtype)
    over = whole >= float(limits.max) + 1
    inside = np.clip(whole, float(limits.min), np.nextafter(float(limits.max) + 1, 0)).astype(dtype)
    return np.where(over, dtype.type(limits.max), inside)


class ReciprocalRoot:
    """`rsqrt.approx.ftz.f32`, which hardware may return some units in the last place off."""

    def __init__(self, ulps: int | None = 0, seed: int = 0) -> None:
        """Be `ulps` off everywhere, or by another number from -2 to 2 at each call where that is None."""
        self._ulps = ulps
        self._rng = np.random.default_rng(seed)

    def __call__(self, a: Array) -> Array:
        a = np.where(abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)
        exact = (1 / np.sqrt(a.astype(np.float64))).astype(np.float32)
        off = self._rng.integers(-2, 3, np.shape(a)) if self._ulps is None else self._ulps
        moved = (exact.view(np.int32) + np.asarray(off, np.int32)).view(np.float32)
        return np.where(np.isfinite(exact) & (exact > 0), moved, exact)


def refuse(message: str) -> Any:
    """Raise an error about an instruction."""
    raise PTXError(message)
