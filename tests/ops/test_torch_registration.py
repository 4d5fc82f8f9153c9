"""The raw ops as PyTorch sees them: schemas, fake tensors, tracing, export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import StepCase, assert_same_bits, assert_same_output, bare, random_case
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from gmmkernel import MixtureTables, Stream, draw_components, gmm_step, standard_normal
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.ops.op import COMPONENTS, NORMAL, STEP, ComponentInputs, NormalInputs

OPS = torch.ops.gmmkernel
PREDICTION_KINDS = {None: 0, "x0": 1, "epsilon": 2, "model_output": 3, "mean": 4}


def raw_arguments(case: StepCase, backend: str = "cpu") -> tuple[Any, ...]:
    """Arguments of the raw op: tensors to write, then the inputs."""

    def index(value: int | torch.Tensor) -> int | torch.Tensor:
        return value.reshape(-1) if isinstance(value, torch.Tensor) else value

    row, step = index(case.row), index(case.row if case.step is None else case.step)
    tables = (None,) * 3 if case.mixture is None else case.mixture[:3]
    inputs = StepInputs(
        case.sample, case.model_output, case.coefficients, case.seeds, row, step, 0,
        case.model_output_uncond, case.history, *tables,
    )  # fmt: skip
    return (
        torch.zeros_like(case.sample),
        None if case.prediction is None else torch.zeros_like(case.sample),
        torch.zeros_like(case.seeds),
        case.coefficients.new_zeros(len(case.seeds)) if case.mixture is None else None,
        PREDICTION_KINDS[case.prediction],
        backend,
        *STEP.spread(inputs),
    )


CASES = {
    "everything": random_case(
        1, shape=(3, 5), components=3, removed=4, guidance=True, history=4, per_sample=True, prediction="x0"
    ),
    "bare": random_case(2, components=0, guidance=False, history=0, per_sample=False, prediction=None),
    "half": random_case(3, dtype=torch.bfloat16, components=2, history=1, prediction="epsilon"),
    "double": random_case(4, dtype=torch.float64, components=1, history=0, prediction="model_output"),
    "empty": random_case(5, batch=0, components=2, prediction="x0"),
}
by_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", ["everything", "bare", "empty"])
def test_opcheck_of_the_step(name: str) -> None:
    torch_library.opcheck(OPS.gmm_step.default, raw_arguments(CASES[name]))


def test_opcheck_of_strided_tensors() -> None:
    case = random_case(7, shape=(2, 3, 4), components=2, history=1)
    strided = case.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last))
    arguments = raw_arguments(strided)
    assert not arguments[0].is_contiguous()
    torch_library.opcheck(OPS.gmm_step.default, arguments)


def test_opcheck_of_noise() -> None:
    out, seeds = torch.zeros(3, 2, 5), torch.arange(3)
    given = int(Stream.INITIAL), "cpu", *NORMAL.spread(NormalInputs(seeds, 7))
    torch_library.opcheck(OPS.standard_normal.default, (out, *given))
    given = 0, "cpu", *NORMAL.spread(NormalInputs(seeds, torch.tensor([4, 5, 6])))
    torch_library.opcheck(OPS.standard_normal.default, (out.half(), *given))


def test_opcheck_of_components() -> None:
    cdf = torch.tensor([[2**30, 2**31]])
    for seeds in (torch.arange(4), torch.arange(8)[::2], torch.arange(0)):
        out = torch.zeros(len(seeds), dtype=torch.int64)
        inputs = ComponentInputs(seeds.contiguous(), cdf, 0, 3)
        arguments = out, "reference", *COMPONENTS.spread(inputs)
        torch_library.opcheck(OPS.draw_components.default, arguments)


def test_kinds_of_prediction_are_as_numbered_here() -> None:
    assert {kind.name.lower(): kind.value for kind in Prediction} == {
        str(name).lower(): kind for name, kind in PREDICTION_KINDS.items()
    }


@by_case
def test_fake_tensors_get_shapes_types_and_strides_without_computing(name: str) -> None:
    case = CASES[name]
    strided = case.map_samples(lambda tensor: tensor.mT if tensor.dim() > 2 else tensor)
    made = strided.run()
    mode = FakeTensorMode()

    def to_fake(value: Any) -> Any:
        if isinstance(value, MixtureTables):
            return MixtureTables(*map(mode.from_tensor, value[:3]))
        if isinstance(value, list):
            return [mode.from_tensor(tensor) for tensor in value]
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    with mode:  # in which reading a value, of a row say, is an error
        fake = StepCase(**{name: to_fake(value) for name, value in strided.__dict__.items()}).run()
    for real, shape in zip(made, fake, strict=True):
        assert (shape is None) == (real is None)
        if real is not None:
            assert (shape.shape, shape.dtype, shape.device) == (real.shape, real.dtype, real.device)
    assert fake.prev_sample.stride() == made.prev_sample.stride()


def test_fake_noise_and_components_have_shapes_and_types() -> None:
    with FakeTensorMode():
        seeds = torch.arange(5)
        noise = standard_normal(seeds, (3, 4), dtype=torch.bfloat16)
        assert (noise.shape, noise.dtype) == ((5, 3, 4), torch.bfloat16)
        drawn = draw_components(seeds, torch.zeros(1, 7, dtype=torch.int64))
        assert (drawn.shape, drawn.dtype) == ((5,), torch.int64)


def test_fake_tensors_can_be_written_into() -> None:
    with FakeTensorMode():
        sample, out = torch.zeros(2, 5), torch.zeros(2, 5)
        made = gmm_step(sample, sample.half(), torch.zeros(3, 16), row=0, seeds=torch.arange(2), out=out)
        assert made.prev_sample is out


def test_bad_input_is_refused_before_tracing_goes_on() -> None:
    with FakeTensorMode():
        sample, seeds = torch.zeros(2, 5), torch.arange(2)
        with pytest.raises(ValueError, match="model_output: expected the sample's shape"):
            gmm_step(sample, sample[:1], torch.zeros(3, 16), row=0, seeds=seeds)
        with pytest.raises(IndexError, match="row: expected 0 to 2, got 3"):
            gmm_step(sample, sample, torch.zeros(3, 16), row=3, seeds=seeds)


@by_case
def test_traced_graphs_give_the_same_bits(name: str) -> None:
    case = CASES[name]

    def step(sample: torch.Tensor, seeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = gmm_step(
            sample,
            case.model_output,
            case.coefficients,
            row=case.row,
            step=case.step,
            seeds=seeds,
            mixture=case.mixture,
            model_output_uncond=case.model_output_uncond,
            history=case.history,
            prediction=case.prediction,
            return_components=True,
        )
        return tuple(tensor for tensor in made if tensor is not None)

    graph = make_fx(step)(case.sample, case.seeds)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert OPS.gmm_step.default in targets
    for traced, direct in zip(graph(case.sample, case.seeds), step(case.sample, case.seeds), strict=True):
        assert_same_bits(traced, direct)


class Sampler(torch.nn.Module):
    """A step as a module, for export."""

    def __init__(self, coefficients: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", coefficients)

    def forward(
        self, sample: torch.Tensor, output: torch.Tensor, row: torch.Tensor, seeds: torch.Tensor
    ) -> Any:
        noise = standard_normal(seeds, sample.shape[1:], step=row)
        made = gmm_step(sample + noise, output, self.coefficients, row=row, seeds=seeds, prediction="x0")
        return made.prev_sample, made.prediction


def test_exported_programs_give_the_same_bits_for_any_batch() -> None:
    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        case = random_case(
            batch, batch=batch, dtype=torch.float32, output_dtype=torch.float32, per_sample=True
        )
        return case.sample, case.model_output, case.row, case.seeds

    module = Sampler(bare(CASES["everything"].coefficients))
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = tuple({0: batch} for _ in range(4))
    program = torch.export.export(module, inputs(3), dynamic_shapes=shapes)
    for size in (3, 7):
        for exported, direct in zip(program.module()(*inputs(size)), module(*inputs(size)), strict=True):
            assert_same_bits(exported, direct)


def test_raw_ops_take_indices_and_tables_with_strides() -> None:
    """As an exported program hands them over, where nobody checks its inputs again."""
    case = CASES["everything"]
    given = raw_arguments(case)
    strided = [
        torch.stack([value, value], dim=-1)[..., 0] if isinstance(value, torch.Tensor) and at >= 6 else value
        for at, value in enumerate(given)
    ]
    assert sum(isinstance(value, torch.Tensor) and not value.is_contiguous() for value in strided) > 6
    OPS.gmm_step(*given)
    expected = [value.clone() for value in given[:3]]
    OPS.gmm_step(*strided)
    for made, whole in zip(strided[:3], expected, strict=True):
        assert_same_bits(made, whole)


class Tagged(torch.Tensor):
    """A subclass that only has another name."""


def test_subclasses_are_tensors() -> None:
    case = CASES["bare"]
    tagged = case.map_samples(lambda tensor: tensor.as_subclass(Tagged))
    made, expected = tagged.run(), case.run()
    assert type(made.prev_sample) is Tagged
    assert_same_bits(made.prev_sample.as_subclass(torch.Tensor), expected.prev_sample)
    seeds = case.seeds.as_subclass(Tagged)
    assert_same_bits(standard_normal(seeds, (3,)), standard_normal(case.seeds, (3,)))


def test_calls_under_autocast_and_inference_mode_are_plain_calls() -> None:
    case = CASES["everything"]
    expected = case.run()
    contexts: list[Callable[[], Any]] = [
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.no_grad,
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    ]
    for context in contexts:
        with context():
            assert_same_output(case.run(), expected)
