"""The Triton kernels, executed from the PTX that Triton makes: the bits of the CPU core, by the package's launches."""

from __future__ import annotations

from typing import Any

import elementary_inputs
import numpy as np
import pytest
import torch
from helpers import assert_same_bits

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)

from gmmkernel.backends.reference import elementary  # noqa: E402
from gmmkernel.backends.triton import launch  # noqa: E402
from ptx import cases, instructions, proof  # noqa: E402
from ptx.elementary_kernel import elementary_kernel  # noqa: E402
from ptx.triton_driver import PROGRAMS, TritonOnCpu  # noqa: E402

KERNELS = {program.kernel.__name__ for program in PROGRAMS}
# Of how many cases one is run here: each compiles kernels of its own, which takes seconds.
EVERY = {
    "step": 6,
    "noise": 5,
    "components": 1,
    "backward": 9,
    "density": 7,
    "ratio": 6,
    "exact": 4,
    "training": 11,
}


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


def test_a_bad_index_of_one_sample_makes_that_one_nan(backend: TritonOnCpu) -> None:
    assert proof.index_faults(backend) == []


@pytest.mark.parametrize(
    "values", [elementary_inputs.floats(), elementary_inputs.doubles()], ids=["f32", "f64"]
)
def test_logarithms_and_exponentials_are_those_of_the_reference(backend: TritonOnCpu, values: Any) -> None:
    values = np.ascontiguousarray(values[:: len(values) // 100_000])[: 24 << 12]
    x = torch.from_numpy(values)
    log, exp = torch.empty_like(x), torch.empty_like(x)
    with backend.current(), np.errstate(all="ignore"):
        backend.allow(x, log, exp)
        elementary_kernel[(24,)](x, log, exp, N=1 << 12, enable_fp_fusion=False)
        assert_same_bits(log, torch.from_numpy(elementary.log(values)))
        assert_same_bits(exp, torch.from_numpy(elementary.exp(values)))


def test_instructions_of_an_element_are_within_the_budget(backend: TritonOnCpu) -> None:
    assert instructions.over_budget(backend) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_every_architecture_gives_the_same_bits(architecture: int) -> None:
    backend = TritonOnCpu(architecture)
    every = EVERY if architecture != 90 else dict.fromkeys(cases.OPS, 2)
    assert [line for op in cases.OPS for line in proof.differences(backend, op, every[op])] == []
    assert KERNELS - set(backend.launched) == set()


@pytest.mark.slow
@pytest.mark.parametrize("op", ["step", "noise", "training"])
def test_the_portable_forms_give_the_same_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compilers other than NVIDIA's are given instead of PTX of our own."""
    monkeypatch.setattr(launch, "PTX", False)
    assert proof.differences(TritonOnCpu(90), op, EVERY[op]) == []
