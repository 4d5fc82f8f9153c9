"""Bad input to training ops: errors that name the argument, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from losses import random_case

from gmmkernel import TrainingColumn, add_noise, skip_step_loss

CASE = random_case(1, batch=3, shape=(6,), sample_dtype=torch.float32, per_sample=False)
INT = torch.zeros(3, 6, dtype=torch.int64)

SHARED = [
    ({"coefficients": None}, TypeError, r"coefficients: expected a torch\.Tensor, got NoneType"),
    (
        {"coefficients": torch.zeros(4, 16)},
        ValueError,
        r"coefficients: expected shape \[T, 9\], which training_coefficients makes, got a sampler's rows \(4, 16\)",
    ),
    ({"coefficients": torch.zeros(4, 8)}, ValueError, r"coefficients: expected shape \[S, 9\] with S >= 1"),
    ({"coefficients": torch.zeros(0, 9)}, ValueError, r"coefficients: expected shape \[S, 9\] with S >= 1"),
    ({"row": 5}, IndexError, "row: expected 0 to 4, got 5"),
    ({"row": -1}, IndexError, "row: expected 0 to 4, got -1"),
    ({"row": True}, TypeError, "row: expected an int or an int64 tensor, got bool"),
    ({"row": 1.0}, TypeError, "row: expected an int or an int64 tensor, got float"),
    ({"row": torch.zeros(3)}, TypeError, r"row: expected an int or an int64 tensor, got torch\.float32"),
    (
        {"row": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        r"row: expected shape \[\], \[1\] or \[3\], got \(2,\)",
    ),
    ({"row": torch.tensor([0, 7, 1])}, IndexError, "row: expected 0 to 4, got 7 for sample 1"),
    ({"step": 2**32}, IndexError, "step: expected 0 to 4294967295, got 4294967296"),
    (
        {"step": torch.tensor([0, 0, -1])},
        IndexError,
        "step: expected 0 to 4294967295, got -1 for sample 2",
    ),
    ({"seeds": None}, TypeError, r"seeds: expected a torch\.Tensor, got NoneType"),
    ({"seeds": torch.zeros(3)}, TypeError, r"seeds: expected int64, got torch\.float32"),
    ({"seeds": torch.arange(4)}, ValueError, "seeds: expected one for each of 3 samples, got 4"),
    ({"backend": "cudnn"}, ValueError, "backend: expected one of"),
    ({"backend": "cuda"}, Exception, "backend: 'cuda'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), SHARED)
def test_both_name_what_is_wrong(
    changes: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    given: dict[str, Any] = {"row": 1, "step": 0, "seeds": CASE.seeds, "backend": backend} | changes
    coefficients = given.pop("coefficients", CASE.coefficients)
    out = torch.zeros_like(CASE.data)
    with pytest.raises(error, match=message):
        add_noise(CASE.data, coefficients, out=out, **given)
    assert not out.any()
    for output in (CASE.model_output, CASE.model_output.clone().requires_grad_()):
        with pytest.raises(error, match=message):
            skip_step_loss(output, coefficients, sample=CASE.sample, **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sample": [1.0]}, TypeError, r"sample: expected a torch\.Tensor, got list"),
        ({"sample": INT}, TypeError, "sample: expected float32, bfloat16, float16 or float64"),
        ({"sample": torch.zeros(())}, ValueError, r"sample: expected at least one dimension \(the batch\)"),
        (
            {"sample": CASE.data.double()},
            TypeError,
            r"coefficients: expected torch\.float64 beside a torch\.float64 sample, got torch\.float32",
        ),
        ({"return_noise": 1}, TypeError, "return_noise: expected True or False, got 1"),
        ({"out": torch.zeros(3, 5)}, ValueError, r"out: expected shape \(3, 6\), got \(3, 5\)"),
        ({"out": torch.zeros(3, 6).double()}, TypeError, r"out: expected torch\.float32"),
        (
            {"out": torch.zeros(6).expand(3, 6)},
            ValueError,
            "out: expected a tensor whose elements are distinct",
        ),
    ],
)
def test_add_noise_names_what_is_wrong(
    changes: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    given: dict[str, Any] = {"row": 1, "seeds": CASE.seeds, "backend": backend} | changes
    with pytest.raises(error, match=message):
        add_noise(given.pop("sample", CASE.data), CASE.coefficients, **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_output": None}, TypeError, r"model_output: expected a torch\.Tensor, got NoneType"),
        ({"model_output": INT}, TypeError, "model_output: expected float32, bfloat16, float16 or float64"),
        ({"model_output": torch.zeros(())}, ValueError, "model_output: expected at least one dimension"),
        (
            {"model_output": CASE.model_output.double()},
            TypeError,
            r"coefficients: expected torch\.float64 beside a torch\.float64 model_output, got torch\.float32",
        ),
        (
            {"sample": torch.zeros(3, 7)},
            ValueError,
            r"sample: expected the model_output's shape \(3, 6\), got \(3, 7\)",
        ),
        (
            {"sample": CASE.sample.double()},
            TypeError,
            r"sample: expected torch\.float32, torch\.bfloat16, torch\.float16 beside a torch\.float32 model_output",
        ),
        ({"sample": 3}, TypeError, r"sample: expected a torch\.Tensor, got int"),
    ],
)
def test_the_loss_names_what_is_wrong(
    changes: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    given: dict[str, Any] = {"row": 1, "seeds": CASE.seeds, "backend": backend} | changes
    with pytest.raises(error, match=message):
        skip_step_loss(given.pop("model_output", CASE.model_output), CASE.coefficients, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_that_read_the_training_sample_must_have_it(dtype: torch.dtype, backend: str) -> None:
    case = random_case(1, dtype=dtype, shape=(6,), per_sample=False, with_sample=False)
    coefficients = case.coefficients.clone()
    coefficients[3, TrainingColumn.EPS_SAMPLE] = 0.5
    rows = torch.tensor([0, 1, 3])
    reading = replace(case, coefficients=coefficients, row=rows)
    message = "sample: expected the training sample x_t, which row 3 of sample 2 reads, got none"
    with pytest.raises(ValueError, match=message):
        reading.loss(backend=backend)
    leaf = case.model_output.clone().requires_grad_()
    with pytest.raises(ValueError, match=message):
        reading.loss(model_output=leaf, backend=backend)
    assert replace(reading, row=torch.tensor([0, 1, 2])).loss(backend=backend).isfinite().all()


def test_gradients_that_cannot_be_are_refused() -> None:
    given = {"row": 1, "seeds": CASE.seeds}
    learned = CASE.coefficients.clone().requires_grad_()
    message = "coefficients: expected a tensor that requires no gradient; it would not get one"
    with pytest.raises(RuntimeError, match=message):
        add_noise(CASE.data, learned, **given)
    with pytest.raises(RuntimeError, match=message):
        skip_step_loss(CASE.model_output, learned, sample=CASE.sample, **given)
    with torch.no_grad():
        add_noise(CASE.data, learned, **given)
    with pytest.raises(RuntimeError, match="out: expected None where an input requires a gradient"):
        add_noise(CASE.data.clone().requires_grad_(), CASE.coefficients, out=torch.zeros(3, 6), **given)


def test_the_result_may_share_no_memory_but_the_sample_s() -> None:
    data = torch.zeros(4, 6)
    given = {"row": 1, "seeds": CASE.seeds}
    with pytest.raises(ValueError, match="out: overlaps sample in memory without being the same tensor"):
        add_noise(data[:3], CASE.coefficients, out=data[1:], **given)
    with pytest.raises(ValueError, match="out: overlaps coefficients in memory"):
        add_noise(
            torch.zeros(3, 3), CASE.coefficients, out=CASE.coefficients.view(-1)[:9].view(3, 3), **given
        )
