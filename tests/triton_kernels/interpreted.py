"""Every Triton kernel under Triton's interpreter, on CPU tensors, against the compiled core.

Run by test_triton_interpreter.py in a process of its own: with TRITON_INTERPRET=1 from the start, Triton's own library
functions are interpreted too.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import elementary_inputs
import numpy as np
import pytest
import torch
from elementary_kernel import elementary_kernel
from helpers import DTYPES, StepCase, assert_same_bits, random_case

from gmmkernel.backends import cpu
from gmmkernel.backends.constants import Column, Prediction, Stream
from gmmkernel.backends.protocol import Backend, StepInputs
from gmmkernel.backends.reference import elementary
from gmmkernel.backends.triton import launch

KINDS = {
    None: Prediction.NONE,
    "x0": Prediction.X0,
    "epsilon": Prediction.EPSILON,
    "model_output": Prediction.MODEL_OUTPUT,
}
SEEDS = torch.tensor([0, -1, 2**63 - 1])


def run(backend: Backend, case: StepCase, out: torch.Tensor | None = None) -> list[torch.Tensor | None]:
    """Take a step by a backend's own function, into tensors full of nines."""

    def index(value: int | torch.Tensor) -> int | torch.Tensor:
        return value.reshape(-1) if isinstance(value, torch.Tensor) else value

    inputs = StepInputs(
        case.sample,
        case.model_output,
        case.coefficients,
        case.seeds,
        index(case.row),
        index(case.row if case.step is None else case.step),
        case.model_output_uncond,
        case.history,
        *(case.mixture or (None, None, None))[:3],
    )
    result = torch.full_like(case.sample, 9) if out is None else out
    prediction = None
    if case.prediction is not None:
        prediction = torch.full(case.sample.shape, 9, dtype=case.sample.dtype)
    components = torch.full_like(case.seeds, -9)
    backend.gmm_step(inputs, result, prediction, KINDS[case.prediction], components)
    return [result, prediction, components]


def assert_same(case: StepCase) -> None:
    for actual, expected in zip(run(launch, case), run(cpu, case), strict=True):
        if expected is not None:
            assert actual is not None
            assert_same_bits(actual, expected)


def test_the_kernels_are_interpreted() -> None:
    assert launch.INTERPRETED
    assert not launch.PTX


@pytest.mark.parametrize("seed", range(48))
def test_steps_have_the_same_bits(seed: int) -> None:
    choose = random.Random(seed)
    assert_same(
        random_case(
            seed,
            shape=choose.choice([(1,), (3,), (63,), (1000,), (1024,), (4, 16, 16), (4097,)]),
            dtype=DTYPES[seed % len(DTYPES)],
            components=choose.choice([0, 1, 2, 8, 65, 66, 200]),
            guidance=choose.random() < 0.5,
            history=choose.randint(0, 4),
            prediction=choose.choice(list(KINDS)),
            per_sample=choose.random() < 0.5,
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_components(dtype: torch.dtype) -> None:
    assert_same(random_case(3, shape=(1024,), dtype=dtype, components=1024))


@pytest.mark.parametrize("removed", [0, 8, 1000, 1024, 1028, 2048])
def test_std_tables_of_any_length(removed: int) -> None:
    assert_same(random_case(removed, shape=(2048,), components=8, removed=removed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tiles(dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"output_dtype": dtype, "guidance": False, "history": 0, "prediction": None}
    case = random_case(1, batch=8, shape=(4096,), dtype=dtype, components=8, removed=4096, **options)
    assert launch.tile_for(8, 4096, case.sample.get_device()) == launch.LARGE_TILE
    assert_same(case)


def test_strided_tensors_and_empty_batches() -> None:
    case = random_case(5, shape=(4, 6, 8), components=3, history=2, guidance=True, prediction="x0")
    assert_same(case.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last)))
    out = torch.full_like(case.sample, 9).contiguous(memory_format=torch.channels_last)
    made = run(launch, case, out)
    assert_same_bits(made[0], run(cpu, case)[0])
    assert_same(random_case(6, batch=0, components=3))
    for shape in ((0,), (8, 0)):
        assert_same(
            random_case(6, shape=shape, dtype=torch.float32, output_dtype=torch.float32, components=3)
        )


def test_a_sigma_of_minus_zero_stays() -> None:
    case = random_case(
        9, shape=(64,), dtype=torch.float32, components=2, removed=32, history=0, prediction=None
    )
    case.coefficients[:, Column.SIGMA] = -0.0
    case.coefficients[:, [Column.X0, Column.OUTPUT, Column.SAMPLE, Column.OFFSET]] = -0.0
    assert_same(case)


def test_in_place() -> None:
    case = random_case(7, shape=(1500,), components=8)
    expected = run(cpu, case)
    assert_same_bits(run(launch, case, case.sample)[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", ["x0", "epsilon", "model_output"])
def test_a_row_or_step_out_of_range_gives_nan(dtype: torch.dtype, prediction: Any) -> None:
    case = random_case(
        8, batch=3, shape=(1030,), dtype=dtype, components=8, prediction=prediction, per_sample=True
    )
    row, step = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    good = run(launch, replace(case, row=row, step=step))
    row[0], step[2] = case.coefficients.shape[0], 2**32
    bad = run(launch, replace(case, row=row, step=step))
    assert bad[2].tolist() == [-1, int(good[2][1]), -1]
    for spoilt, whole in zip(bad[:2], good[:2], strict=True):
        assert bool(spoilt[0].isnan().all())
        assert bool(spoilt[2].isnan().all())
        assert_same_bits(spoilt[1], whole[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stream", list(Stream))
def test_noise_has_the_same_bits(dtype: torch.dtype, stream: Stream) -> None:
    for elements, step in ((1, 0), (1000, 2**32 - 1), (1024, torch.tensor([3, 2**31, 5])), (2053, 7)):
        actual, expected = (torch.full((3, elements), 9, dtype=dtype) for _ in range(2))
        launch.standard_normal(actual, SEEDS, step, stream)
        cpu.standard_normal(expected, SEEDS, step, stream)
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    "values", [elementary_inputs.floats(), elementary_inputs.doubles()], ids=["float32", "float64"]
)
def test_logarithms_and_exponentials_are_those_of_the_reference(values: Any) -> None:
    values = values[: len(values) >> 12 << 12]
    x = torch.from_numpy(values)
    log, exp = torch.empty_like(x), torch.empty_like(x)
    with np.errstate(over="ignore", invalid="ignore"):  # among arguments that get their results by a rule
        elementary_kernel[(len(values) >> 12,)](x, log, exp, N=1 << 12)
    assert_same_bits(log, torch.from_numpy(elementary.log(values)))
    assert_same_bits(exp, torch.from_numpy(elementary.exp(values)))


@pytest.mark.parametrize("components", [1, 2, 8, 65, 66, 1024])
def test_components_are_the_same(components: int) -> None:
    thresholds = torch.arange(1, components)[None] * 2**32 // components
    thresholds = torch.cat([thresholds, thresholds // 2])
    seeds = torch.arange(40) * 12345 - 9
    rows = torch.arange(40) % 2
    for row, step in ((0, 3), (rows, torch.arange(40))):
        actual, expected = torch.full_like(seeds, -9), torch.full_like(seeds, -9)
        launch.draw_components(actual, seeds, thresholds, row, step)
        cpu.draw_components(expected, seeds, thresholds, row, step)
        assert torch.equal(actual, expected)
    rows[3] = 2
    launch.draw_components(actual, seeds, thresholds, rows, 3)
    assert actual[3] == -1
