"""The least times by machine code, on a few lines of it."""

from __future__ import annotations

import pytest
import sass_bound
import sass_code
from test_sass_report import STEP, sass

# A turn of four elements: a tensor and, on one side of a branch, another and an fma; a table's load has a predicate.
LINES = [
    "S2R R3, SR_TID.X",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "loop:LDG.E.128 R4, desc[UR4][R2.64]",
    *["FFMA R4, R5, R6, R7"] * 4,
    "@!P1 BRA <join>",
    "LDG.E.128 R8, desc[UR4][R2.64]",
    *["FFMA R4, R5, R6, R7"] * 4,
    *["IMAD.WIDE.U32 R4, R4, -0x326172a9, RZ"] * 2,
    "join:@P2 LDG.E.128 R12, desc[UR4][R2.64]",
    "@!P2 BRA <store>",
    *["LOP3.LUT R4, R5, R6, R7, 0x96, !PT"] * 9,
    "store:STG.E.128 desc[UR4][R2.64], R4",
    "@!P0 BRA <loop>",
    "EXIT",
]


def kernel() -> sass_bound.Kernel:
    """Return the lines above as a kernel of 80 registers."""
    (code,) = sass_code.parse_sass(sass(STEP, LINES)).values()
    after = sass_code.successors(code, {})
    return sass_bound.Kernel(code, after, sass_code.find_loops(after), registers=80)


def test_the_shortest_turn_that_does_what_the_launch_does() -> None:
    alone, beside = kernel().turn(sass_bound.Launch("", loads=4, stores=4, sums=1))
    # The load, four fmas, two branches and what goes on with them, the store and the branch back.
    assert (alone.elements, alone.instructions) == (4, 1 + 4 + 2 + 1 + 1 + 1)
    assert alone.classes == {"memory": 3, "float": 4, "issue": 3}
    # Two before the loop and EXIT.
    assert beside == 2 + 1
    both, _ = kernel().turn(sass_bound.Launch("", loads=8, stores=4, sums=2))
    assert both.instructions == alone.instructions + 1 + 4 + 2
    table, _ = kernel().turn(sass_bound.Launch("", loads=4, stores=4, sums=1, tables=4))
    assert table.instructions == alone.instructions
    with pytest.raises(ValueError, match="no loop for Launch"):
        kernel().turn(sass_bound.Launch("", loads=16, stores=4, sums=1))


def test_times_of_pipes() -> None:
    launch = sass_bound.Launch("", loads=8, stores=4, sums=2)
    bound = sass_bound.bound(kernel(), launch, "90")
    instructions = 17 / 4 + 3 / 64
    assert bound.instructions == instructions
    assert bound.clocks == {
        "issue": 32 * instructions / 128,
        "FMA": 32 * (2 + 2 * 0.5) / 128,
        "FMA heavy": 32 * 2 * 0.5 / 64,
        "ALU": 0,
        "XU": 0,
        "LSU": 32 * 12 / 128,
    }
    assert sass_bound.bound(kernel(), launch, "80").clocks["FMA"] == 32 * (2 + 2 * 0.5) / 64
    # 80 registers of 32 threads are 2560: three blocks of eight warps.
    assert bound.warps == 24
    assert bound.share(memory=2 * max(bound.clocks.values())) == 1
    assert bound.share(memory=max(bound.clocks.values()) / 2) == 0.5


def test_an_unknown_instruction_is_an_error() -> None:
    (code,) = sass_code.parse_sass(sass(STEP, ["DFMA R2, R4, R6, R8", "EXIT"])).values()
    with pytest.raises(ValueError, match="no pipe is known for DFMA"):
        sass_bound.class_of(code[0])


def test_measured_times_beside_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = sass_bound.bound(kernel(), sass_bound.Launch("", loads=8, stores=4, sums=2), "90")
    monkeypatch.setattr(
        sass_bound, "bounds", lambda architecture: dict.fromkeys(sass_bound.launches(), bound)
    )
    large, small = {"shape": [2, 2**25]}, {"shape": [16]}
    step = {"case": "gmm_step/K1-cuda/out/float32", "median_s": 3e-4}
    copy = {"case": "copy/out/float32", "median_s": 1e-4, "gigabytes_per_second": 4000.0}
    data = {
        "environment": {"gpu": {"name": "NVIDIA H200"}},
        "figures": [step | small, step | large, copy | large],
    }
    *_, line = sass_bound.compared(data).splitlines()
    # 2^26 elements of 12 bytes at the copy's rate; arithmetic by the longest of the clocks.
    arithmetic = 2**26 / 32 * max(bound.clocks.values()) / 132 / 1.98e9 * 1e6
    assert line.split() == ["step", "float32", f"{arithmetic:.1f}", "201.3", "300.0", "1.49"]
    data["environment"]["gpu"]["name"] = "GeForce 256"
    with pytest.raises(ValueError, match="no data sheet is known of GeForce 256, only of A100 80 GB, H100"):
        sass_bound.compared(data)
