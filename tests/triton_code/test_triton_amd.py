"""What Triton compiles for an AMD GPU: nothing approximated, nothing fused. No such GPU has run it."""

from __future__ import annotations

import re
from functools import cache

import pytest
from covering import check_all

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
import triton_report  # noqa: E402
from test_triton_compiled import DRAWING  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton_report import KERNELS  # noqa: E402

TARGET = GPUTarget("hip", "gfx942", 64)

pytestmark = pytest.mark.slow

EACH = [{"name": name} for name in KERNELS]


@cache
def compiled(name: str) -> tuple[str, str]:
    """Return a kernel's LLVM code and its assembly."""
    made = triton_report.compile_kernel(KERNELS[name], TARGET)
    return made.asm["llir"], made.asm["amdgcn"]


def lanes(code: str, operation: str) -> int:
    """Return how many results calls of an LLVM function have, each lane of a vector counted."""
    return sum(
        int(width or 1) for width in re.findall(rf"call [^@\n]*@llvm\.{operation}\.(?:v(\d+))?f", code)
    )


def divisions(assembly: str) -> int:
    """Return how many quotients are taken."""
    return len(re.findall(r"v_div_fixup", assembly))


def test_the_mode_is_to_nearest_with_subnormals() -> None:
    def check(name: str) -> None:
        _, assembly = compiled(name)
        said = dict(re.findall(r"\.amdhsa_float_(\w+) (\d+)", assembly))
        assert {key: said[key] for key in said if key != "mode"} == {
            "round_mode_32": "0",
            "round_mode_16_64": "0",
            "denorm_mode_32": "3",
            "denorm_mode_16_64": "3",
        }

    check_all(check, EACH)


def test_the_one_approximation_is_the_start_of_a_root() -> None:
    def check(name: str) -> None:
        code, assembly = compiled(name)
        # LLVM corrects a root itself; before Triton 3.9 Triton did, from an estimate of the reciprocal.
        corrected = len(re.findall(r"call [^@\n]*@llvm\.amdgcn\.rsq\.f32", code))
        estimates = re.findall(r"v_(?:sqrt|rsq|rcp|exp|log|sin|cos)\w*_f\d+", assembly)
        # So is that of a quotient: LLVM's division, which rounds correctly, ends in its fix-up.
        quotients = divisions(assembly)
        asked = sum(int(width or 1) for width in re.findall(r"\bfdiv (?:<(\d+) x )?", code))
        assert asked == quotients == len(re.findall(r"v_div_fmas", assembly))
        assert len(re.findall(r"v_rcp\w*_f\d+", assembly)) == quotients
        estimates = [each for each in estimates if not each.startswith("v_rcp")]
        assert estimates.count("v_sqrt_f32") == lanes(code, "sqrt")
        assert estimates.count("v_rsq_f32") == corrected
        assert len(estimates) == lanes(code, "sqrt") + corrected
        assert (len(estimates) > 0) == (name.split()[0] in DRAWING)
        # With an error bound attached, LLVM would leave the instruction's result as it is.
        assert "!fpmath" not in code

    check_all(check, EACH)


def test_nothing_is_fused_unasked() -> None:
    def check(name: str) -> None:
        code, assembly = compiled(name)
        assert not re.search(r"\b(?:fast|contract|reassoc|arcp|afn|fmuladd)\b", code)
        assert not re.search(r"v_(?:mad|mac)\w*_f\d+", assembly)
        # Five fused operations of each quotient's own.
        own = 5 * divisions(assembly)
        assert len(re.findall(r"^\s+v_fma\w*_f64", assembly, re.MULTILINE)) == (
            own if name.endswith("float64") else 0
        )
        packed = len(re.findall(r"^\s+v_pk_fma_f32", assembly, re.MULTILINE))
        mixed = len(re.findall(r"^\s+v_fma_mix(?:lo|hi)_f16", assembly, re.MULTILINE))
        fused = len(re.findall(r"^\s+v_fma\w*_f\d+", assembly, re.MULTILINE)) + 2 * packed - own
        # With a float16 operand, an fma that adds -0 stands for a product, and one that multiplies by 1 for a sum.
        single = len(re.findall(r"^\s+v_fma_mix_f32 [^\n]*, (?:1\.0, |neg\(0\))", assembly, re.MULTILINE))
        fused -= single
        # Two of a root's own. Before a conversion to float16, a product may be written as an fma that adds nothing.
        asked = lanes(code, "fma") + 2 * lanes(code, "sqrt")
        assert asked <= fused <= asked + mixed
        assert mixed == single == 0 or name.endswith("float16")

    check_all(check, EACH)


def test_nothing_spills() -> None:
    def check(name: str) -> None:
        _, assembly = compiled(name)
        kinds = ["vgpr_spill_count", "private_segment_fixed_size"]
        if name != "density-sums float64":  # whose scalars go to lanes of a vector register, not to memory
            kinds.append("sgpr_spill_count")
        for kind in kinds:
            assert set(re.findall(rf"\.{kind}: +(\d+)", assembly)) == {"0"}, kind
        assert "scratch_" not in assembly

    check_all(check, EACH)


def test_tensors_are_read_and_written_16_bytes_at_a_time() -> None:
    for name in ("mixture float32", "mixture bfloat16", "gaussian float16"):
        _, assembly = compiled(name)
        assert set(re.findall(r"global_store_\w+", assembly)) == {"global_store_dwordx4"}
        assert "global_load_dwordx4" in assembly
        assert not re.search(r"global_load_(?:ushort|short|dwordx2)", assembly)
