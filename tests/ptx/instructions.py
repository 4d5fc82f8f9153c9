"""Instructions that a step executes for each element: what speed is bound by where memory is not, without a GPU.

    PYTHONPATH=.:tests:tools:tests/gpu:tests/gradients:tests/training python -m ptx.instructions

prints a table, and with --write the budgets, after a deliberate change.

PTX instructions of whole launches, prologues and idle threads included, over all elements, on grids as a large batch
gets them; "few" is one sample on 132 multiprocessors. The assembler makes fewer of them (`tools/sass_report.py`).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from differentiable import Density, step_gradients
from helpers import StepCase, coefficient_row, random_case, random_mixture
from losses import random_case as random_training

from gmmkernel import standard_normal
from ptx import cuda
from ptx.calls import recorded

BUDGET = Path(__file__).with_name("budget.json")  # of each backend, and which compiler's code it is
SIZE = 2**17  # elements of one sample, which is eight of the largest tiles

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
STEPS: dict[str, dict[str, Any]] = {
    **{
        f"{name}{more}": {"dtype": dtype, **options}
        for name, dtype in (("float32", FLOAT), ("bfloat16", BFLOAT), ("float16", HALF))
        for more, options in (("", {}), (" mixture", {"components": 8}), (" x0", {"prediction": "x0"}))
    },
    "float32 few": {"dtype": FLOAT},
    "float32 free": {"dtype": FLOAT, "row": "free"},
    "float32 free mixture": {"dtype": FLOAT, "row": "free", "components": 8},
    "bfloat16 free": {"dtype": BFLOAT, "row": "free"},
    "bfloat16 free mixture": {"dtype": BFLOAT, "row": "free", "components": 8},
    "float32 zero bound": {"dtype": FLOAT, "row": "zero bound"},
    "float32 without noise": {"dtype": FLOAT, "row": "without noise"},
    "float32 two stored x0 without noise": {
        "dtype": FLOAT,
        "history": 2,
        "prediction": "x0",
        "row": "without noise",
    },
    "float32 guided": {"dtype": FLOAT, "guidance": True},
    "bfloat16 guided": {"dtype": BFLOAT, "guidance": True},
    "float32 of bfloat16 output": {"dtype": FLOAT, "output_dtype": BFLOAT},
    "float32 of float16 output x0": {"dtype": FLOAT, "output_dtype": HALF, "prediction": "x0"},
    "bfloat16 of float32 output": {"dtype": BFLOAT, "output_dtype": FLOAT},
    "float16 of float32 output": {"dtype": HALF, "output_dtype": FLOAT},
    "float32 mixture x0": {"dtype": FLOAT, "components": 8, "prediction": "x0"},
    "float32 one stored": {"dtype": FLOAT, "history": 1},
    "float32 two stored x0": {"dtype": FLOAT, "history": 2, "prediction": "x0"},
    "bfloat16 two stored x0": {"dtype": BFLOAT, "history": 2, "prediction": "x0"},
    "float32 of odd size": {"dtype": FLOAT, "shape": (SIZE - 1,)},
    "float32 of odd size x0": {"dtype": FLOAT, "shape": (SIZE - 1,), "prediction": "x0"},
    "float32 x0 unaligned": {"dtype": FLOAT, "batch": 2, "shape": (SIZE // 2 - 1,), "prediction": "x0"},
}


GRADIENTS = (
    "float32",
    "float32 free",
    "bfloat16",
    "float32 mixture",
    "float32 guided",
    "float32 x0",
    "float32 of bfloat16 output",
    "float32 two stored x0",
    "float32 of odd size",
)


def make_step(*, row: str = "clipping", **options: Any) -> StepCase:
    """Return a step of one table row: noise, an offset, every stored prediction, and what the row's name says."""
    columns = {"x0_sample": 1.1, "x0_output": -0.4, "sample": 0.7, "x0": 0.3, "output": 0.2, "sigma": 0.5}
    columns |= {"offset": 1.0, "eps_sample": 0.1, "eps_output": 0.9}
    if row in ("clipping", "zero bound"):
        columns |= {"clip_min": -1.0 if row == "clipping" else 0.0, "clip_max": 1.0}
    if row == "without noise":
        columns["sigma"] = 0.0
    components = options.pop("components", 0)
    plain = {"batch": 1, "shape": (SIZE,), "guidance": False, "history": 0, "per_sample": False}
    options = {"output_dtype": options["dtype"], "prediction": None, **plain, **options}
    columns |= {"guidance": 3.0 if options["guidance"] else 1.0}
    columns |= {f"history_{h}": 0.1 for h in range(options["history"])}
    case = random_case(0, components=0, rows=1, **options)
    mixture = None
    if components:
        elements = math.prod(options["shape"])
        rng = np.random.default_rng(0)
        mixture = random_mixture(rng, elements=elements, components=components, rows=1, removed=elements)
    return replace(case, coefficients=coefficient_row(**columns), mixture=mixture)


def launches() -> dict[str, Any]:
    """Return the ops that are counted, by name."""
    made: dict[str, Any] = {}
    for name, options in STEPS.items():
        case = make_step(**options)
        made[f"step {name}"] = case.run
        if name in GRADIENTS:
            made[f"gradients {name}"] = partial(
                step_gradients, case, without=("coefficients", "offsets", "std")
            )
    seed = torch.tensor([1])
    for name, dtype in (("float32", FLOAT), ("bfloat16", BFLOAT)):
        made[f"noise {name}"] = partial(standard_normal, seed, (SIZE,), step=0, dtype=dtype)
        case = make_step(dtype=dtype, components=8)
        assert case.mixture is not None
        mixture = case.mixture._replace(weights=torch.full((1, 8), 0.125))
        prev_sample = torch.zeros_like(case.sample)
        made[f"log-density {name}"] = Density(replace(case, mixture=mixture), prev_sample).log_prob
    for name, dtype, sample_dtype in (
        ("float32", FLOAT, FLOAT),
        ("bfloat16", BFLOAT, BFLOAT),
        ("bfloat16 of float32 sample", BFLOAT, FLOAT),
    ):
        batch = random_training(0, batch=1, shape=(SIZE,), dtype=dtype, sample_dtype=sample_dtype)
        if dtype == sample_dtype:
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
