"""The Triton kernels, executed from the PTX that Triton makes: the bits of the CPU core, by the package's launches."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)

from gmmkernel.backends.triton import (  # noqa: E402
    launch,
    launch_backward,
    launch_density,
    launch_low_rank,
    launch_sums,
    launch_training,
)
from gmmkernel.backends.triton.program import Program  # noqa: E402
from ptx import cases, instructions, proof  # noqa: E402
from ptx.triton_driver import TritonOnCpu  # noqa: E402

pytestmark = pytest.mark.xdist_group("ptx_triton")

MODULES = (launch, launch_backward, launch_density, launch_low_rank, launch_sums, launch_training)
KERNELS = {
    value.kernel.__name__
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, Program)
}
# Of how many cases one is run here: each compiles kernels of its own, which takes seconds.
EVERY = {"step": 4, "noise": 5, "components": 1, "backward": 5, "density": 6, "low_rank": 7, "training": 11}


@pytest.fixture(scope="module")
def backend() -> TritonOnCpu:
    """Triton for compute capability 9.0."""
    return TritonOnCpu(90)


@pytest.mark.parametrize("op", cases.OPS)
def test_bits_are_those_of_the_cpu_core(backend: TritonOnCpu, op: str) -> None:
    assert proof.differences(backend, op, EVERY[op]) == []


def test_every_kernel_is_launched(backend: TritonOnCpu) -> None:
    """By the cases above, which have run in this process or run now."""
    if set(backend.launched) < KERNELS:
        for op in cases.OPS:
            proof.differences(backend, op, EVERY[op])
    assert KERNELS - set(backend.launched) == set()


def test_no_floating_point_constant_is_other_than_the_mathematics_has(backend: TritonOnCpu) -> None:
    known = proof.known_floats()
    found = proof.constants(program.kernel for program in backend.programs)
    assert {place for constant, place in found.items() if constant not in known} == set()


def test_instructions_of_an_element_are_within_the_budget(backend: TritonOnCpu) -> None:
    assert instructions.over_budget(backend) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_every_architecture_gives_the_same_bits(architecture: int) -> None:
    backend = TritonOnCpu(architecture)
    every = EVERY if architecture != 90 else dict.fromkeys(cases.OPS, 1)
    assert [line for op in cases.OPS for line in proof.differences(backend, op, every[op])] == []
    assert KERNELS - set(backend.launched) == set()


@pytest.mark.slow
@pytest.mark.parametrize("op", ["step", "noise", "training"])
def test_the_portable_forms_give_the_same_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compilers other than NVIDIA's are given instead of PTX of our own."""
    for module in MODULES:
        if hasattr(module, "PTX"):
            monkeypatch.setattr(module, "PTX", False)
    assert proof.differences(TritonOnCpu(90), op, EVERY[op]) == []
