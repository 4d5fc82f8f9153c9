"""Gradients as PyTorch's parts expect them: its checks, transforms, checkpoints, autocast, DDP, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from differentiable import (
    ARGUMENTS,
    CASE,
    DENSITY,
    cotangent,
    direct,
    leaves_of,
    of_density,
    of_sample,
    random_density,
    step_gradients,
    with_leaves,
)
from helpers import DTYPES, assert_same_bits, random_case
from torch import Tensor, library, nn
from torch.utils.checkpoint import checkpoint

from gmmkernel import gmm_step
from gmmkernel.backends.protocol import LogProbInputs, StepInputs
from gmmkernel.ops.op import LOG_PROB, STEP

OPS = torch.ops.gmmkernel


@pytest.fixture(scope="module", autouse=True)
def informed_compiler() -> None:
    """Have the compiler, which the checks of operators use, look at PyTorch's functions before a test replaces any."""
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))


FUNCTIONS = pytest.mark.parametrize("function", [of_sample, of_density])


def test_the_raw_operators_pass_pytorch_s_checks() -> None:
    case = DENSITY.case
    row, steps = case.row, case.row if case.step is None else case.step
    m, grad = case.mixture, torch.ones_like(case.sample)
    common = case.sample, case.model_output, case.coefficients
    step = StepInputs(
        *common, case.seeds, row, steps, 0, case.model_output_uncond, case.history, m.cdf, m.offsets, m.std
    )
    for wanted in ([True] * 10, [True, False] * 5):
        library.opcheck(OPS.gmm_step_backward.default, (wanted, grad, grad, 1, "cpu", *STEP.spread(step)))
    of_mixture = m.offsets, m.std, DENSITY.case.mixture.weights
    density = LogProbInputs(
        *common, DENSITY.prev_sample, row, case.model_output_uncond, case.history, *of_mixture
    )
    given = "cpu", *LOG_PROB.spread(density)
    library.opcheck(OPS.gmm_step_log_prob.default, (False, *given))
    shares = torch.ones(3, 3) / 3
    wanted = [True] * 14
    library.opcheck(OPS.gmm_step_log_prob_backward.default, (wanted, torch.ones(3), shares, None, *given))


@FUNCTIONS
def test_functional_gradients_are_the_same(function: Callable[..., Tensor]) -> None:
    def loss(*tensors: Tensor) -> Tensor:
        return function(*tensors, CASE.seeds, 1).square().sum()

    for made, expected in zip(
        torch.func.grad(loss, argnums=(0, 1, 2, 3))(*ARGUMENTS), direct(function, 1, *ARGUMENTS), strict=True
    ):
        assert_same_bits(made, expected)


@FUNCTIONS
@pytest.mark.parametrize("row", [2, torch.tensor([1]), torch.tensor([3, 0, 2])], ids=["int", "one", "each"])
def test_a_mapped_dimension_is_part_of_the_batch(function: Callable[..., Tensor], row: Any) -> None:
    """Any of the tensors may have it, in any place; gradients are those of each call alone."""
    for mapped in ((0,), (1, 2), (3,), (0, 1, 2, 3), (2,)):
        places = [1 if i in mapped else None for i in range(4)]
        given = [
            torch.stack([tensor * (n + 1) for n in range(2)], dim=1) if i in mapped else tensor
            for i, tensor in enumerate(ARGUMENTS)
        ]

        def call(*tensors: Tensor) -> Tensor:
            return function(*tensors, CASE.seeds, row)

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            return torch.func.grad(lambda *leaves: call(*leaves).square().sum(), argnums=(0, 1, 2, 3))(
                *tensors
            )

        results = torch.func.vmap(call, in_dims=tuple(places))(*given)
        grads = torch.func.vmap(gradients, in_dims=tuple(places))(*given)
        for n in range(2):
            alone = [tensor * (n + 1) if i in mapped else tensor for i, tensor in enumerate(ARGUMENTS)]
            assert_same_bits(results[n], call(*alone))
            for made, expected in zip(grads, direct(function, row, *alone), strict=True):
                assert_same_bits(made[n], expected)


def test_a_mapped_row_out_of_range_is_nobody_else_s() -> None:
    coefficients = torch.stack([CASE.coefficients] * 2)

    def call(table: Tensor, row: Tensor) -> Tensor:
        return of_sample(*ARGUMENTS[:2], table, ARGUMENTS[3], CASE.seeds, row)

    for bad in (-1, 4):
        with pytest.raises(IndexError, match="row: expected 0 to 7, got -1"):
            torch.func.vmap(call)(coefficients, torch.tensor([[1], [bad]]))


@FUNCTIONS
def test_second_derivatives_by_transforms(function: Callable[..., Tensor]) -> None:
    arguments = [tensor.double() for tensor in ARGUMENTS]

    def loss(output: Tensor) -> Tensor:
        single = [tensor.float() for tensor in (arguments[0], output, *arguments[2:])]
        return function(*single, CASE.seeds, 1).square().sum()

    hessian = torch.func.jacrev(torch.func.grad(loss))(arguments[1])
    assert hessian.shape == (*arguments[1].shape, *arguments[1].shape)
    leaf = arguments[1].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first[0, 0], leaf)
    torch.testing.assert_close(hessian[0, 0], second)
    assert second.any()


@FUNCTIONS
def test_forward_mode_is_an_error(function: Callable[..., Tensor]) -> None:
    def call(x: Tensor) -> Tensor:
        return function(x, *ARGUMENTS[1:], CASE.seeds, 1)

    with pytest.raises(RuntimeError, match="an input has a forward-mode tangent, which is not supported"):
        torch.func.jvp(call, (ARGUMENTS[0],), (ARGUMENTS[0],))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="an input has a forward-mode tangent, which is not supported"),
    ):
        call(torch.autograd.forward_ad.make_dual(ARGUMENTS[0], ARGUMENTS[0]))
    with torch.autograd.forward_ad.dual_level():  # where nothing has a tangent, nothing is wrong
        assert_same_bits(call(ARGUMENTS[0]), call(ARGUMENTS[0].clone()))


@FUNCTIONS
def test_batches_of_gradients_besides_vmap_are_an_error(function: Callable[..., Tensor]) -> None:
    leaf = ARGUMENTS[0].clone().requires_grad_()
    made = function(leaf, *ARGUMENTS[1:], CASE.seeds, 1)
    with pytest.raises(NotImplementedError, match=r"one by one, or by torch\.func\.vmap"):
        torch.autograd.grad(made, leaf, torch.ones(2, *made.shape, dtype=made.dtype), is_grads_batched=True)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    whole = step_gradients(CASE)
    for name, tensor in leaves_of(CASE).items():
        leaf = tensor.clone().requires_grad_()
        made = with_leaves(CASE, {name: leaf}).run()

        grads = [cotangent(result, 1 + i) for i, result in enumerate(made[:2])]
        torch.autograd.backward(made[:2], grads)
        assert_same_bits(leaf.grad, whole[name])
        assert not made.components.requires_grad


def test_one_of_two_results_may_be_left_unused() -> None:

    for used in (0, 1):
        leaf = CASE.sample.clone().requires_grad_()
        made = with_leaves(CASE, {"sample": leaf}).run()
        grads = [cotangent(made[0], 1), cotangent(made[1], 2)]
        zeros = [grad if i == used else torch.zeros_like(grad) for i, grad in enumerate(grads)]
        (alone,) = torch.autograd.grad(made[used], leaf, grads[used], retain_graph=True)
        (both,) = torch.autograd.grad(made[:2], leaf, zeros)
        assert torch.equal(alone, both)


def saved(function: Callable[[], Any]) -> list[Tensor]:
    """Return the tensors that a call saves for its backward pass."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_saved_but_what_the_caller_holds(dtype: torch.dtype) -> None:
    case = random_case(1, components=3, removed=63, guidance=True, history=2, prediction="x0", dtype=dtype)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves_of(case).items()}
    of_step = with_leaves(case, leaves)
    held = {tensor.data_ptr() for tensor in (*leaves.values(), case.seeds, *case.mixture[:3])}
    held |= {index.data_ptr() for index in (case.row, case.step) if isinstance(index, Tensor)}
    for tensor in saved(of_step.run):
        assert tensor.data_ptr() in held
    density = random_density(1, components=3, guidance=True, dtype=dtype)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in density.leaves().items()}
    held = {tensor.data_ptr() for tensor in leaves.values()}
    held |= {density.case.row.data_ptr()} if isinstance(density.case.row, Tensor) else set()
    beside = [t for t in saved(density.with_leaves(leaves).log_prob) if t.data_ptr() not in held]
    assert [tuple(tensor.shape) for tensor in beside] == [(3, 3)]  # the responsibilities


class Model(nn.Module):
    """A small model and a learned mixture: three steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(63, 63)
        self.offsets = nn.Parameter(CASE.mixture.offsets.clone())

    def forward(self, x: Tensor, seeds: Tensor, checkpointed: bool = False) -> Tensor:
        def turn(x: Tensor, row: int) -> Tensor:
            mixture = CASE.mixture._replace(offsets=self.offsets)
            output = self.layer(x)
            return gmm_step(x, output, CASE.coefficients, row=row, seeds=seeds, mixture=mixture).prev_sample

        for row in range(3):
            x = checkpoint(turn, x, row, use_reentrant=False) if checkpointed else turn(x, row)
        return x


def test_checkpoints_give_the_same_bits() -> None:
    grads = []
    for checkpointed in (False, True):
        model = Model()
        model(CASE.sample, CASE.seeds, checkpointed).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert_same_bits(plain, recomputed)


def test_autocast_leaves_types_as_they_are_given() -> None:
    """A model's bfloat16 output beside a float32 sample: computed in float32, its gradient bfloat16."""
    layer = nn.Linear(63, 63)
    x = CASE.sample.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        output.retain_grad()
        made = gmm_step(x, output, CASE.coefficients, row=1, seeds=CASE.seeds)
    assert (output.dtype, made.prev_sample.dtype) == (torch.bfloat16, torch.float32)
    made.prev_sample.sum().backward()
    assert (output.grad.dtype, x.grad.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone, which needs no other and talks to nobody."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_data_parallel_training_has_the_same_gradients() -> None:
    """That ranks may share a batch follows from samples that do not depend on it."""
    grads = []
    for model in (Model(), nn.parallel.DistributedDataParallel(Model())):
        model(CASE.sample, CASE.seeds).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, parallel in zip(*grads, strict=True):
        assert plain.any()
        assert_same_bits(parallel, plain)
