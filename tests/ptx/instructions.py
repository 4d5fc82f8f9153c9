"""Instructions that a step executes for each element: what speed is bound by where memory is not, without a GPU.

    PYTHONPATH=.:tests:tools:tests/gpu:tests/gradients:tests/training python -m ptx.instructions

prints a table, and with --write the budgets, after a deliberate change.

PTX instructions of whole launches, prologues and idle threads included, over all elements, on grids as a large batch
gets them; "few" is one sample on 132 multiprocessors. The assembler makes fewer of them (`tools/sass_report.py`).
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from differentiable import random_density, step_gradients
from helpers import random_case
from losses import random_case as random_training

from gmmkernel import standard_normal
from ptx import cuda
from ptx.calls import recorded

BUDGET = Path(__file__).with_name("budget.json")  # of each backend, and which compiler's code it is
SIZE = 2**16  # elements of one sample: 4 x 128 x 128

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
STEPS: dict[str, dict[str, Any]] = {
    **{
        name: {"dtype": dtype}
        for name, dtype in (("float32", FLOAT), ("bfloat16", BFLOAT), ("float16", HALF))
    },
    "float32 few": {"dtype": FLOAT},
    "float32 mixture": {"dtype": FLOAT, "components": 8},
    "bfloat16 mixture": {"dtype": BFLOAT, "components": 8},
    "float32 guided": {"dtype": FLOAT, "guidance": True},
    "bfloat16 guided": {"dtype": BFLOAT, "guidance": True},
    "float32 x0": {"dtype": FLOAT, "prediction": "x0"},
    "bfloat16 x0": {"dtype": BFLOAT, "prediction": "x0"},
    "float32 of bfloat16 output": {"dtype": FLOAT, "output_dtype": BFLOAT},
    "float32 one stored": {"dtype": FLOAT, "history": 1},
    "float32 two stored x0": {"dtype": FLOAT, "history": 2, "prediction": "x0"},
    "float32 of odd size": {"dtype": FLOAT, "shape": (SIZE - 1,)},
}


GRADIENTS = ("float32", "bfloat16", "float32 mixture", "float32 guided", "float32 of bfloat16 output")


def launches() -> dict[str, Any]:
    """Return the ops that are counted, by name."""
    plain = {
        "batch": 1, "shape": (SIZE,), "guidance": False, "history": 0, "components": 0, "removed": SIZE,
        "per_sample": False,
    }  # fmt: skip
    made: dict[str, Any] = {}
    for name, options in STEPS.items():
        options = {"output_dtype": options["dtype"], "prediction": None, **plain, **options}
        case = random_case(0, **options)
        made[f"step {name}"] = case.run
        if name in GRADIENTS:
            made[f"gradients {name}"] = partial(
                step_gradients, case, without=("coefficients", "offsets", "std")
            )
    seed = torch.tensor([1])
    for name, dtype in (("float32", FLOAT), ("bfloat16", BFLOAT)):
        made[f"noise {name}"] = partial(standard_normal, seed, (SIZE,), step=0, dtype=dtype)
        made[f"log-density {name}"] = random_density(
            0, **{**plain, "components": 8, "dtype": dtype, "output_dtype": dtype}
        ).log_prob
        batch = random_training(0, batch=1, shape=(SIZE,), dtype=dtype, sample_dtype=dtype)
        made[f"add_noise {name}"] = batch.noised
        made[f"skip-step loss {name}"] = batch.loss
    return made


def counted(backend: Any) -> dict[str, float]:
    """Return the instructions of an element, by the name of a launch; gradients without the step before them."""
    found = {}
    for name, run in launches().items():
        call = recorded(run)[-1]
        backend.set_small(not name.endswith(" few"))
        before = backend.machine.instructions
        call.repeat(backend)
        found[name] = round((backend.machine.instructions - before) / SIZE, 1)
    return found


def over_budget(backend: Any) -> list[str]:
    """Return a line for each figure that is above its budget, or has none.

    Raises:
        pytest.skip.Exception: the budget is another compiler's.
    """
    budget = json.loads(BUDGET.read_text("utf-8"))[backend.name]
    if backend.compiler() != budget["compiler"]:
        pytest.skip(f"the budget is {budget['compiler']}'s, this is {backend.compiler()}")
    most = budget["instructions"]
    return [
        f"{name}: {count} instructions, budget {most.get(name)}"
        for name, count in counted(backend).items()
        if name not in most or count > most[name]
    ]


def main() -> None:
    """Print a table, and with --write the budgets."""
    from ptx import triton_driver

    backends = cuda.CudaOnCpu("80"), triton_driver.TritonOnCpu(90)
    figures = [counted(backend) for backend in backends]
    for name in figures[0]:
        print(
            f"{name:36}", *(f"{b.name} {count[name]:6}  " for b, count in zip(backends, figures, strict=True))
        )
    if "--write" in sys.argv:
        budgets = {
            backend.name: {"compiler": backend.compiler(), "instructions": counts}
            for backend, counts in zip(backends, figures, strict=True)
        }
        BUDGET.write_text(json.dumps(budgets, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
