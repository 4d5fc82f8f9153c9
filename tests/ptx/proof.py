"""What is asked of executed kernels, CUDA's and Triton's alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from differentiable import random_density, random_ratio, step_gradients
from helpers import bits, random_case
from losses import random_case as random_training

from gmmkernel import Column
from gmmkernel.backends import cpu
from gmmkernel.backends.reference import elementary, normal
from gmmkernel.backends.reference.density import HALF_LOG_2_PI
from ptx import cases
from ptx.arithmetic import ReciprocalRoot
from ptx.calls import Call, Memory, mapped, recorded
from ptx.parse import Constant, Instruction, Kernel
from ptx.translate import Program

# Besides the coefficients of the reference: signs, halves and scales, infinities and the NaNs that are written.
PLAIN_32 = (0.0, -0.0, 0.5, 1.0, -1.0, -0.5, -2.0, 2.0**-32, -(2.0**-31), np.inf, -np.inf)
PLAIN_64 = (0.0, -0.0, 0.5, 1.0, -1.0, -0.5, -2.0, np.inf, -np.inf)
NANS = {32: (0x7FC00000, 0x7FFFFFFF), 64: (0x7FF8000000000000,)}


def differences(backend: Any, op: str, every: int = 1) -> list[str]:
    """Return what executed kernels compute otherwise than the CPU core: nothing, it is hoped.

    Half of the warps go first in every third call, two of five find a device so small that its grid is chosen as for
    many samples, and the machine's estimates of roots are off by up to 2 ulp in all.

    Args:
        backend: `CudaOnCpu` or `TritonOnCpu`.
        op: one of `cases.OPS`.
        every: of how many cases one is run, besides those marked `always`.
    """
    backend.machine.reciprocal_root = ReciprocalRoot(None)
    found = []
    chosen = [
        run
        for number, run in enumerate(cases.OPS[op]())
        if number % every == 0 or getattr(run, "always", False)
    ]
    calls = ((call, getattr(run, "many", False)) for run in chosen for call in recorded(run))
    for number, (call, many) in enumerate(calls):
        backend.set_small(number % 5 < 2 or many)
        backend.machine.shuffled = number % 3 == 0
        found += call.differences(call.repeat(backend))
    backend.machine.shuffled = False
    return found


def known_floats() -> set[tuple[int, int]]:
    """Return bits and width of each floating-point constant that the mathematics has."""
    both = (HALF_LOG_2_PI, -HALF_LOG_2_PI)
    single = [*normal.LOG_Q, *normal.SIN_S, *normal.COS_C, normal.TWO_LN_2, *both, *PLAIN_32]
    double = [*both, *PLAIN_64]
    for form, numbers in ((elementary.FLOAT32, single), (elementary.FLOAT64, double)):
        for field in dataclasses.fields(form):
            value = getattr(form, field.name)
            if isinstance(value, float):
                numbers += [value, -value]
            elif isinstance(value, tuple):
                numbers += value
        # What takes a significand apart and puts it together, folded by the compiler in part.
        numbers += [2.0**form.fraction_bits, float(form.fraction_bits), -float(form.fraction_bits)]
        numbers.append(form.to_integer + form.bias)
    return {
        *((int(np.float32(number).view(np.uint32)), 32) for number in single),
        *((int(np.float64(number).view(np.uint64)), 64) for number in double),
        *((word, width) for width, words in NANS.items() for word in words),
    }


def constants(kernels: Iterable[Kernel]) -> dict[tuple[int, int], str]:
    """Return bits and width of the kernels' floating-point constants, with an instruction that has each."""
    return {
        (operand.bits, operand.width): f"{kernel.name}: {instruction.text}"
        for kernel in kernels
        for block in kernel.blocks
        for instruction in block
        for operand in operands(instruction)
        if isinstance(operand, Constant) and operand.width is not None
    }


def operands(instruction: Instruction) -> Iterable[Any]:
    """Yield all operands, those in braces too."""
    for operand in instruction.operands:
        yield from operand if isinstance(operand, tuple) else (operand,)


def unshown(backend: Any, program: Program, calls: list[Call]) -> list[str]:
    """Flip the last bit of each of a kernel's constants once; return those that no call's result shows.

    Of integers, those of random words: what is multiplied, added or combined, with more than 16 bits.
    """
    hidden = []
    for literal, place in program.literals.items():
        random_word = (
            literal.role in ("xor", "mul", "mad", "add", "mov") and 2**16 < literal.bits < 2**32 - 2**16
        )
        if literal.role != "float" and not random_word:
            continue
        value = program.constants[place]
        program.constants[place] = value ^ value.dtype.type(1)
        # The call that showed the last one comes first.
        shown = next((call for call in calls if call.differences(call.repeat(backend))), None)
        if shown is None:
            hidden.append(f"{program.kernel.name}: {literal.bits:#x}")
        else:
            calls.remove(shown)
            calls.insert(0, shown)
        program.constants[place] = value
    return hidden


BAD_ROWS = (-1, 2**32, -(2**63))
BAD_STEPS = (-1, 2**32, 2**40)


def index_faults(backend: Any) -> list[str]:
    """Return what is wrong with indices beyond their table: that sample must be NaN, and no other may notice.

    The CPU refuses them; values on a device are not read before a launch.
    """
    faults = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64)):
        for size in (63, 1000):
            options: dict[str, Any] = {
                "shape": (size,), "dtype": dtype, "output_dtype": dtype, "components": 8, "per_sample": True,
                "history": 0,
            }  # fmt: skip
            case = random_case(seed, prediction=None, **options)
            case = dataclasses.replace(case, step=torch.tensor([0, 2**32 - 1, 2]))
            shard = random_case(seed, prediction="mean", **(options | {"components": 0}))
            shard.coefficients[:, Column.SIGMA] = 0.5
            of_samples = {"first_element": torch.tensor([0, 3, 64]), "step": torch.tensor([5, 6, 7])}
            shard = dataclasses.replace(shard, **of_samples)
            runs = [case.run, partial(shard.run, return_log_prob=True, return_components=False)]
            if seed == 0:
                runs.append(dataclasses.replace(case, prediction="x0").run)
                runs.append(random_density(seed, **options).log_prob)
                training = random_training(seed, shape=(size,), dtype=dtype, per_sample=True)
                ratio = random_ratio(seed, shape=(size,), dtype=dtype, output_dtype=dtype, per_sample=True)
                runs += [
                    training.loss,
                    partial(training.noised, first_element=torch.tensor([0, 3, 64])),
                    partial(
                        step_gradients, dataclasses.replace(shard, prediction=None), without=("coefficients",)
                    ),
                    ratio.run,
                    partial(step_gradients, case, without=("coefficients", "offsets", "std")),
                ]
            for sound in (call for run in runs for call in recorded(run)):
                for name, index in (
                    *(("row", bad) for bad in BAD_ROWS),
                    *(("step", bad) for bad in BAD_STEPS),
                    ("first_element", -1),
                    ("first_element", -(2**63)),
                ):
                    if isinstance(getattr(sound.arguments[0][0], name, None), torch.Tensor):
                        faults += at_fault(backend, sound, name, index)
    sample, table = torch.randn(3, 70), torch.randn(4, 5, 70)
    expected, made = torch.empty(2, 3, 5)
    cpu.project(sample, table, torch.arange(3), expected)
    for bad in BAD_ROWS:
        backend.project(sample, table, torch.tensor([0, bad, 2]), made)
        if not made[1].isnan().all() or not torch.equal(made[::2], expected[::2]):
            faults.append(f"project: row {bad}")
    return faults


def at_fault(backend: Any, sound: Call, name: str, index: int, sample: int = 1) -> list[str]:
    """Return what is wrong after a call with an index of one sample changed, and with nines where it writes."""
    before = Memory()
    mapped(sound.arguments, before.copy)
    written = {
        place
        for (place, memory), expected in zip(before.storages.items(), sound.expected, strict=True)
        if not torch.equal(bits(memory), bits(expected))
    }

    def nines(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, 9) if tensor.untyped_storage().data_ptr() in written else tensor

    (inputs, *others), named = mapped(sound.arguments, nines)
    changed = getattr(inputs, name).clone()
    changed[sample] = index
    arguments = (inputs._replace(**{name: changed}), *others), named
    made = dataclasses.replace(sound, arguments=arguments).repeat(backend)
    lines = []
    for place, after, expected in zip(before.storages, made, sound.expected, strict=True):
        if place in written:
            own, right = (tensor.view(len(changed), -1) for tensor in (after, expected))
            rest = [other for other in range(len(own)) if other != sample]
            if not torch.equal(bits(own[rest]), bits(right[rest])):
                lines.append(f"{sound.function}: another sample than {sample} differs")
            wrong = ~own[sample].isnan() if own.is_floating_point() else own[sample] != -1
            if wrong.any():
                lines.append(f"{sound.function}: {name} {index}: {own[sample][wrong][0].item()}")
    return lines
