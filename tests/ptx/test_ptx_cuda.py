"""The CUDA kernels, executed from the PTX that was built: the bits of the CPU core, on the grids that are launched."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from ptx import cases, cuda, instructions, proof
from ptx.calls import recorded
from ptx.machine import Machine
from ptx.parse import PTXError, parse
from ptx.translate import Program

# What no result shows when its last bit is another: the NaN that is written, whose payload is free; infinite bounds,
# which a NaN in their place leaves without effect; minus a half in a root's correction, which is a rounding error's.
FREE = {"0x7fc00000", "0x7f800000", "0xff800000", "0x0", "0xbf000000"}


@pytest.fixture(scope="module")
def backend() -> cuda.CudaOnCpu:
    """The extension, and what is executed of it."""
    return cuda.CudaOnCpu("80")


def short(name: str) -> str:
    """Return a kernel's name without its namespace and its arguments."""
    found = re.search(r"\d([a-z_]+_kernel)(I\w+?E(?=Ev|v))?", name)
    return "".join(part or "" for part in found.groups()) if found else name


@pytest.mark.parametrize("op", cases.OPS)
def test_bits_are_those_of_the_cpu_core(backend: cuda.CudaOnCpu, op: str) -> None:
    assert proof.differences(backend, op) == []


def test_every_kernel_is_launched(backend: cuda.CudaOnCpu) -> None:
    """By the cases above, which have run in this process or run now, without their comparison."""
    if len(backend.launched) < len(backend.programs):
        for op in cases.OPS:
            for run in cases.OPS[op]():
                for call in recorded(run):
                    call.repeat(backend)
    assert [short(name) for name in backend.programs if name not in backend.launched] == []


def test_no_floating_point_constant_is_other_than_the_mathematics_has(backend: cuda.CudaOnCpu) -> None:
    """Some last bits show once in a million elements: here each constant is looked up."""
    known = proof.known_floats()
    found = proof.constants(program.kernel for program in backend.programs.values())
    assert {place for constant, place in found.items() if constant not in known} == set()


def test_a_bad_index_of_one_sample_makes_that_one_nan(backend: cuda.CudaOnCpu) -> None:
    assert proof.index_faults(backend) == []


def test_instructions_of_an_element_are_within_the_budget(backend: cuda.CudaOnCpu) -> None:
    assert instructions.over_budget(backend) == []


@pytest.mark.slow
def test_every_last_bit_shows(backend: cuda.CudaOnCpu) -> None:
    """Of plain steps and of noise in float32; of the others, `test_no_floating_point_constant` has all."""
    hidden = []
    for op, pattern in (("step", "step_plain"), ("noise", "standard_normal_(any|common_kernelILi0)")):
        calls = [call for run in cases.OPS[op]() for call in recorded(run)]
        for name, program in backend.programs.items():
            if re.match(pattern, short(name)):
                hidden += proof.unshown(backend, program, own_calls(backend, name, calls))
    assert {line for line in hidden if line.split()[-1] not in FREE} == set()


def own_calls(backend: cuda.CudaOnCpu, name: str, calls: list[Any]) -> list[Any]:
    """Return the calls that launch a kernel."""
    own = []
    for call in calls:
        before = backend.launched[name]
        call.repeat(backend)
        if backend.launched[name] > before:
            own.append(call)
    return own


@pytest.mark.slow
def test_the_newest_architectures_code_gives_the_same_bits() -> None:
    newest = cuda.CudaOnCpu("120")
    assert [line for op in cases.OPS for line in proof.differences(newest, op)] == []
    assert [short(name) for name in newest.programs if name not in newest.launched] == []


FAULTS = {  # a line of PTX, and what is wrong with it
    "a rounding left to the assembler": "add.f32 %f1, %f1, %f1;",
    "beyond the tensors": "ld.global.u32 %r1, [%rd1+64];",
    "misaligned": "ld.global.u32 %r1, [%rd1+2];",
    "lanes that are elsewhere": "@%p1 bra END; vote.sync.ballot.b32 %r1, %p1, -1;",
    "a barrier that some never reach": "@%p1 bra END; bar.sync 0;",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_machine_refuses(fault: str) -> None:
    """Without this nothing above says anything of bounds, barriers and masks."""
    memory = torch.zeros(16, dtype=torch.int32)
    text = f"""
        .visible .entry kernel(.param .u64 place) {{
        .reg .pred %p<2>; .reg .b32 %r<3>; .reg .f32 %f<2>; .reg .b64 %rd<2>;
        ld.param.u64 %rd1, [place];
        mov.u32 %r2, %tid.x;
        setp.lt.u32 %p1, %r2, 7;
        {FAULTS[fault]}
        END: ret;
        }}"""
    place = memory.data_ptr()
    launch = ((1, 1, 1), 64, place.to_bytes(8, "little"), 0, [(place, place + 64)])
    Machine().launch(Program(parse(text.replace(FAULTS[fault], ""))["kernel"]), *launch)
    with pytest.raises(PTXError):
        Machine().launch(Program(parse(text)["kernel"]), *launch)
