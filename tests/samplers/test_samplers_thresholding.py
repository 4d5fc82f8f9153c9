"""Dynamic thresholding against its definition in float64, and what its rows do in a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gmmkernel import (
    Column,
    ddim_coefficients,
    dynamic_thresholding,
    gaussian_mixture,
    gmm_step,
    noise_schedule,
)
from gmmkernel.ops import MixtureTables

VISITED = torch.tensor([800, 500, 200])
SHAPE = (3, 2, 5, 7)


def table(prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    return ddim_coefficients(
        noise_schedule(), VISITED, prediction_type=prediction_type, dtype=dtype, **options
    )


def normals(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def truth(x: Tensor, o: Tensor, row: Tensor, ratio: float, most: float) -> tuple[Tensor, Tensor]:
    """Return the thresholded data and s, in float64, by the paper's words and torch's quantile."""
    x0 = row[Column.X0_SAMPLE].double() * x.double() + row[Column.X0_OUTPUT].double() * o.double()
    s = torch.quantile(x0.flatten(1).abs(), ratio, dim=1).clamp(1, most).reshape(-1, 1, 1, 1)
    return x0.clamp(-s, s) / s, s


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("ratio", "most"), [(0.995, 1.0), (0.9, 10.0), (0.0, 2.0), (1.0, 100.0), (0.5, 0.5), (68 / 69, 100.0)]
)
def test_the_data_predicted_are_those_of_the_paper(
    ratio: float, most: float, prediction_type: str, dtype: torch.dtype
) -> None:
    coefficients = table(prediction_type, torch.float64 if dtype == torch.float64 else torch.float32)
    x, o = normals(0, dtype), 3 * normals(1, dtype)
    rows = dynamic_thresholding(coefficients, 1, x, o, ratio=ratio, max_value=most)
    seeds = torch.zeros(3, dtype=torch.int64)
    made = gmm_step(x, o, rows, row=torch.arange(3), step=1, seeds=seeds, prediction="x0").prediction
    assert made is not None
    wanted, s = truth(x, o, coefficients[1], ratio, most)
    error = (made.double() - wanted).abs().max()
    assert error <= {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 4 * torch.finfo(dtype).eps)
    if most > 10 and prediction_type != "v_prediction":
        assert bool((s > 1).any())


def test_only_the_prediction_changes() -> None:
    coefficients = table(clip_sample_range=0.3, use_clipped_model_output=True, eta=0.5)
    rows = dynamic_thresholding(coefficients, 2, normals(0), normals(1), ratio=0.5, max_value=0.25)
    for column in Column:
        wanted = coefficients[2, column].expand(3)
        if column in (Column.X0_SAMPLE, Column.X0_OUTPUT):
            wanted = wanted / 0.25
        elif column in (Column.CLIP_MIN, Column.CLIP_MAX):
            wanted = torch.full((3,), -1.0 if column == Column.CLIP_MIN else 1.0)
        assert torch.equal(rows[:, column], wanted), column
    assert coefficients[2, Column.CLIP_MAX] == torch.tensor(0.3)


def test_a_guidance_pair() -> None:
    coefficients = table(guidance_scale=4.0)
    x, o, uncond = normals(0), normals(1), normals(2)
    guided = uncond + 4 * (o - uncond)
    pair = dynamic_thresholding(coefficients, 0, x, o, model_output_uncond=uncond, ratio=0.9, max_value=1e4)
    one = dynamic_thresholding(coefficients, 0, x, guided, ratio=0.9, max_value=1e4)
    torch.testing.assert_close(pair, one, rtol=1e-6, atol=0)
    _, s = truth(x, guided, coefficients[0], 0.9, 1e4)
    assert bool((s < 1e4).all())
    wanted = coefficients[0, Column.X0_OUTPUT].double() / s.flatten()
    torch.testing.assert_close(pair[:, Column.X0_OUTPUT].double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "row", [torch.tensor([2, 0, 1]), torch.tensor(1), torch.tensor([0])], ids=["each", "scalar", "one"]
)
def test_rows_of_each_sample_whatever_the_batch(row: Tensor) -> None:
    coefficients, x, o = table(eta=1.0), normals(0), 4 * normals(1)
    made = dynamic_thresholding(coefficients, row, x, o, max_value=9.0, ratio=0.8)
    for i, index in enumerate(row.expand(3).tolist()):
        one = dynamic_thresholding(coefficients, index, x[i : i + 1], o[i : i + 1], max_value=9.0, ratio=0.8)
        assert torch.equal(made[i : i + 1], one)


@pytest.mark.parametrize("shared", [False, True])
def test_tables_of_a_row(shared: bool) -> None:
    coefficients = table(eta=1.0)
    tables = gaussian_mixture("ortho", elements=70, n_components=3, n_steps=None if shared else 3).bind(
        coefficients
    )
    x, o, seeds = normals(0), normals(1), torch.arange(3)
    of_one, of_each = tables.at(1), tables.at(torch.tensor([2, 0, 1]))
    assert of_one.offsets.shape[0] == 1
    assert of_one.offsets.data_ptr() == tables.offsets[0 if shared else 1].data_ptr()
    kept = coefficients[[1]].expand(3, -1)
    alone = gmm_step(x, o, kept, row=torch.arange(3), step=1, seeds=seeds, mixture=of_one).prev_sample
    assert torch.equal(alone, gmm_step(x, o, coefficients, row=1, seeds=seeds, mixture=tables).prev_sample)
    order = torch.tensor([2, 0, 1])
    each = gmm_step(x, o, coefficients[order], row=torch.arange(3), step=order, seeds=seeds, mixture=of_each)
    whole = gmm_step(x, o, coefficients, row=order, seeds=seeds, mixture=tables)
    assert torch.equal(each.prev_sample, whole.prev_sample)
    assert MixtureTables(*tables[:3]).at(1).weights is None


def test_gradients_pass_through_the_quantile() -> None:
    coefficients = table(dtype=torch.float64)
    x, o = normals(0, torch.float64, (1, 1, 2, 3)), normals(1, torch.float64, (1, 1, 2, 3))

    def x0(x: Tensor, o: Tensor) -> Tensor:
        rows = dynamic_thresholding(coefficients, 0, x, o, ratio=0.7, max_value=100.0)
        seeds = torch.zeros(1, dtype=torch.int64)
        made = gmm_step(x, o, rows, row=torch.arange(1), seeds=seeds, prediction="x0").prediction
        assert made is not None
        return made

    assert torch.autograd.gradcheck(x0, (x.requires_grad_(), o.requires_grad_()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ratio": 1.5}, ValueError, "ratio: expected a number from 0 to 1, got 1.5"),
        ({"ratio": -0.1}, ValueError, "ratio: expected a number from 0 to 1, got -0.1"),
        ({"max_value": 0}, ValueError, "max_value: expected a finite number > 0, got 0"),
        ({"max_value": "1"}, TypeError, "max_value: expected a finite number > 0, got '1'"),
        ({"row": 3}, IndexError, "row: expected 0 to 2, got 3"),
        ({"row": torch.tensor([0, 1, -1])}, IndexError, "row: expected 0 to 2, got -1"),
        ({"row": torch.tensor([0, 1])}, ValueError, r"row: expected shape \[\], \[1\] or \[3\], got \(2,\)"),
        ({"model_output": normals(1)[:2]}, ValueError, "model_output: expected the sample's shape"),
        (
            {"model_output_uncond": normals(1)[:2]},
            ValueError,
            "model_output_uncond: expected the sample's shape",
        ),
        ({"coefficients": table()[:, :5]}, ValueError, r"coefficients: expected shape \[S, 16\]"),
        ({"sample": normals(0).long()}, TypeError, "sample: expected float32"),
    ],
    ids=str,
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "coefficients": table(),
        "row": 0,
        "sample": normals(0),
        "model_output": normals(1),
    }
    with pytest.raises(error, match=message):
        dynamic_thresholding(**{**given, **change})


def test_a_row_out_of_range_elsewhere_is_not_read() -> None:
    """On a device nothing may be read; meta tensors, which have no values, show that it is not."""
    x = normals(0).to("meta")
    made = dynamic_thresholding(table().to("meta"), torch.tensor([0, 7, 1], device="meta"), x, x)
    assert made.shape == (3, 16)
