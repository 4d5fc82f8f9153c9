"""Bad input to `gmm_step`: each error names the argument, what came and what is allowed, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DTYPE_PAIRS, DTYPES, StepCase, assert_same_bits, random_case

from gmmkernel import Column, MixtureTables, gmm_step_log_prob, gmm_step_log_ratio

Change = Callable[[StepCase], dict[str, Any]]
PREDICTION_NAMES = "None, 'x0', 'epsilon', 'model_output' or 'mean'"
DTYPES_OF_SAMPLES = "float32, bfloat16, float16 or float64"


def good_case(dtype: torch.dtype = torch.float32) -> StepCase:
    """Two samples of shape [3, 4], S = 4 rows, K = 3 components, R = 5, a pair of outputs, two stored predictions."""
    case = random_case(
        5,
        batch=2,
        shape=(3, 4),
        dtype=dtype,
        output_dtype=dtype,
        components=3,
        removed=5,
        guidance=True,
        history=2,
        per_sample=True,
        prediction="x0",
    )
    tables = MixtureTables(
        case.mixture.cdf[:1].repeat(4, 1),
        case.mixture.offsets[:1].repeat(4, 1, 1),
        torch.ones(4, 3, 5, dtype=case.coefficients.dtype),
    )
    return replace(case, mixture=tables, step=torch.tensor([8, 9]))


def assert_refused(case: StepCase, error: type[Exception], message: str, **changes: Any) -> re.Match[str]:
    """Assert the error, from its first word, and that `out` is untouched; return how it matched."""
    out = changes.pop("out", torch.full_like(case.sample, 9))
    before = out.clone() if isinstance(out, torch.Tensor) and out.device.type == "cpu" else None
    with pytest.raises(error, match="^" + message) as raised:
        case.run(out=out, **changes)
    if before is not None:
        assert_same_bits(out, before)
    matched = re.match(message, str(raised.value))
    assert matched
    return matched


def test_the_case_that_the_others_spoil_is_good(backend: str) -> None:
    out = torch.full((2, 3, 4), 9.0)
    made = good_case().run(out=out, backend=backend)
    assert made.prev_sample is out
    assert (out != 9).all()


LIKE_SAMPLE = ("model_output", "model_output_uncond", "history[0]", "history[1]")


def with_tensor(case: StepCase, name: str, tensor: Any) -> dict[str, Any]:
    """Replace one of the tensors shaped like the sample."""
    if not name.startswith("history"):
        return {name: tensor}
    history = list(case.history)
    history[int(name[8])] = tensor
    return {"history": history}


@pytest.mark.parametrize("name", LIKE_SAMPLE)
def test_a_tensor_like_the_sample_has_its_shape(name: str) -> None:
    case = good_case()
    for shape in ((2, 12), (3, 3, 4), (2, 4, 3), (2, 3, 1), (3, 4), (1, 3, 4)):
        message = f"{name}: expected the sample's shape (2, 3, 4), got {shape}"
        assert_refused(case, ValueError, re.escape(message), **with_tensor(case, name, torch.zeros(shape)))


@pytest.mark.parametrize("name", LIKE_SAMPLE)
@pytest.mark.parametrize("own", DTYPES)
def test_a_tensor_like_the_sample_has_an_allowed_type(name: str, own: torch.dtype) -> None:
    case = good_case(own)
    allowed = {other for sample, other in DTYPE_PAIRS if sample == own}
    for wrong in {*DTYPES, torch.int32, torch.int64, torch.bool, torch.complex64} - allowed:
        changes = with_tensor(case, name, torch.zeros(2, 3, 4).to(wrong))
        message = f"{name}: expected (.*) beside a {own} sample, got {wrong}$"
        said = assert_refused(case, TypeError, message.replace("[", r"\[").replace("]", r"\]"), **changes)
        assert sorted(said[1].split(", ")) == sorted(map(str, allowed))


@pytest.mark.parametrize("name", LIKE_SAMPLE)
def test_a_tensor_like_the_sample_is_one_beside_it(name: str) -> None:
    case = good_case()
    message = f"{name}: expected a tensor on cpu like sample, got one on meta"
    changes = with_tensor(case, name, torch.zeros(2, 3, 4, device="meta"))
    assert_refused(case, ValueError, re.escape(message), **changes)
    message = f"{name}: expected a torch.Tensor, got ndarray"
    assert_refused(case, TypeError, re.escape(message), **with_tensor(case, name, np.zeros((2, 3, 4))))


def full_mixture(**tables: torch.Tensor) -> Change:
    return lambda case: {"mixture": case.mixture._replace(**tables)}


def on_meta(name: str) -> Change:
    return lambda case: {"mixture": case.mixture._replace(**{name: getattr(case.mixture, name).to("meta")})}


def of_dtype(name: str, dtype: torch.dtype) -> Change:
    return lambda case: {"mixture": case.mixture._replace(**{name: getattr(case.mixture, name).to(dtype)})}


def given(**changes: Any) -> Change:
    return lambda case: changes


def seeds(*values: float, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


ROWS_OF_16 = "expected shape [S, 16] with S >= 1"
THRESHOLDS = "expected shape [S or 1, K - 1]"
INT_OR_TENSOR = "expected an int or an int64 tensor, got"
BAD_INPUT: list[tuple[Change, type[Exception], str]] = [
    # sample
    (given(sample=torch.zeros(2, 3, 4).long()), TypeError, f"sample: expected {DTYPES_OF_SAMPLES}, got torch.int64"),
    (given(sample=torch.zeros(2, 3, 4).bool()), TypeError, f"sample: expected {DTYPES_OF_SAMPLES}, got torch.bool"),
    (given(sample=torch.zeros(2, 3, 4).cfloat()), TypeError, f"sample: expected {DTYPES_OF_SAMPLES}, got torch.compl"),
    (given(sample=torch.tensor(1.0)), ValueError, "sample: expected at least one dimension (the batch), got a scalar"),
    (given(sample=[1.0]), TypeError, "sample: expected a torch.Tensor, got list"),
    # coefficients
    (given(coefficients=torch.zeros(4, 15)), ValueError, f"coefficients: {ROWS_OF_16}, got (4, 15)"),
    (given(coefficients=torch.zeros(16)), ValueError, f"coefficients: {ROWS_OF_16}, got (16,)"),
    (given(coefficients=torch.zeros(0, 16)), ValueError, f"coefficients: {ROWS_OF_16}, got (0, 16)"),
    (
        given(coefficients=torch.zeros(4, 16).double()),
        TypeError,
        "coefficients: expected torch.float32 beside a torch.float32 sample, got torch.float64",
    ),
    (given(coefficients=torch.zeros(4, 16).long()), TypeError, "coefficients: expected torch.float32 beside a torch.f"),
    (given(coefficients=torch.zeros(4, 16, device="meta")), ValueError, "coefficients: expected a tensor on cpu like"),
    (given(coefficients=[[0.0] * 16]), TypeError, "coefficients: expected a torch.Tensor, got list"),
    # row
    (given(row=4), IndexError, "row: expected 0 to 3, got 4"),
    (given(row=-1), IndexError, "row: expected 0 to 3, got -1"),
    (given(row=2**70), IndexError, "row: expected 0 to 3, got 1180591620717411303424"),
    (given(row=1.0), TypeError, f"row: {INT_OR_TENSOR} float"),
    (given(row=True), TypeError, f"row: {INT_OR_TENSOR} bool"),
    (given(row=None), TypeError, f"row: {INT_OR_TENSOR} NoneType"),
    (given(row=[0, 1]), TypeError, f"row: {INT_OR_TENSOR} list"),
    (given(row=torch.tensor(True)), TypeError, f"row: {INT_OR_TENSOR} torch.bool"),
    (given(row=torch.tensor([0, 1], dtype=torch.int32)), TypeError, f"row: {INT_OR_TENSOR} torch.int32"),
    (given(row=torch.tensor([0.0, 1.0])), TypeError, f"row: {INT_OR_TENSOR} torch.float32"),
    (given(row=torch.tensor([0, 1, 2])), ValueError, "row: expected shape [], [1] or [2], got (3,)"),
    (given(row=torch.tensor([[0], [1]])), ValueError, "row: expected shape [], [1] or [2], got (2, 1)"),
    (given(row=torch.zeros(0, dtype=torch.int64)), ValueError, "row: expected shape [], [1] or [2], got (0,)"),
    (given(row=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError, "row: expected a tensor on cpu like"),
    # step
    (given(step=-1), IndexError, "step: expected 0 to 4294967295, got -1"),
    (given(step=2**32), IndexError, "step: expected 0 to 4294967295, got 4294967296"),
    (given(step=0.5), TypeError, f"step: {INT_OR_TENSOR} float"),
    (given(step=False), TypeError, f"step: {INT_OR_TENSOR} bool"),
    (given(step=torch.tensor([0, 1], dtype=torch.uint8)), TypeError, f"step: {INT_OR_TENSOR} torch.uint8"),
    (given(step=torch.tensor([0, 1, 2])), ValueError, "step: expected shape [], [1] or [2], got (3,)"),
    (given(step=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError, "step: expected a tensor on cpu like"),
    # seeds
    (given(seeds=seeds(1, 2, dtype=torch.int32)), TypeError, "seeds: expected int64, got torch.int32"),
    (given(seeds=seeds(1, 2, dtype=torch.uint64)), TypeError, "seeds: expected int64, got torch.uint64"),
    (given(seeds=seeds(1, 2, dtype=torch.float64)), TypeError, "seeds: expected int64, got torch.float64"),
    (given(seeds=seeds(1, 0, dtype=torch.bool)), TypeError, "seeds: expected int64, got torch.bool"),
    (given(seeds=seeds(1, 2, 3)), ValueError, "seeds: expected one for each of 2 samples, got 3"),
    (given(seeds=seeds(1)), ValueError, "seeds: expected one for each of 2 samples, got 1"),
    (given(seeds=seeds(1, 2)[:, None]), ValueError, "seeds: expected shape [B], got (2, 1)"),
    (given(seeds=torch.tensor(1)), ValueError, "seeds: expected shape [B], got ()"),
    (given(seeds=seeds(1, 2).to("meta")), ValueError, "seeds: expected a tensor on cpu like sample, got one on meta"),
    (given(seeds=[1, 2]), TypeError, "seeds: expected a torch.Tensor, got list"),
    (given(seeds=7), TypeError, "seeds: expected a torch.Tensor, got int"),
    # history
    (given(history=[torch.zeros(2, 3, 4)] * 5), ValueError, "history: expected at most 4 tensors, got 5"),
    (given(history=torch.zeros(2, 2, 3, 4)), TypeError, "history: expected a sequence of tensors, got one tensor"),
    (given(history=[None]), TypeError, "history[0]: expected a torch.Tensor, got NoneType"),
    # mixture
    (given(mixture=(1, 2, 3)), TypeError, "mixture: expected MixtureTables or None, got tuple"),
    (full_mixture(cdf=[1, 2]), TypeError, "mixture.cdf: expected a torch.Tensor, got list"),
    (full_mixture(offsets=None), TypeError, "mixture.offsets: expected a torch.Tensor, got NoneType"),
    (full_mixture(std=0.5), TypeError, "mixture.std: expected a torch.Tensor, got float"),
    (of_dtype("cdf", torch.int32), TypeError, "mixture.cdf: expected int64, got torch.int32"),
    (of_dtype("cdf", torch.float32), TypeError, "mixture.cdf: expected int64, got torch.float32"),
    (of_dtype("offsets", torch.float64), TypeError, "mixture.offsets: expected torch.float32, got torch.float64"),
    (of_dtype("offsets", torch.bfloat16), TypeError, "mixture.offsets: expected torch.float32, got torch.bfloat16"),
    (of_dtype("std", torch.float64), TypeError, "mixture.std: expected torch.float32, got torch.float64"),
    (on_meta("cdf"), ValueError, "mixture.cdf: expected a tensor on cpu like sample, got one on meta"),
    (on_meta("offsets"), ValueError, "mixture.offsets: expected a tensor on cpu like sample, got one on meta"),
    (on_meta("std"), ValueError, "mixture.std: expected a tensor on cpu like sample, got one on meta"),
    (full_mixture(cdf=torch.zeros(2).long()), ValueError, f"mixture.cdf: {THRESHOLDS}, got (2,)"),
    (full_mixture(cdf=torch.zeros(0, 2).long()), ValueError, f"mixture.cdf: {THRESHOLDS}, got (0, 2)"),
    (
        full_mixture(cdf=torch.zeros(1, 1024).long(), offsets=torch.zeros(1, 1025, 12)),
        ValueError,
        "mixture.cdf: expected at most 1024 components, got 1025",
    ),
    (full_mixture(offsets=torch.zeros(3, 12)), ValueError, "mixture.offsets: expected three dimensions, got shape (3,"),
    (full_mixture(std=torch.ones(12)), ValueError, "mixture.std: expected three dimensions, got shape (12,)"),
    (
        full_mixture(cdf=torch.zeros(3, 2).long()),
        ValueError,
        "mixture.cdf: expected 1 entry or one for each of 4 coefficient rows, got 3",
    ),
    (
        full_mixture(offsets=torch.zeros(5, 3, 12)),
        ValueError,
        "mixture.offsets: expected 1 entry or one for each of 4 coefficient rows, got 5",
    ),
    (
        full_mixture(std=torch.ones(0, 3, 12)),
        ValueError,
        "mixture.std: expected 1 entry or one for each of 4 coefficient rows, got 0",
    ),
    (full_mixture(offsets=torch.zeros(1, 2, 12)), ValueError, "mixture.offsets: expected K = 3 components, got 2"),
    (full_mixture(std=torch.ones(1, 2, 5)), ValueError, "mixture.std: expected 1 or K = 3 components, got 2"),
    (full_mixture(std=torch.ones(1, 0, 5)), ValueError, "mixture.std: expected 1 or K = 3 components, got 0"),
    (full_mixture(std=torch.ones(1, 3, 13)), ValueError, "mixture.std: expected R <= D = 12 elements, got 13"),
    (
        full_mixture(offsets=torch.zeros(1, 3, 13)),
        ValueError,
        "mixture: made for D = 13 elements, but a sample of shape (3, 4) has D = 12",
    ),
    # names
    *(
        (given(prediction=bad), ValueError, f"prediction: expected {PREDICTION_NAMES}, got {bad!r}")
        for bad in ("eps", 1, ["x0"])
    ),
    (given(backend="gpu"), ValueError, "backend: expected one of ['cpu', 'reference', 'cuda', 'triton'], got 'gpu'"),
    # out
    (given(out=torch.full((2, 12), 9.0)), ValueError, "out: expected shape (2, 3, 4), got (2, 12)"),
    (given(out=torch.full((2, 3, 4), 9.0).double()), TypeError, "out: expected torch.float32, got torch.float64"),
    (given(out=torch.full((2, 3, 4), 9.0).half()), TypeError, "out: expected torch.float32, got torch.float16"),
    (given(out=torch.zeros(2, 3, 4, device="meta")), ValueError, "out: expected a tensor on cpu like"),
    (given(out=np.zeros((2, 3, 4))), TypeError, "out: expected a torch.Tensor, got ndarray"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUT, ids=[entry[2] for entry in BAD_INPUT])
def test_bad_input_is_refused(change: Change, error: type[Exception], message: str) -> None:
    case = good_case()
    assert_refused(case, error, re.escape(message), **change(case))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (given(row=torch.tensor([0, 4])), "row: expected 0 to 3, got 4 for sample 1"),
        (given(row=torch.tensor([-1, 0])), "row: expected 0 to 3, got -1 for sample 0"),
        (given(row=torch.tensor(4)), "row: expected 0 to 3, got 4 for sample 0"),
        (given(row=torch.tensor([2**40])), "row: expected 0 to 3, got 1099511627776 for sample 0"),
        (given(step=torch.tensor([0, -1])), "step: expected 0 to 4294967295, got -1 for sample 1"),
        (given(step=torch.tensor([2**32, 0])), "step: expected 0 to 4294967295, got 4294967296 for sample 0"),
        (
            given(row=torch.tensor([9, 0]), step=torch.tensor([-9, 0])),
            "row: expected 0 to 3, got 9 for sample 0",
        ),
    ],
)
def test_an_index_tensor_out_of_range_is_refused(backend: str, change: Change, message: str) -> None:
    case = good_case()
    assert_refused(case, IndexError, re.escape(message), backend=backend, **change(case))


MISSING = [
    (Column.HISTORY_3, 0.5, "history: expected at least 4 tensors, which row 2 reads, got 2"),
    (
        Column.GUIDANCE,
        7.5,
        "model_output_uncond: expected the unconditional output, for the GUIDANCE of 7.5 in row 2",
    ),
]


@pytest.mark.parametrize("row", [2, torch.tensor([1, 2])], ids=["int", "each"])
@pytest.mark.parametrize(("column", "value", "message"), MISSING, ids=["history", "guidance"])
def test_a_term_whose_tensor_is_missing_is_refused(
    column: int, value: float, message: str, row: int | torch.Tensor
) -> None:
    """Only where it is read: not by other rows, and not where differences are taken of coefficients."""
    case = replace(good_case(), mixture=None, prediction=None, row=row)
    x, rows = case.sample, case.coefficients
    if column == Column.GUIDANCE:
        case = replace(case, model_output_uncond=None)
        rows[:, Column.GUIDANCE] = 1
    rows[2, column] = value
    given = {
        "row": row,
        "history": case.history,
        "model_output_uncond": case.model_output_uncond,
        "backend": "cpu",
    }
    out = torch.full_like(x, 9)
    for call in (
        lambda: case.run(out=out),
        lambda: replace(case, sample=x.clone().requires_grad_()).run(),
        lambda: gmm_step_log_prob(x, x, x, rows, **given),
        lambda: gmm_step_log_ratio(
            x, x, x, x, rows, old_model_output_uncond=case.model_output_uncond, **given
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert bool((out == 9).all())
    other = replace(case, row=1)
    other.run()
    replace(case, coefficients=rows.clone().requires_grad_()).run()


def test_float64_samples_take_float64_coefficients_and_tables() -> None:
    case = good_case(torch.float64)
    message = "coefficients: expected torch.float64 beside a torch.float64 sample, got torch.float32"
    assert_refused(case, TypeError, message, coefficients=case.coefficients.float())
    mixture = case.mixture._replace(offsets=case.mixture.offsets.float())
    message = "mixture.offsets: expected torch.float64, got torch.float32"
    assert_refused(case, TypeError, message, mixture=mixture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_out_beside_inputs_that_ask_for_gradients_is_refused(dtype: torch.dtype) -> None:
    case = good_case(dtype)
    message = "out: expected None where an input requires a gradient; detach the inputs or leave it out"
    changes = [
        with_tensor(case, name, torch.zeros(2, 3, 4, dtype=dtype, requires_grad=True)) for name in LIKE_SAMPLE
    ]
    changes += [{name: getattr(case, name).clone().requires_grad_()} for name in ("sample", "coefficients")]
    for name in ("offsets", "std"):
        table = getattr(case.mixture, name).clone().requires_grad_()
        changes.append({"mixture": case.mixture._replace(**{name: table})})
    for change in changes:
        assert_refused(case, RuntimeError, message, **change)
        with torch.no_grad():
            made = case.run(**change, out=torch.empty(2, 3, 4, dtype=dtype))
        assert not made.prev_sample.requires_grad


def test_an_out_that_asks_for_a_gradient_is_refused() -> None:
    case = good_case()
    out = torch.full((2, 3, 4), 9.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="out: "):
        case.run(out=out)


def test_forward_mode_tangents_are_refused() -> None:
    case = good_case()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.sample, torch.ones_like(case.sample))
        with pytest.raises(RuntimeError, match="forward"):
            case.run(sample=dual)


def test_required_arguments_are_keyword_only() -> None:
    from gmmkernel import gmm_step

    case = good_case()
    with pytest.raises(TypeError, match="takes 3 positional arguments"):
        gmm_step(case.sample, case.model_output, case.coefficients, 0, case.seeds)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'row'"):
        gmm_step(case.sample, case.model_output, case.coefficients, seeds=case.seeds)
