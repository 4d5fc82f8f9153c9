"""Bad input to log-densities, and gradients that cannot be: errors that name the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from differentiable import CASE, DENSITY
from helpers import bare
from torch import Tensor

from gmmkernel import gmm_step, gmm_step_log_prob


def refuse(error: type[Exception], message: str, **changes: Any) -> None:
    case = DENSITY.case
    arguments = {
        "prev_sample": DENSITY.prev_sample,
        "sample": case.sample,
        "model_output": case.model_output,
        "coefficients": bare(case.coefficients),
        "row": 0,
        "mixture": case.mixture,
    }
    arguments |= changes
    tensors = [arguments.pop(name) for name in ("prev_sample", "sample", "model_output", "coefficients")]
    with pytest.raises(error, match=message):
        gmm_step_log_prob(*tensors, **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prev_sample": None}, TypeError, r"prev_sample: expected a torch\.Tensor, got NoneType"),
        (
            {"prev_sample": torch.zeros(3, 62)},
            ValueError,
            r"prev_sample: expected the sample's shape \(3, 63\), got \(3, 62\)",
        ),
        (
            {"prev_sample": torch.zeros(3, 63, dtype=torch.float64)},
            TypeError,
            r"prev_sample: expected the sample's dtype torch\.float32, got torch\.float64",
        ),
        ({"sample": torch.zeros(3, 63, dtype=torch.int64)}, TypeError, "sample: expected float32"),
        ({"model_output": torch.zeros(2, 63)}, ValueError, "model_output: expected the sample's shape"),
        (
            {"model_output_uncond": torch.zeros(2, 63)},
            ValueError,
            "model_output_uncond: expected the sample's",
        ),
        ({"history": [torch.zeros(2, 63)]}, ValueError, r"history\[0\]: expected the sample's shape"),
        ({"coefficients": torch.zeros(4, 15)}, ValueError, "coefficients: expected shape"),
        ({"row": 4}, IndexError, "row: expected 0 to 3, got 4"),
        ({"row": torch.tensor([0, 1, 9])}, IndexError, "row: expected 0 to 3, got 9 for sample 2"),
        ({"mixture": "ortho"}, TypeError, "mixture: expected MixtureTables or None, got str"),
        ({"backend": "cudnn"}, ValueError, "backend: expected one of"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_log_densities_name_what_is_wrong(
    changes: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    refuse(error, message, **({"backend": backend} | changes))


def test_log_densities_need_the_mixture_s_weights() -> None:
    mixture = DENSITY.case.mixture
    for weights, error, message in (
        (
            None,
            ValueError,
            r"mixture\.weights: expected a tensor \[S or 1, K\], which log-densities need, got None",
        ),
        ([0.5, 0.5], TypeError, r"mixture\.weights: expected a torch\.Tensor, got list"),
        (
            mixture.weights.double(),
            TypeError,
            r"mixture\.weights: expected torch\.float32, got torch\.float64",
        ),
        (
            mixture.weights[:, :2],
            ValueError,
            r"mixture\.weights: expected shape \[1 or 4, 3\], got \(\d, 2\)",
        ),
        (torch.ones(3, 3), ValueError, r"mixture\.weights: expected shape \[1 or 4, 3\], got \(3, 3\)"),
    ):
        broken = mixture._replace(weights=weights)
        refuse(error, message, mixture=broken)
        with pytest.raises(error, match=message):
            DENSITY.case.run(mixture=broken, return_log_prob=True)


def test_a_step_with_its_log_density_leaves_what_it_reads_alone() -> None:
    case = DENSITY.case
    for name in ("sample", "model_output"):
        out: Tensor = getattr(case, name)
        with pytest.raises(ValueError, match=f"out: overlaps {name} in memory"):
            case.run(out=out, return_log_prob=True)
    out = torch.empty_like(case.sample)
    made = case.run(out=out, return_log_prob=True)
    assert made.prev_sample is out
    assert made.log_prob is not None


def test_integers_have_no_gradient() -> None:
    with pytest.raises(
        TypeError, match=r"sample: expected float32, bfloat16, float16 or float64, got torch\.int64"
    ):
        gmm_step(
            torch.zeros(3, 63, dtype=torch.int64),
            CASE.model_output,
            CASE.coefficients,
            row=0,
            seeds=CASE.seeds,
        )
    with pytest.raises(RuntimeError, match="require gradients"):
        CASE.seeds.clone().requires_grad_()
