"""Gradients by the Triton backend on a device: the CPU core's bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from differentiable import Density, cotangent, random_density, step_gradients
from helpers import DTYPES, StepCase, assert_same_bits, random_case
from layouts import DEVICE, moved
from test_gpu_triton import OPTIONS, triton_needed  # noqa: F401  a fixture

pytestmark = pytest.mark.gpu


def assert_same(case: StepCase) -> None:
    grads = [cotangent(case.sample, 1), cotangent(case.sample, 2)]
    made = step_gradients(moved(case), [grad.to(DEVICE) for grad in grads], backend="triton")
    for name, expected in step_gradients(case, grads).items():
        try:
            assert_same_bits(made[name].cpu(), expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: torch.dtype, options: str) -> None:
    for size in (1, 1000, 2048, 20000):
        for removed in (0, min(8, size), size):
            assert_same(
                random_case(
                    size,
                    batch=5,
                    shape=(size,),
                    dtype=dtype,
                    output_dtype=dtype,
                    removed=removed,
                    special=size == 1000,
                    **OPTIONS[options],
                )
            )


@pytest.mark.parametrize("prediction", ["x0", "model_output"])
def test_gradients_of_other_predictions(prediction: str) -> None:
    options = OPTIONS["everything"] | {"prediction": prediction}
    assert_same(random_case(2, shape=(3000,), dtype=torch.float32, output_dtype=torch.float32, **options))


def test_sums_of_several_levels_and_large_batches() -> None:
    plain = {"dtype": torch.float32, "output_dtype": torch.float32}
    assert_same(random_case(3, batch=2, shape=(1026 * 1024 + 5,), **plain, **OPTIONS["mixture"]))
    assert_same(random_case(4, batch=70000, shape=(5,), per_sample=True, **plain, **OPTIONS["mixture"]))


def test_rows_out_of_range_give_nan_and_add_nothing() -> None:
    case = random_case(
        5, shape=(3000,), dtype=torch.float32, output_dtype=torch.float32, **OPTIONS["everything"]
    )
    row = torch.tensor([0, case.coefficients.shape[0], 2])
    there = moved(case)
    grads = [cotangent(case.sample, 1), cotangent(case.sample, 2)]
    made = step_gradients(there, [grad.to(DEVICE) for grad in grads], row=row.to(DEVICE), backend="triton")
    row[1] = 0
    good = step_gradients(case, grads, row=row)
    tables = {"coefficients", "offsets", "std"}
    for name, gradient in made.items():
        if name in tables:
            assert not gradient.isnan().any()
        else:
            assert bool(gradient[1].isnan().all())
            for sample in (0, 2):
                assert_same_bits(gradient[sample].cpu(), good[name][sample])


@pytest.mark.parametrize("components", [0, 1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_densities(dtype: torch.dtype, components: int) -> None:
    for size in (1, 1000, 2048, 20000):
        density = random_density(
            size,
            batch=5,
            shape=(size,),
            dtype=dtype,
            output_dtype=dtype,
            components=components,
            per_sample=True,
        )
        case = moved(density.case)
        if density.case.mixture is not None:
            tables = [table.to(DEVICE) for table in density.case.mixture]
            case = replace(case, mixture=type(density.case.mixture)(*tables))
        grad = cotangent(torch.empty(5, dtype=case.coefficients.dtype), 1)
        there = Density(case, density.prev_sample.to(DEVICE))
        made = there.gradients(grad.to(DEVICE), backend="triton")
        for name, expected in density.gradients(grad).items():
            try:
                assert_same_bits(made[name].cpu(), expected)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
