"""Launches: the threads of a grid, some blocks at a time, over memory that is checked at each access."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptx.arithmetic import DTYPES, Array, ReciprocalRoot, address, library
from ptx.parse import PTXError, aligned
from ptx.translate import DONE, Program

WARP = 32
GRID_LIMITS = (2**31 - 1, 65535, 65535)
NAN_BYTE = 0xFF  # shared memory before anything is written: a NaN, read as any float
POISON = 0xDEADBEEF_DEADBEEF  # registers likewise
_WAITING, _LEFT = 1 << 40, 1 << 41  # of a thread's block number: at a barrier, ended
_MOST_TURNS = 1_000_000


@dataclass
class Machine:
    """A device without a driver.

    Args:
        shuffled: from one barrier to the next, let half of the warps run first, which is drawn.
        reciprocal_root: the machine's approximation.
        blocks_at_once: thread blocks that run together.
        seed: of the random order.
    """

    shuffled: bool = False
    reciprocal_root: ReciprocalRoot = field(default_factory=ReciprocalRoot)
    blocks_at_once: int = 32
    seed: int = 0
    instructions: int = 0  # executed so far, of all threads

    def launch(
        self,
        program: Program,
        grid: tuple[int, int, int],
        threads: int,
        parameters: bytes,
        shared_bytes: int,
        memory: Iterable[tuple[int, int]],
    ) -> None:
        """Run a kernel.

        Args:
            program: the kernel.
            grid: blocks in each direction.
            threads: of a block.
            parameters: the bytes of all.
            shared_bytes: what the launch gives besides the kernel's own.
            memory: what may be accessed, begin and end.

        Raises:
            PTXError: the launch or an instruction is at fault.
        """
        kernel = program.kernel
        if any(not 1 <= n <= most for n, most in zip(grid, GRID_LIMITS, strict=True)):
            raise PTXError(f"grid {grid}")
        if threads % WARP or (kernel.threads is not None and threads > kernel.threads):
            raise PTXError(f"{threads} threads in a block, of {kernel.threads}")
        if len(parameters) != kernel.parameter_bytes:
            raise PTXError(f"{len(parameters)} bytes of parameters for {kernel.parameter_bytes}")
        held = np.zeros(aligned(len(parameters), 64) + 64, np.uint8)
        begin = aligned(held.ctypes.data, 64) - held.ctypes.data
        held[begin : begin + len(parameters)] = np.frombuffer(parameters, np.uint8)
        place = held.ctypes.data + begin
        ranges = merged([*memory, (place, place + len(parameters))])
        rng = np.random.default_rng(self.seed)
        blocks = grid[0] * grid[1] * grid[2]
        with np.errstate(all="ignore"):
            for first in range(0, blocks, self.blocks_at_once):
                numbers = np.arange(first, min(first + self.blocks_at_once, blocks))
                group = Threads(self, program, grid, numbers, threads, place, shared_bytes, ranges)
                group.run(rng if self.shuffled else None)


def merged(ranges: Iterable[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """Return ranges of addresses in order, overlapping ones as one, as machine.c takes them."""
    found: list[list[int]] = []
    for begin, end in sorted(pair for pair in ranges if pair[1] > pair[0]):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return np.array(found, np.uint64).ravel()


class Threads:
    """The threads of some blocks, and what their instructions reach."""

    def __init__(
        self,
        machine: Machine,
        program: Program,
        grid: tuple[int, int, int],
        blocks: np.ndarray[Any, Any],
        threads: int,
        parameters: int,
        shared_bytes: int,
        ranges: np.ndarray[Any, Any],
    ) -> None:
        self.machine, self.program = machine, program
        self.blocks, self.threads = len(blocks), threads
        self.count = len(blocks) * threads
        self.reciprocal_root = machine.reciprocal_root
        self.parameters = np.uint64(parameters)
        self.shared_bytes = program.kernel.shared_bytes + shared_bytes
        stride = aligned(self.shared_bytes, 128)
        self._shared = np.full(self.blocks * stride + 128, NAN_BYTE, np.uint8)
        start = aligned(self._shared.ctypes.data, 128)
        starts = np.uint64(start) + np.uint64(stride) * np.arange(self.blocks, dtype=np.uint64)
        self._shared_starts = np.repeat(starts, threads)
        self._memory = ranges
        self._shared_memory = merged([(start, start + self.blocks * stride)])
        self._lane = np.arange(self.count) % WARP
        self._all = np.ones(self.count, bool)
        block = np.repeat(blocks, threads)
        thread = np.tile(np.arange(threads), self.blocks)
        numbers = {
            "%tid.x": thread,
            "%laneid": self._lane,
            "%ctaid.x": block % grid[0],
            "%ctaid.y": block // grid[0] % grid[1],
            "%ctaid.z": block // (grid[0] * grid[1]),
            "%ntid.x": threads,
            **{f"%nctaid.{axis}": size for axis, size in zip("xyz", grid, strict=True)},
            **dict.fromkeys(("%tid.y", "%tid.z"), 0),
            **dict.fromkeys(("%ntid.y", "%ntid.z"), 1),
        }
        self.special = {name: np.asarray(number).astype(np.uint32)[()] for name, number in numbers.items()}

    def run(self, rng: np.random.Generator | None) -> None:
        """Run all threads to their end: the block of instructions that lies first goes first, by who is there.

        Threads that parted meet again that way. With `rng`, half of the warps wait until the others can go no further.
        """
        poison = {
            1: np.bool_(True),
            **{w: DTYPES[f"u{w}"].type(POISON & (1 << w) - 1) for w in (8, 16, 32, 64)},
        }
        registers = [poison[width] for width in self.program.kernel.widths]
        at: Array = 0  # the block of instructions of each thread, or of all
        first = self._half_of_warps(rng)
        sizes = [len(block) for block in self.program.kernel.blocks]
        for _ in range(_MOST_TURNS):
            if np.ndim(at) == 0 and (first is None or at >= _WAITING):
                if at == _LEFT:
                    return
                if at >= _WAITING:
                    at -= _WAITING
                    first = self._half_of_warps(rng)
                    continue
                self.machine.instructions += self.count * sizes[at]
                at = self._together(self._step(at, False, registers, self._all))
                continue
            at = np.broadcast_to(at, self.count)
            ready = at < _WAITING
            if not ready.any():
                if (at == _LEFT).all():
                    return
                at = self._pass_barrier(at)
                first = self._half_of_warps(rng)
                continue
            if first is not None and (ready & first).any():
                ready = ready & first
            block = int(at[ready].min())
            mask = ready & (at == block)
            running = int(np.count_nonzero(mask))
            self.machine.instructions += running * sizes[block]
            following = self._step(block, running < self.count, registers, mask)
            at = self._together(np.where(mask, following, at))
        raise PTXError(f"{self.program.kernel.name} does not end")

    def _step(self, block: int, masked: bool, registers: list[Array], mask: Array) -> Array:
        """Run a block of instructions; return where each thread, or all, goes next."""
        function = self.program.function(block, masked)
        following = function(registers, self, self.program.constants, mask)
        if np.ndim(following) == 0:
            return _LEFT if following == DONE else int(following)
        return np.where(following == DONE, _LEFT, following)

    def _together(self, at: Array) -> Array:
        """Return one number where all threads are at the same block."""
        if np.ndim(at) == 0:
            return at
        return int(at[0]) if (at == at[0]).all() else at

    def _half_of_warps(self, rng: np.random.Generator | None) -> np.ndarray[Any, Any] | None:
        """Return the threads of about half of the warps, or None."""
        return None if rng is None else np.repeat(rng.random(self.count // WARP) < 0.5, WARP)

    def _pass_barrier(self, at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Let the threads that wait go on: all of a block, at one barrier."""
        by_block = at.reshape(self.blocks, self.threads)
        if (by_block != by_block[:, :1]).any():
            raise PTXError("threads of a block wait at different barriers, or have left")
        return np.where(at == _LEFT, at, at - _WAITING)

    def wait(self, following: int) -> int:
        """Return what stands for waiting, at a barrier before a block."""
        return following + _WAITING

    # ------------------------------------------------------------------------------- memory

    def _place(
        self, space: str, place: Array, size: int, mask: Array | None, text: str
    ) -> tuple[Array, np.ndarray[Any, Any]]:
        """Return addresses and the mask of those that count, one of each where the address is everyone's."""
        if mask is None:
            mask = self._all
        elif np.ndim(mask) == 0:
            mask = np.full(self.count, mask)
        if space == "shared":
            beyond = (place.astype(np.uint64) + np.uint64(size) > self.shared_bytes) & mask
            if beyond.any():
                raise PTXError(f"beyond the {self.shared_bytes} bytes of shared memory: {text}")
            return self._shared_starts + place, mask
        if np.ndim(place) == 0:
            return np.reshape(place, 1), np.reshape(mask.any(), 1)
        return np.ascontiguousarray(place), mask

    def _move(
        self,
        function: Any,
        space: str,
        places: Array,
        mask: Array,
        width: int,
        words: np.ndarray[Any, Any],
        text: str,
    ) -> None:
        ranges = self._shared_memory if space == "shared" else self._memory
        fault = function(
            address(places),
            address(mask),
            len(mask),
            width,
            len(words),
            address(words),
            address(ranges),
            len(ranges) // 2,
        )
        if fault >= 0:
            thread, outside = divmod(fault, 2)
            what = "outside of every tensor" if outside else "misaligned"
            raise PTXError(
                f"{self.program.kernel.name}: {what}: {int(places[thread]):#x}, thread {thread}: {text}"
            )

    def load(
        self, space: str, place: Array, width: int, words: int, mask: Array | None, text: str
    ) -> list[Array]:
        """Return words from memory; one each where all threads read at one address."""
        places, mask = self._place(space, place, width * words, mask, text)
        loaded = np.zeros((words, len(places)), DTYPES[f"u{8 * width}"])
        self._move(library().load, space, places, mask, width, loaded, text)
        return [word[0] if len(places) == 1 else word for word in loaded]

    def store(
        self,
        space: str,
        place: Array,
        width: int,
        words: int,
        mask: Array | None,
        text: str,
        values: list[Array],
    ) -> None:
        """Write words to memory."""
        if np.ndim(place) == 0:
            place = np.full(self.count, place)
        places, mask = self._place(space, place, width * words, mask, text)
        stored = np.zeros((words, self.count), DTYPES[f"u{8 * width}"])
        for word, value in zip(stored, values, strict=True):
            word[:] = value
        self._move(library().store, space, places, mask, width, stored, text)

    # ------------------------------------------------------------------------------- warps

    def _lanes(self, lanes: Array, mask: Array | None) -> np.ndarray[Any, Any]:
        """Return who takes part, by warps; those who run must name one another, and nobody else."""
        running = (self._all if mask is None else mask).reshape(-1, WARP)
        named = np.broadcast_to(lanes, self.count).reshape(-1, WARP)
        here = (running.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1)
        if (running & (named != here[:, None])).any():
            raise PTXError("an instruction of a warp names lanes that are elsewhere")
        return running

    def shuffle(
        self, how: str, a: Array, b: Array, c: Array, lanes: Array, mask: Array | None
    ) -> tuple[Array, Array]:
        """Return another lane's word, and whether it lies in the segment; else a lane's own."""
        running = self._lanes(lanes, mask).ravel()
        a, b, c = (np.broadcast_to(x, self.count) for x in (a, b, c))
        distance, segment, bound = b.astype(int) & 31, c.astype(int) >> 8 & 31, c.astype(int) & 31
        lane = self._lane
        last = lane & segment | bound & ~segment
        source = {
            "bfly": lane ^ distance,
            "up": lane - distance,
            "down": lane + distance,
            "idx": lane & segment | distance & ~segment,
        }[how]
        valid = source >= last if how == "up" else source <= last
        place = np.arange(self.count) - lane + np.where(valid, source, lane)
        if (running & ~running[place]).any():
            raise PTXError("a word from a lane that is elsewhere")
        return a[place], valid

    def reduce(self, a: Array, lanes: Array, mask: Array | None, largest: bool) -> Array:
        """Return the sum of the lanes' words, or the largest of their float32 numbers that are any."""
        running = self._lanes(lanes, mask)
        values = np.broadcast_to(a, self.count).reshape(-1, WARP)
        if largest:
            found = np.fmax.reduce(np.where(running, values, np.float32(-np.inf)), axis=1)
        else:
            found = np.where(running, values, np.uint32(0)).sum(1, dtype=np.uint32)
        return np.repeat(found, WARP)

    def ballot(self, a: Array, lanes: Array, mask: Array | None) -> Array:
        """Return a word with a bit for each lane whose predicate holds."""
        running = self._lanes(lanes, mask)
        votes = running & np.broadcast_to(a, self.count).reshape(-1, WARP)
        words = votes.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)
        return np.repeat(words.sum(1, dtype=np.uint32), WARP)
