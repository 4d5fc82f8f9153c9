"""Report what Triton makes of its kernels: registers, spills, widths of loads, instructions per element.

As tools/sass_report.py does for nvcc's, and as little in need of a GPU. Run

    python tools/triton_report.py                    # a table for sm_80, sm_90 and sm_100
    python tools/triton_report.py --check            # compare with the budget, exit 1 when over
    python tools/triton_report.py --write-budget     # after a deliberate change, with the budget's Triton

Kernels are compiled as a launch would compile them: sizes are 64-bit, nothing is known of addresses. A thread's
elements are unrolled, so there is no loop to count. **Instructions per element**, everything included, of a thread
that has a full tile's 32 elements: the shortest path by every 16-byte load, root and store in their order, over 32.
Spills are given as the number of instructions that store and load them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import triton
from cuda_binary import ROOT, MissingTool, find_cuobjdump, read_sass
from sass_code import Instruction, parse_resources, parse_sass, reach, successors
from sass_report import (
    ARCHITECTURES,
    MEMORY,
    KernelReport,
    budget_release,
    load_budget,
    over_budget,
    over_required,
    to_budget,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gmmkernel.backends.triton import launch
from gmmkernel.backends.triton.backward import step_backward_kernel
from gmmkernel.backends.triton.coefficient_sums import coefficient_sums_kernel
from gmmkernel.backends.triton.density import density_sums_kernel, log_prob_kernel
from gmmkernel.backends.triton.density_backward import (
    add_density_entries_kernel,
    add_weights_kernel,
    density_backward_kernel,
)
from gmmkernel.backends.triton.noise import draw_components_kernel, standard_normal_kernel
from gmmkernel.backends.triton.program import WARPS
from gmmkernel.backends.triton.project import project_kernel
from gmmkernel.backends.triton.ratio import ratio_backward_kernel, ratio_sums_kernel
from gmmkernel.backends.triton.step import step_kernel
from gmmkernel.backends.triton.sums import sum_level_kernel
from gmmkernel.backends.triton.tables import add_entries_kernel, add_rows_kernel, entries_kernel
from gmmkernel.backends.triton.training import (
    add_noise_kernel,
    finish_loss_kernel,
    scale_residual_kernel,
    skip_loss_backward_kernel,
    skip_loss_kernel,
)

BUDGET = ROOT / "tests" / "triton_code" / "budget.json"
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
WITH_FLOAT64 = TYPES | {"float64": "fp64"}
TABLE_TYPES = {"float32": "fp32", "float64": "fp64"}
ELEMENTS_PER_THREAD = launch.LARGE_TILE // (32 * WARPS)

# What the mixture step may cost, whatever the budget file says: instructions per element, prologue included.
REQUIRED = {("sm_90", f"mixture {dtype}"): 48.0 if dtype == "float32" else 52.0 for dtype in TYPES}


@dataclass(frozen=True)
class Kernel:
    """One kernel and what it is compiled for."""

    function: Any
    tensors: Mapping[str, str]  # the types of those that are there; absent ones are None
    constants: Mapping[str, Any]

    def source(self, *, ptx: bool = True) -> ASTSource:
        """Return what `triton.compile` takes."""
        constants = {**self.constants, "PTX": ptx}
        signature, known = {}, {}
        for parameter in self.function.params:
            name = parameter.name
            if parameter.do_not_specialize:
                signature[name] = "i64"
            elif name in self.tensors:
                signature[name] = f"*{self.tensors[name]}"
            else:
                signature[name], known[name] = "constexpr", constants.get(name)
        return ASTSource(fn=self.function, signature=signature, constexprs=known)


def step(dtype: str, variant: str) -> Kernel:
    """Return a step: `mixture`, `gaussian` and `whole` on large full tiles, `everything` and `scored` on small ones.

    `whole` reads and writes all that a step can, and `everything` as well, where noise may begin anywhere.
    """
    table_type = "fp64" if dtype == "fp64" else "fp32"
    tensors = dict.fromkeys(("x", "output", "result"), dtype) | {"coefficients": table_type, "seeds": "i64"}
    constants = {"TILE": launch.LARGE_TILE, "PREDICTION": 0, "MOST": 64, "WHOLE": True}
    if variant == "scored":
        tensors |= {"sums": table_type, "first_elements": "i64"}
        constants |= {"TILE": launch.SMALL_TILE, "SHARD": True, "WHOLE": False}
    elif variant != "gaussian":
        tensors |= {"cdf": "i64", "offsets": table_type, "std": table_type}
    if variant in ("whole", "everything"):
        tensors |= dict.fromkeys(("uncond", *(f"history{j}" for j in range(4)), "prediction"), dtype)
        tensors |= dict.fromkeys(("components", "rows", "steps"), "i64")
        constants |= {"PREDICTION": 2, "MOST": 1024}
    if variant == "everything":
        constants |= {"TILE": launch.SMALL_TILE, "WHOLE": False}
    return Kernel(step_kernel, tensors, constants)


def noise(dtype: str) -> Kernel:
    """Return noise on large full tiles."""
    tensors = {"result": dtype, "seeds": "i64", "steps": "i64"}
    return Kernel(standard_normal_kernel, tensors, {"STREAM": 2, "TILE": launch.LARGE_TILE, "WHOLE": True})


def backward(dtype: str, variant: str) -> Kernel:
    """Return the gradients of a step's tensors: `backward` of common ones on large full tiles, or `backward-all`."""
    tensors = dict.fromkeys(("x", "output", "grad", "grad_x", "grad_output"), dtype)
    tensors |= {"coefficients": "fp64" if dtype == "fp64" else "fp32"}
    constants = {"TILE": launch.LARGE_TILE, "PREDICTION": 0, "WHOLE": True}
    if variant == "backward-all":
        tensors |= dict.fromkeys(("uncond", "grad_prediction", "grad_uncond"), dtype)
        tensors |= dict.fromkeys((f"grad_history{j}" for j in range(4)), dtype)
        tensors |= dict.fromkeys(("rows", "steps"), "i64")
        constants |= {"TILE": launch.SMALL_TILE, "PREDICTION": 2, "WHOLE": False}
    return Kernel(step_backward_kernel, tensors, constants)


def coefficient_sums(dtype: str) -> Kernel:
    """Return the sums for the gradients of coefficients, with everything that a step can have."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    samples = ("x", "output", "uncond", *(f"history{j}" for j in range(4)), "grad", "grad_prediction")
    tensors = dict.fromkeys(samples, dtype) | dict.fromkeys(("sums", "coefficients", "offsets"), table_type)
    tensors |= dict.fromkeys(("entries", "steps", "seeds"), "i64")
    return Kernel(coefficient_sums_kernel, tensors, {"PREDICTION": 2})


def add_entries(dtype: str, *, std: bool) -> Kernel:
    """Return the sums over samples of one table's gradients, on full tiles."""
    tensors = {"table": "fp64" if dtype == "fp64" else "fp32", "grad": dtype}
    tensors |= {"coefficients": tensors["table"]} | dict.fromkeys(("entries", "steps", "seeds"), "i64")
    return Kernel(add_entries_kernel, tensors, {"STD": std, "TILE": launch.SMALL_TILE, "WHOLE": True})


def density_sums(dtype: str) -> Kernel:
    """Return the sums that log-densities are made of, with everything that a step can have."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    samples = ("x", "output", "uncond", *(f"history{j}" for j in range(4)), "prev_sample")
    tensors = dict.fromkeys(samples, dtype) | {"rows": "i64"}
    tensors |= dict.fromkeys(("sums", "coefficients", "offsets", "std"), table_type)
    return Kernel(density_sums_kernel, tensors, {})


def density_backward(dtype: str) -> Kernel:
    """Return what takes log-densities back to the mean, with everything that a step can have."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    samples = ("x", "output", "uncond", *(f"history{j}" for j in range(4)), "prev_sample", "grad_prev_sample")
    tables = ("distance", "flow", "sums", "responsibilities", "grad", "coefficients", "offsets", "std")
    tensors = dict.fromkeys(samples, dtype) | dict.fromkeys(tables, table_type) | {"rows": "i64"}
    return Kernel(density_backward_kernel, tensors, {})


def add_density_entries(dtype: str, *, std: bool) -> Kernel:
    """Return the sums over samples of one table's gradients of log-densities."""
    tables = ("table", "distance", "responsibilities", "grad", "coefficients", "offsets", "std")
    return Kernel(add_density_entries_kernel, dict.fromkeys(tables, dtype) | {"rows": "i64"}, {"STD": std})


def add_weights(dtype: str) -> Kernel:
    """Return the sums over samples of the weights' gradients."""
    tables = ("table", "responsibilities", "grad", "weights")
    return Kernel(add_weights_kernel, dict.fromkeys(tables, dtype) | {"rows": "i64"}, {})


def log_prob(dtype: str) -> Kernel:
    """Return the log-density of a sample, from its sums."""
    tensors = dict.fromkeys(("result", "responsibilities", "sums", "weights"), dtype) | {"rows": "i64"}
    return Kernel(log_prob_kernel, tensors, {})


def ratio(dtype: str, *, backward: bool) -> Kernel:
    """Return the sums that log-ratios are made of, or their gradients, with everything that a step can have."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    stored = tuple(f"history{j}" for j in range(4))
    samples = ("x", "output", "uncond", *stored, "prev_sample", "old_output", "old_uncond")
    of = ("x", "output", "old_output", "prev_sample", "uncond", "old_uncond", *stored)
    tensors = dict.fromkeys(samples, dtype) | {"rows": "i64", "coefficients": table_type}
    if backward:
        tensors |= dict.fromkeys((f"grad_{name}" for name in of), dtype) | {"grad": table_type}
        return Kernel(ratio_backward_kernel, tensors, {})
    return Kernel(ratio_sums_kernel, tensors | {"sums": table_type}, {})


def add_noise(dtype: str) -> Kernel:
    """Return noise added to samples, on large full tiles."""
    tensors = {"x": dtype, "result": dtype, "coefficients": "fp32", "rows": "i64", "seeds": "i64"}
    return Kernel(add_noise_kernel, tensors, {"TILE": launch.LARGE_TILE, "WHOLE": True})


def skip_loss(dtype: str) -> Kernel:
    """Return the sums of a training loss on full tiles, with all that it can read and write."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    tensors = {"output": dtype, "x": dtype, "sums": table_type, "coefficients": table_type}
    tensors |= dict.fromkeys(("rows", "steps", "seeds"), "i64")
    if dtype == table_type:
        tensors["residual"] = dtype
    return Kernel(skip_loss_kernel, tensors, {"WHOLE": True})


def scale_residual(dtype: str) -> Kernel:
    """Return what makes a gradient of a loss's weighted residual, on full tiles."""
    tensors = dict.fromkeys(("residual", "grad", "coefficients"), dtype) | {"rows": "i64", "steps": "i64"}
    return Kernel(scale_residual_kernel, tensors, {"TILE": launch.SMALL_TILE, "WHOLE": True})


def skip_loss_backward(dtype: str) -> Kernel:
    """Return the gradients of a training loss on full tiles, with all that it can read and write."""
    table_type = "fp64" if dtype == "fp64" else "fp32"
    tensors = dict.fromkeys(("output", "x", "grad_output", "grad_x"), dtype)
    tensors |= {"grad": table_type, "coefficients": table_type}
    tensors |= dict.fromkeys(("rows", "steps", "seeds"), "i64")
    return Kernel(skip_loss_backward_kernel, tensors, {"TILE": launch.SMALL_TILE, "WHOLE": True})


STEPS = ("mixture", "gaussian", "whole", "everything", "scored")
KERNELS = {
    **{f"{variant} {name}": step(dtype, variant) for variant in STEPS for name, dtype in TYPES.items()},
    "everything float64": step("fp64", "everything"),
    "scored float64": step("fp64", "scored"),
    **{f"noise {name}": noise(dtype) for name, dtype in TYPES.items()},
    "components": Kernel(
        draw_components_kernel,
        dict.fromkeys(("result", "seeds", "rows", "steps", "cdf"), "i64"),
        {"MOST": 1024},
    ),
    **{f"backward {name}": backward(dtype, "backward") for name, dtype in TYPES.items()},
    **{f"backward-all {name}": backward(dtype, "backward-all") for name, dtype in WITH_FLOAT64.items()},
    **{f"coefficient-sums {name}": coefficient_sums(dtype) for name, dtype in WITH_FLOAT64.items()},
    **{f"add-offsets {name}": add_entries(dtype, std=False) for name, dtype in WITH_FLOAT64.items()},
    **{f"add-std {name}": add_entries(dtype, std=True) for name, dtype in WITH_FLOAT64.items()},
    **{
        f"add-rows {name}": Kernel(add_rows_kernel, {"table": dtype, "sums": dtype, "entries": "i64"}, {})
        for name, dtype in TABLE_TYPES.items()
    },
    **{
        f"sum-level {name}": Kernel(sum_level_kernel, {"sums": dtype}, {})
        for name, dtype in TABLE_TYPES.items()
    },
    **{f"density-sums {name}": density_sums(dtype) for name, dtype in WITH_FLOAT64.items()},
    **{f"log-prob {name}": log_prob(dtype) for name, dtype in TABLE_TYPES.items()},
    **{
        f"project {name}": Kernel(
            project_kernel, dict.fromkeys(("sample_data", "sums", "table"), dtype) | {"rows": "i64"}, {}
        )
        for name, dtype in TABLE_TYPES.items()
    },
    **{f"density-backward {name}": density_backward(dtype) for name, dtype in WITH_FLOAT64.items()},
    **{
        f"add-density-{'std' if std else 'offsets'} {name}": add_density_entries(dtype, std=std)
        for std in (False, True)
        for name, dtype in TABLE_TYPES.items()
    },
    **{f"add-weights {name}": add_weights(dtype) for name, dtype in TABLE_TYPES.items()},
    **{f"ratio-sums {name}": ratio(dtype, backward=False) for name, dtype in WITH_FLOAT64.items()},
    **{f"ratio-backward {name}": ratio(dtype, backward=True) for name, dtype in WITH_FLOAT64.items()},
    **{f"add-noise {name}": add_noise(dtype) for name, dtype in TYPES.items()},
    **{f"skip-loss {name}": skip_loss(dtype) for name, dtype in WITH_FLOAT64.items()},
    **{
        f"finish-loss {name}": Kernel(finish_loss_kernel, {"result": dtype, "sums": dtype}, {})
        for name, dtype in TABLE_TYPES.items()
    },
    **{f"scale-residual {name}": scale_residual(dtype) for name, dtype in TABLE_TYPES.items()},
    **{f"skip-loss-backward {name}": skip_loss_backward(dtype) for name, dtype in WITH_FLOAT64.items()},
    "entries": Kernel(
        entries_kernel,
        dict.fromkeys(("entries", "rows", "steps", "seeds", "cdf"), "i64"),
        {"MOST": 1024},
    ),
}


def compile_kernel(kernel: Kernel, target: GPUTarget) -> Any:
    """Compile for an architecture, with the options of a launch."""
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    return triton.compile(kernel.source(ptx=target.backend == "cuda"), target=target, options=options)


def hot_path(code: Sequence[Instruction]) -> int:
    """Return the instructions of the shortest path by every wide load, root and store, in their order."""
    after = successors(code, {})
    stops = [n for n, line in enumerate(code) if re.match(r"LDG\.E\.128|MUFU|STG", line.opcode)]
    end = next(n for n, line in enumerate(code) if line.root == "EXIT" and n > stops[-1])
    path = [0, *stops, end]
    return 1 + sum(reach(after, [here])[there] for here, there in pairwise(path))


def report_kernel(name: str, cubin: Path, shared: int) -> KernelReport:
    """Read the machine code of one kernel back; `shared` is what a launch gives it besides, in bytes."""
    sass, _, said = read_sass(cubin)
    (code,) = parse_sass(sass).values()
    (used,) = parse_resources(said).values()
    kind = name.split()[0]
    is_budgeted = kind in ("mixture", "gaussian", "whole", "noise", "add-noise")
    return KernelReport(
        name=name,
        resources=replace(used, shared=used.shared + shared),
        instructions=len(code),
        opcodes=Counter(line.opcode for line in code),
        loops={},
        per_element={kind: hot_path(code) / ELEMENTS_PER_THREAD} if is_budgeted else {},
        gather=0,
    )


def report(name: str, architecture: str, folder: Path) -> tuple[KernelReport, str]:
    """Return the report of one of `KERNELS` for one architecture ("90"), and its PTX."""
    made = compile_kernel(KERNELS[name], GPUTarget("cuda", int(architecture), 32))
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    return report_kernel(name, cubin, made.metadata.shared), made.asm["ptx"]


def memory(kernel: KernelReport) -> dict[str, int]:
    """Return how many loads and stores of each width there are."""
    return {op: count for op, count in sorted(kernel.opcodes.items()) if MEMORY.match(op.split(".")[0])}


def table(architecture: str, kernels: Mapping[str, KernelReport]) -> str:
    """Return one architecture's report to read."""
    lines = [
        architecture,
        "  kernel                    registers  stack  spills st/ld  shared  instructions  per element  memory",
    ]
    for name, kernel in kernels.items():
        of = kernel.resources
        spills = f"{kernel.spill_stores}/{kernel.spill_loads}"
        each = "".join(f"{value:.2f}" for value in kernel.per_element.values()) or "-"
        accesses = ", ".join(f"{count} {opcode}" for opcode, count in memory(kernel).items())
        lines.append(
            f"  {name:<26}{of.registers:>9}{of.stack:>7}{spills:>14}{of.shared:>8}{kernel.instructions:>14}"
            f"{each:>13}  {accesses}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the report, and compare it if asked; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), metavar="N")
    parser.add_argument("--check", action="store_true", help="compare with the budget; exit 1 when over it")
    parser.add_argument("--write-budget", action="store_true", help="write what is measured, rounded up")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="the budget file")
    options = parser.parse_args(arguments)
    try:
        find_cuobjdump()
    except MissingTool as missing:
        print(f"triton_report: {missing}", file=sys.stderr)
        return 2
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in options.architectures:
            kernels = {name: report(name, architecture, Path(folder))[0] for name in KERNELS}
            reports[f"sm_{architecture}"] = kernels
            print(table(f"sm_{architecture}, Triton {triton.__version__}", kernels) + "\n")
    if options.write_budget:
        content = {"triton": triton.__version__, "budgets": to_budget(reports, REQUIRED)}
        options.budget.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        print(f"budget written to {options.budget}")
    if not options.check:
        return 0
    lines = over_required(reports, REQUIRED)
    release = budget_release(options.budget, "triton")
    if triton.__version__ == release:
        lines += over_budget(reports, load_budget(options.budget))
    else:
        print(f"The budget is Triton {release}'s: only what is required is compared.")
    print("\n".join(["Over budget:", *lines]) if lines else "Within budget.")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
