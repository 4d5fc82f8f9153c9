"""Log-ratios: exactly 0 between equal outputs, precise where a difference of log-densities is not, bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs
from differentiable import Ratio, random_ratio
from helpers import DTYPE_PAIRS, DTYPES, assert_same_bits
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from gmmkernel import (
    Column,
    flow_sde_coefficients,
    flow_times,
    gmm_step,
    gmm_step_log_prob,
    gmm_step_log_ratio,
)
from gmmkernel.backends import cpu
from gmmkernel.backends.protocol import LogRatioInputs
from gmmkernel.ops.eager import eager_log_ratio
from gmmkernel.ops.op import LOG_RATIO

OPS = torch.ops.gmmkernel
FLOAT = {"dtype": torch.float32, "output_dtype": torch.float32}
ROWS = flow_sde_coefficients(flow_times(10, shift=3.0), dtype=torch.float64).coefficients


def in_float64(ratio: Ratio) -> Tensor:
    """Return log-ratios and divergences [B, 2] by the equations, in float64, for autograd to go through."""
    case = ratio.case

    def flat(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.double().flatten(1)

    outputs = (
        case.model_output,
        ratio.old_model_output,
        case.model_output_uncond,
        ratio.old_model_output_uncond,
    )
    row = case.coefficients.double()[torch.as_tensor(case.row).expand(len(case.sample))]
    stored = [flat(tensor) for tensor in case.history]
    return eager_log_ratio(flat(ratio.prev_sample), flat(case.sample), *map(flat, outputs), stored, row)


def check_bits(seed: int, tiles: bool, **options: Any) -> None:
    made = random_ratio(seed, batch=3, positive=seed % 3 > 0, **options)
    if not tiles:
        expected = made.gradients(backend="reference")
        for name in cpu.instruction_sets():
            with cpu.use_instruction_set(name):
                found = made.gradients(backend="cpu")
            for key, tensor in expected.items():
                assert_same_bits(found[key], tensor)
        return
    for one, other in zip(
        made.run(reduction="tiles"), made.run(reduction="tiles", backend="reference"), strict=True
    ):
        assert_same_bits(one, other)


def test_every_option_and_size_gives_the_same_bits() -> None:
    choices = pairs(
        shape=[(1,), (63,), (1000,), (1025,)],
        types=DTYPE_PAIRS,
        guidance=(False, True),
        history=(0, 1, 4),
        change=(1.0, 1e-4),
        special=(False, True),
        tiles=(False, True),
    )
    for options in choices:
        options["dtype"], options["output_dtype"] = options.pop("types")
    check_all(check_bits, numbered(choices))


def check_truth(seed: int, **options: Any) -> None:
    made = random_ratio(seed, batch=3, shape=(40,), **options)
    leaves = {name: tensor.double().requires_grad_() for name, tensor in made.leaves().items()}
    true = in_float64(made.with_leaves(leaves))
    found = made.gradients(grads=[torch.ones(3), torch.full((3,), 0.5)])
    expected = torch.autograd.grad(
        true, list(leaves.values()), torch.tensor([1.0, 0.5]).double().expand(3, 2)
    )
    for name, tensor, truth in (
        ("log_ratio", found["log_ratio"], true[:, 0]),
        ("divergence", found["divergence"], true[:, 1]),
        *((name, found[name], grad) for name, grad in zip(leaves, expected, strict=True)),
    ):
        half = tensor.dtype in (torch.bfloat16, torch.float16)
        bound = 1e-12 if tensor.dtype == torch.float64 else 1e-2 if half else 2e-5
        scale = float(truth.detach().abs().max()) + 1e-3
        assert float((tensor.double() - truth).abs().max()) <= bound * scale, name


def test_results_and_gradients_are_those_of_the_equations() -> None:
    choices = pairs(
        dtype=(torch.float32, torch.float64), guidance=(False, True), history=(0, 2), change=(1.0, 0.1)
    )
    for options in choices:
        options["output_dtype"] = options["dtype"]
    check_all(check_truth, [options | {"seed": 20 + seed} for seed, options in enumerate(choices)])


def test_derivatives_agree_with_differences() -> None:
    made = random_ratio(
        5, batch=2, shape=(3,), dtype=torch.float64, output_dtype=torch.float64, guidance=True, history=1
    )
    made.case.coefficients[:, Column.CLIP_MIN], made.case.coefficients[:, Column.CLIP_MAX] = (
        -math.inf,
        math.inf,
    )
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in made.leaves().items()}

    def of_leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(made.with_leaves(dict(zip(leaves, tensors, strict=True))).run())

    assert gradcheck(of_leaves, list(leaves.values()))
    assert gradgradcheck(of_leaves, list(leaves.values()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_outputs_give_exactly_nothing(backend: str, dtype: torch.dtype) -> None:
    """Whatever the sample is: a ratio is 1 before there is an update."""
    made = random_ratio(3, shape=(300,), dtype=dtype, guidance=True, history=2)
    same = replace(
        made, old_model_output=made.case.model_output, old_model_output_uncond=made.case.model_output_uncond
    )
    for tensor in same.run(backend=backend):
        assert (tensor == 0).all()


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_precision_does_not_depend_on_how_small_the_change_is(change: float, dtype: torch.dtype) -> None:
    """1e-6 for 65,536 elements, where the difference of two log-densities has hardly a digit: it fails this bound."""
    generator = torch.Generator().manual_seed(1)
    x, old = torch.randn(2, 2, 65536, generator=generator).unbind(0)
    new = (old + change * torch.randn(old.shape, generator=generator)).to(dtype)
    old, rows = old.to(dtype), ROWS.float()
    row = torch.tensor([1, 5])
    seeds = torch.arange(2)
    y = gmm_step(x, old, rows, row=row, seeds=seeds).prev_sample
    found = gmm_step_log_ratio(y, x, new, old, rows, row=row)
    true = gmm_step_log_ratio(y.double(), x.double(), new.double(), old.double(), rows.double(), row=row)
    scale = true.divergence.sqrt()  # a log-ratio's own standard deviation is sqrt(2) of this
    assert ((found.log_ratio - true.log_ratio).abs() <= 1e-6 * (true.log_ratio.abs() + scale)).all()
    assert ((found.divergence - true.divergence).abs() <= 1e-6 * true.divergence).all()
    assert (found.divergence > 0).all()
    difference = gmm_step_log_prob(y, x, new, rows, row=row) - gmm_step_log_prob(y, x, old, rows, row=row)
    if change < 1e-2:
        assert ((difference - true.log_ratio).abs() > 1e-6 * scale).all()


def test_a_sample_s_result_is_its_own(set_threads: Callable[[int], None]) -> None:
    """Not the batch's, the layout's or the threads'; rows may be a tensor."""
    made = random_ratio(
        7, batch=4, shape=(3, 5, 70), dtype=torch.float32, guidance=True, history=1, per_sample=True
    )
    together = made.gradients()
    set_threads(1)
    for name, tensor in made.gradients().items():
        assert_same_bits(tensor, together[name])

    def strided(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT

    changed = made.with_leaves({name: strided(tensor) for name, tensor in made.leaves().items()})
    for one, other in zip(changed.run(), made.run(), strict=True):
        assert_same_bits(one, other)
    for b in range(4):
        leaves = {name: tensor[b : b + 1] for name, tensor in made.leaves().items()}
        alone = made.with_leaves(leaves)
        alone = replace(alone, case=replace(alone.case, row=made.case.row[b : b + 1]))
        for one, other in zip(alone.run(), made.run(), strict=True):
            assert_same_bits(one, other[b : b + 1])


def test_without_noise_there_is_no_density(backend: str) -> None:
    """Nor does a sample without one spoil the others' gradients, if the loss leaves it out."""
    made = random_ratio(9, batch=3, shape=(50,), dtype=torch.float32)
    rows = made.case.coefficients.clone()
    rows[1, Column.SIGMA] = 0
    made = replace(made, case=replace(made.case, coefficients=rows, row=torch.tensor([0, 1, 2])))
    found = made.run(backend=backend)
    for tensor in found:
        assert tensor.isnan().tolist() == [False, True, False]
    grads = made.gradients(grads=[torch.tensor([1.0, 0.0, 2.0])] * 2, backend=backend)
    for name, grad in grads.items():
        if name not in found._fields:
            assert (grad[1] == 0).all()
            assert grad[[0, 2]].isfinite().all()


def test_second_derivatives_leave_out_what_has_no_part() -> None:
    made = random_ratio(9, batch=2, shape=(4,), dtype=torch.float64, output_dtype=torch.float64)
    rows = made.case.coefficients.clone()
    rows[1, Column.SIGMA] = 0
    made = replace(made, case=replace(made.case, coefficients=rows, row=torch.tensor([0, 1])))
    output = made.case.model_output.clone().requires_grad_()
    found = made.with_leaves({"model_output": output}).run()
    (grad,) = torch.autograd.grad(
        torch.where(found.log_ratio.isnan(), 0, found.log_ratio).sum(), output, create_graph=True
    )
    (again,) = torch.autograd.grad(grad.square().sum(), output)
    assert (again[1] == 0).all()
    assert again[0].isfinite().all()
    assert (again[0] != 0).any()


def test_reductions_are_of_the_same_sum() -> None:
    made = random_ratio(4, batch=2, shape=(2100,), dtype=torch.float32)
    of_sum, of_mean, of_tiles = (made.run(reduction=name) for name in ("sum", "mean", "tiles"))
    for total, mean, tiles in zip(of_sum, of_mean, of_tiles, strict=True):
        assert_same_bits(mean, total / torch.tensor(2100.0))
        assert tiles.shape == (2, 3)
        assert torch.allclose(tiles.sum(1), total, rtol=1e-5)
    found = made.gradients(reduction="mean")
    whole = made.gradients(grads=[torch.ones(2) / 2100] * 2)
    ones = made.gradients(grads=[torch.ones(2, 3) / 2100] * 2, reduction="tiles")
    for name in made.leaves():
        assert_same_bits(ones[name], whole[name])
        assert found[name].shape == whole[name].shape


def test_pytorch_s_checks_pass() -> None:
    made = random_ratio(
        3, batch=3, shape=(20,), dtype=torch.float32, output_dtype=torch.float32, guidance=True, history=2
    )

    case = made.case
    inputs = LogRatioInputs(
        *(case.sample, case.model_output, made.old_model_output, case.coefficients, made.prev_sample, 1),
        *(case.model_output_uncond, made.old_model_output_uncond, case.history),
    )
    given = "cpu", *LOG_RATIO.spread(inputs)
    for tiles in (False, True):
        library.opcheck(OPS.gmm_step_log_ratio.default, (tiles, *given))
    for wanted in ([True] * 8, [True, False] * 4):
        library.opcheck(OPS.gmm_step_log_ratio_backward.default, (wanted, torch.ones(3, 2), *given))


def test_transforms_give_the_same_bits() -> None:
    made = random_ratio(3, batch=3, shape=(20,), **FLOAT)

    def total(output: Tensor, old: Tensor) -> Tensor:
        found = made.with_leaves({"model_output": output, "old_model_output": old}).run()
        return found.log_ratio.sum() + found.divergence.sum()

    given = made.case.model_output, made.old_model_output
    expected = torch.func.grad(total, argnums=(0, 1))(*given)
    mapped = torch.func.vmap(torch.func.grad(total, argnums=(0, 1)))(
        *(torch.stack([each] * 2) for each in given)
    )
    for one, each in zip(expected, mapped, strict=True):
        for n in range(2):
            assert_same_bits(each[n], one)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no outputs": ({"old_model_output": None}, TypeError, "old_model_output: expected a torch.Tensor"),
    "another shape": (
        {"old_model_output": torch.zeros(3, 5)},
        ValueError,
        "old_model_output: expected the sample's",
    ),
    "another type": (
        {"old_model_output": torch.zeros(3, 4).double()},
        TypeError,
        "old_model_output: expected",
    ),
    "half a pair": (
        {"model_output_uncond": torch.zeros(3, 4)},
        ValueError,
        "old_model_output_uncond: expected",
    ),
    "the other half": (
        {"old_model_output_uncond": torch.zeros(3, 4)},
        ValueError,
        "model_output_uncond: expected",
    ),
    "prev_sample": (
        {"prev_sample": torch.zeros(3, 4).half()},
        TypeError,
        "prev_sample: expected the sample's dtype",
    ),
    "row": ({"row": 10}, IndexError, "row: expected 0 to 9"),
    "rows": ({"row": torch.tensor([0, -1, 2])}, IndexError, "row: expected 0 to 9, got -1 for sample 1"),
    "reduction": ({"reduction": "none"}, ValueError, 'reduction: expected "sum", "mean" or "tiles"'),
    "a gradient": (
        {"coefficients": ROWS.float().requires_grad_()},
        RuntimeError,
        "coefficients: expected a tensor that requires no gradient",
    ),
    "rows of another type": ({"coefficients": ROWS}, TypeError, "coefficients: expected torch.float32"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused(fault: str) -> None:
    changes, error, message = BAD[fault]
    names = ("prev_sample", "sample", "model_output", "old_model_output")
    arguments: dict[str, Any] = {name: torch.zeros(3, 4) for name in names}
    arguments |= {"coefficients": ROWS.float(), "row": 0} | changes
    with pytest.raises(error, match="^" + message):
        gmm_step_log_ratio(**arguments)
