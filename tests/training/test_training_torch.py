"""Training ops as PyTorch's parts expect them: its checks, transforms, second derivatives, graphs kept, DDP's use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from derivatives import DIRECTED
from helpers import DTYPES, assert_same_bits
from losses import TrainingCase, random_case
from torch import Tensor, library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from gmmkernel import add_noise, noise_schedule, skip_step_loss, training_coefficients
from gmmkernel.backends.protocol import NoiseInputs, TrainingInputs
from gmmkernel.ops.op import LOSS, NOISE, RESIDUAL, ResidualInputs

OPS = torch.ops.gmmkernel
CASE = random_case(3, per_sample=True, sample_dtype=torch.float32)
DOUBLE = random_case(5, shape=(2, 5), dtype=torch.float64, sample_dtype=torch.float64, per_sample=True)


@pytest.fixture(scope="module", autouse=True)
def informed_compiler() -> None:
    """Have the compiler, which the checks of operators use, look at PyTorch's functions before a test replaces any."""
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))


# Numbers and tensors for indices, with and without derivatives that the forward pass leaves.
@pytest.mark.parametrize(("dtype", "per_sample"), [(torch.float32, True), (torch.bfloat16, False)])
def test_the_raw_operators_pass_pytorch_s_checks(dtype: torch.dtype, per_sample: bool) -> None:
    case = random_case(1, dtype=dtype, shape=(3, 5), per_sample=per_sample)
    indices = case.row, case.step
    noise = NoiseInputs(case.data, case.coefficients, case.seeds, *indices)
    for written in (torch.zeros_like(case.data), None):
        given = torch.zeros_like(case.data), written, "cpu", *NOISE.spread(noise)
        library.opcheck(OPS.add_noise.default, given)
    loss = TrainingInputs(case.model_output, case.sample, case.coefficients, case.seeds, *indices)
    for left_behind in (False, dtype == case.coefficients.dtype):
        library.opcheck(OPS.skip_step_loss.default, (left_behind, "cpu", *LOSS.spread(loss)))
    if dtype == case.coefficients.dtype:
        residual, factors = torch.ones_like(case.model_output), ResidualInputs(case.coefficients, *indices)
        library.opcheck(OPS.scale_residual.default, (residual, case.grad, "cpu", *RESIDUAL.spread(factors)))
    for wanted in ([True, True], [per_sample, not per_sample], [False, False]):
        library.opcheck(OPS.skip_step_loss_backward.default, (wanted, case.grad, "cpu", *LOSS.spread(loss)))


@pytest.mark.parametrize("case", [CASE, random_case(6, batch=0), random_case(7, dtype=torch.bfloat16)])
def test_fake_tensors_get_shapes_and_types_without_computing(case: TrainingCase) -> None:
    mode = FakeTensorMode()

    def to_fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, Tensor) else value

    fields = {name: to_fake(getattr(case, name)) for name in TrainingCase.__dataclass_fields__}
    expected = case.results()
    with mode:  # in which reading a value is an error
        fake = TrainingCase(**fields).results()
    for name, tensor in expected.items():
        assert (fake[name].shape, fake[name].dtype) == (tensor.shape, tensor.dtype)


def loss_of(case: TrainingCase, data: Tensor, output: Tensor, sample: Tensor) -> Tensor:
    noised = replace(case, data=data).noised()
    return case.loss(model_output=output + noised, sample=sample).mul(case.grad).sum()


def test_derivatives_agree_with_differences() -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in (DOUBLE.data, DOUBLE.model_output, DOUBLE.sample)]

    def function(*tensors: Tensor) -> Tensor:
        return loss_of(DOUBLE, *tensors)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, **DIRECTED)


def test_second_derivatives_of_float32_are_those_of_float64() -> None:
    narrow = random_case(9, shape=(50,), sample_dtype=torch.float32, per_sample=True)
    wide = replace(
        narrow.map_samples(lambda tensor: tensor.double()),
        coefficients=narrow.coefficients.double(),
        grad=narrow.grad.double(),
    )
    made = []
    for case in (narrow, wide):
        leaves = [case.model_output.clone().requires_grad_(), case.sample.clone().requires_grad_()]
        loss = case.loss(model_output=leaves[0], sample=leaves[1])
        first = torch.autograd.grad(loss, leaves, case.grad, create_graph=True)
        made.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for actual, expected in zip(*made, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-7)


def test_functional_gradients_are_the_same() -> None:
    def function(*tensors: Tensor) -> Tensor:
        return loss_of(CASE, *tensors)

    tensors = (CASE.data, CASE.model_output, CASE.sample)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(function(*leaves), leaves)
    for made, own in zip(torch.func.grad(function, argnums=(0, 1, 2))(*tensors), expected, strict=True):
        assert_same_bits(made, own)


def test_vmap_gives_each_its_own() -> None:
    """Over outputs, seeds, rows and tables, together and apart; gradients of every sample on its own as well."""
    cases = [random_case(seed, per_sample=True, sample_dtype=torch.float32) for seed in range(3)]
    names = ("data", "model_output", "sample", "coefficients", "row", "step", "seeds")
    stacked = {name: torch.stack([getattr(case, name) for case in cases]) for name in names}

    def run(values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        case = replace(cases[0], **values)
        noised = case.noised()
        gradient = torch.func.grad(lambda output: case.loss(model_output=output).sum())(case.model_output)
        return noised, case.loss(), gradient

    for mapped in (names, ("model_output",), ("seeds",), ("row",), ("coefficients",), ("step", "sample")):
        values = {name: stacked[name] if name in mapped else stacked[name][0] for name in names}
        dims = {name: 0 if name in mapped else None for name in names}
        made = torch.func.vmap(run, in_dims=(dims,))(values)
        for n in range(3):
            own = {name: stacked[name][n if name in mapped else 0] for name in names}
            for actual, expected in zip(made, run(own), strict=True):
                assert_same_bits(actual[n] if actual.dim() > expected.dim() else actual, expected)


def test_second_derivatives_by_transforms() -> None:
    def loss(output: Tensor) -> Tensor:
        return DOUBLE.loss(model_output=output).sum()

    made = torch.func.jacrev(torch.func.jacrev(loss))(DOUBLE.model_output).reshape(30, 30)
    leaf = DOUBLE.model_output.clone().requires_grad_()
    expected = torch.autograd.functional.hessian(loss, leaf).reshape(30, 30)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(made != 0, torch.diag(torch.diag(made)) != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_may_be_gone_back_more_than_once(dtype: torch.dtype, backend: str) -> None:
    """The first time uses up what the forward pass left; the next ones have the same bits, and leave earlier ones."""
    case = random_case(8, dtype=dtype, with_sample=False, shape=(1030,))
    leaf = case.model_output.clone().requires_grad_()
    losses = case.loss(model_output=leaf, backend=backend)
    first, second, third = (
        torch.autograd.grad(losses, leaf, case.grad * factor, retain_graph=True)[0] for factor in (1, 1, 2)
    )
    again = case.loss(model_output=leaf, backend=backend)
    (double,) = torch.autograd.grad(again, leaf, case.grad, create_graph=True)
    assert_same_bits(first, second)
    assert_same_bits(double.detach(), first)
    assert not torch.equal(third, first)
    assert first.data_ptr() != second.data_ptr()


def test_gradients_of_the_mean_flow_as_those_of_its_parts() -> None:
    case = random_case(10, with_sample=False)
    leaf = case.model_output.clone().requires_grad_()
    case.loss(model_output=leaf).mean().backward()
    (parts,) = torch.autograd.grad(case.loss(model_output=leaf), leaf, torch.full((3,), 1 / 3))
    assert_same_bits(leaf.grad, parts)


def test_forward_mode_is_refused() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(CASE.data, torch.ones_like(CASE.data))
        with pytest.raises(RuntimeError, match="add_noise: an input has a forward-mode tangent"):
            replace(CASE, data=dual).noised()
        with pytest.raises(RuntimeError, match="skip_step_loss: an input has a forward-mode tangent"):
            CASE.loss(model_output=dual)


def test_checkpoints_and_autocast_change_nothing() -> None:
    torch.manual_seed(0)
    network = nn.Linear(63, 63)

    def loss(data: Tensor) -> Tensor:
        return CASE.loss(model_output=network(data)).sum()

    gradients = []
    for run in (lambda: loss(CASE.data), lambda: checkpoint(loss, CASE.data, use_reentrant=False)):
        network.zero_grad()
        run().backward()
        gradients.append(network.weight.grad.clone())
    assert_same_bits(*gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(CASE.data)
        assert output.dtype == torch.bfloat16
        assert CASE.loss(model_output=output).dtype == torch.float32


def test_ranks_get_the_noise_of_their_samples() -> None:
    """However many share a batch: a seed belongs to a sample, not to a process."""
    case = random_case(12, batch=6, per_sample=True)
    whole = case.results()
    for ranks in (2, 3):
        parts = [case.take(torch.arange(6)[rank::ranks]).results() for rank in range(ranks)]
        for name, tensor in whole.items():
            for rank, part in enumerate(parts):
                assert_same_bits(part[name], tensor[rank::ranks])


def test_learning_lowers_the_loss() -> None:
    """Three lines in a loop of one's own."""
    torch.manual_seed(0)
    coefficients = training_coefficients(noise_schedule())
    network = nn.Sequential(nn.Linear(17, 64), nn.SiLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    data, seeds = torch.linspace(-1, 1, 16).repeat(32, 1), torch.arange(32)
    history = []
    for step in range(60):
        t = torch.randint(0, 1000, (32,))
        noised = add_noise(data, coefficients, row=t, seeds=seeds, step=step)
        output = network(torch.cat([noised, t[:, None] / 1000], 1))
        loss = skip_step_loss(output, coefficients, row=t, seeds=seeds, step=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-10:]) < 0.8 * sum(history[:10])
