"""CUDA gives the bits of the CPU core: over types, sizes, options and layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import (
    DTYPE_PAIRS,
    DTYPES,
    assert_same_bits,
    assert_same_output,
    every_option,
    random_case,
    random_cdf,
)
from layouts import DEVICE, LAYOUTS, moved

from gmmkernel import Stream, draw_components, gmm_step, standard_normal
from gmmkernel.ops import GMMStepOutput

pytestmark = pytest.mark.gpu

SIZES = (1, 3, 63, 1000, 4097)


def on_cpu(output: GMMStepOutput) -> GMMStepOutput:
    return GMMStepOutput(*(None if tensor is None else tensor.cpu() for tensor in output))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_option(dtype: torch.dtype, size: int) -> None:
    for seed, options in enumerate(every_option(sizes=[size])):
        case = random_case(seed, dtype=dtype, special=seed % 2 == 0, **options)
        assert_same_output(on_cpu(moved(case).run()), case.run())


@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("size", [63, 4096])
def test_every_pair_of_types(pair: tuple[torch.dtype, torch.dtype], size: int) -> None:
    for seed in range(6):
        case = random_case(seed, shape=(size,), dtype=pair[0], output_dtype=pair[1], special=seed % 2 == 0)
        assert_same_output(on_cpu(moved(case).run()), case.run())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    for seed, shape in enumerate([(1,), (64,), (1000,), (3, 5, 7), (4, 16, 16)] * 2):
        case = random_case(seed, shape=shape, dtype=dtype)
        laid_out, out = LAYOUTS[layout](moved(case))
        result = laid_out.run(out=out)
        assert out is None or result.prev_sample is out
        assert_same_output(on_cpu(result), case.run())


@pytest.mark.parametrize(
    ("components", "removed", "size"),
    [(0, 0, 20000), (1, 0, 20000), (8, 0, 20000), (8, 20000, 20000), (8, 4096, 20000), (1024, 1024, 1024)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_common_steps(dtype: torch.dtype, components: int, removed: int, size: int) -> None:
    """The kernels for aligned samples of one type without history and prediction, over several tiles."""
    for guidance in (False, True):
        for special in (False, True):
            case = random_case(
                components, batch=5, shape=(size,), dtype=dtype, output_dtype=dtype, components=components,
                removed=removed, guidance=guidance, history=0, prediction=None, special=special,
            )  # fmt: skip
            assert_same_output(on_cpu(moved(case).run()), case.run())


def test_channels_last() -> None:
    case = random_case(3, shape=(4, 8, 8), components=8)
    laid_out = moved(case).map_samples(lambda tensor: tensor.to(memory_format=torch.channels_last))
    assert_same_output(on_cpu(laid_out.run()), case.run())


@pytest.mark.parametrize(("batch", "shape"), [(0, (63,)), (3, (0,)), (1, (63,)), (70_001, (5,))])
def test_batches_of_every_size(batch: int, shape: tuple[int, ...]) -> None:
    """70,001 samples are more than one dimension of a grid holds."""
    for seed in range(3):
        case = random_case(seed, batch=batch, shape=shape, components=(0, 2, 8)[seed])
        assert_same_output(on_cpu(moved(case).run()), case.run())


def test_a_sample_depends_on_its_own_inputs_alone() -> None:
    case = moved(random_case(9, batch=6, shape=(1000,), components=8, per_sample=True))
    whole = case.run()
    for index in ([4], [5, 0], [2, 3, 1]):
        part = case.take(index).run()
        assert_same_bits(part.prev_sample, whole.prev_sample[index])
        assert_same_bits(part.components, whole.components[index])


def test_forms_of_row_and_step() -> None:
    case = random_case(5, shape=(100,), components=8, per_sample=False)
    own = moved(case)
    for row, step in [(0, 0), (3, 2**32 - 1), (1, 2**31)]:
        expected = case.run(row=row, step=step)
        forms = [
            lambda index: index,
            lambda index: torch.tensor(index, device=DEVICE),
            lambda index: torch.tensor([index], device=DEVICE),
            lambda index: torch.full((3,), index, device=DEVICE),
        ]
        for form in forms:
            assert_same_output(on_cpu(own.run(row=form(row), step=form(step))), expected)
        assert_same_output(on_cpu(own.run(row=forms[3](row), step=step)), expected)


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(dtype: torch.dtype, stream: Stream) -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    step = torch.tensor([0, 7, 2**31, 2**32 - 1, 1])
    for shape in [(), (1,), (3,), (63,), (0,), (4097,), (3, 100, 100)]:
        expected = standard_normal(seeds, shape, step=step, stream=stream, dtype=dtype)
        actual = standard_normal(seeds.to(DEVICE), shape, step=step.to(DEVICE), stream=stream, dtype=dtype)
        assert actual.device.type == DEVICE.type
        assert_same_bits(actual.cpu(), expected)


@pytest.mark.parametrize("layout", ["out", "strided out", "padded out", "unaligned out"])
def test_noise_into_any_layout(layout: str) -> None:
    for dtype in DTYPES:
        case = moved(random_case(1, batch=4, shape=(3, 11), dtype=dtype))
        _, out = LAYOUTS[layout](case)
        assert standard_normal(case.seeds, (3, 11), step=5, dtype=dtype, out=out) is out
        assert out is not None
        assert_same_bits(out.cpu(), standard_normal(case.seeds.cpu(), (3, 11), step=5, dtype=dtype))


@pytest.mark.parametrize("components", [1, 2, 3, 8, 33, 1024])
def test_components(components: int) -> None:
    import numpy as np

    cdf = random_cdf(np.random.default_rng(components), 3, components)
    seeds, row = torch.arange(-2000, 3000), torch.arange(5000) % 3
    expected = draw_components(seeds, cdf, row=row, step=9)
    actual = draw_components(seeds.to(DEVICE), cdf.to(DEVICE), row=row.to(DEVICE), step=9)
    assert_same_bits(actual.cpu(), expected)


def test_backend_by_name() -> None:
    case = random_case(2, shape=(100,))
    assert_same_output(on_cpu(moved(case).run(backend="cuda")), case.run())
    with pytest.raises(ValueError, match="'cuda' computes on 'cuda' tensors, got 'cpu'"):
        case.run(backend="cuda")
    with pytest.raises(ValueError, match="'cpu' computes on 'cpu' tensors, got 'cuda'"):
        moved(case).run(backend="cpu")


def test_tensors_on_another_device_are_errors() -> None:
    case = random_case(4, components=3, guidance=True, history=2, per_sample=True)
    case = replace(case, step=torch.tensor([1, 2, 3]))
    own = moved(case)
    wrong = {
        "model_output": case.model_output,
        "coefficients": case.coefficients,
        "row": case.row,
        "step": case.step,
        "seeds": case.seeds,
        "mixture": case.mixture,
        "model_output_uncond": case.model_output_uncond,
        "history": [own.history[0], case.history[1]],
        "out": torch.empty_like(case.sample),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"^{name}.*expected a tensor on {DEVICE.type}.*got one on cpu"):
            replace(own, **{name: value}).run() if name != "out" else own.run(out=value)
    with pytest.raises(ValueError, match=r"^cdf: expected a tensor on"):
        draw_components(own.seeds, case.mixture.cdf if case.mixture else own.seeds)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one() -> None:
    case = random_case(6, shape=(1000,), components=8)
    other = torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    own = moved(case, other)
    result = own.run()
    assert result.prev_sample.device == other
    assert_same_output(on_cpu(result), case.run())
    assert torch.cuda.current_device() == 0
    assert_same_bits(standard_normal(own.seeds, (9,)).cpu(), standard_normal(case.seeds, (9,)))
    with pytest.raises(
        ValueError, match=r"^seeds: expected a tensor on cuda:1 like sample, got one on cuda:0"
    ):
        gmm_step(own.sample, own.model_output, own.coefficients, row=0, seeds=own.seeds.to("cuda:0"))
