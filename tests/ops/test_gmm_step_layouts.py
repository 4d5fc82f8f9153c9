"""Memory layouts: strided inputs give the same bits, `out` is written in place and nothing beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from covering import check_all, pairs
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output, bare, random_case
from torch import Tensor

from gmmkernel import MixtureTables, gmm_step, standard_normal

Layout = Callable[[Tensor], Tensor]
SHAPE = (4, 5, 6)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 3).contiguous().transpose(1, 3)


def batch_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def every_other_element(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def every_other_sample(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=0)[::2]


def sliced(tensor: Tensor) -> Tensor:
    return torch.nn.functional.pad(tensor, (1, 2, 3, 1))[..., 3:-1, 1:-2]


def unaligned(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1)[:1], tensor.reshape(-1)])[1:].view(tensor.shape)


def negative_view(tensor: Tensor) -> Tensor:
    return torch._neg_view(-tensor)


LAYOUTS = (
    transposed,
    batch_last,
    channels_last,
    every_other_element,
    every_other_sample,
    sliced,
    unaligned,
    negative_view,
)
BACKENDS = ("cpu", "reference")


def case_of(dtype: torch.dtype = torch.float32, **options: object) -> StepCase:
    defaults = {
        "batch": 3,
        "shape": SHAPE,
        "components": 3,
        "history": 2,
        "guidance": True,
        "prediction": "x0",
    }
    return random_case(7, dtype=dtype, **(defaults | options))


def check_inputs(backend: str, layout: Layout, dtype: torch.dtype) -> None:
    case = case_of(dtype)
    strided = case.map_samples(layout)
    assert_same_bits(strided.sample, case.sample)
    made = strided.run(backend=backend)
    assert_same_output(made, case.run(backend=backend))
    assert made.prev_sample.is_contiguous()
    assert made.prediction.is_contiguous()
    out = torch.full_like(case.sample, 9)
    assert_same_output(strided.run(backend=backend, out=out), made)
    assert_same_bits(out, made.prev_sample)


def test_strided_inputs_give_the_same_bits() -> None:
    check_all(check_inputs, pairs(layout=LAYOUTS, dtype=DTYPES, backend=BACKENDS))


def test_each_input_may_have_its_own_layout(backend: str) -> None:
    case = case_of()
    mixed = replace(
        case,
        sample=channels_last(case.sample),
        model_output=sliced(case.model_output),
        model_output_uncond=batch_last(case.model_output_uncond),
        history=[transposed(case.history[0]), every_other_sample(case.history[1])],
    )
    assert_same_output(mixed.run(backend=backend), case.run(backend=backend))


def test_an_input_may_be_one_sample_expanded(backend: str) -> None:
    case = case_of()
    whole = case.map_samples(lambda tensor: tensor[:1].repeat(3, 1, 1, 1))
    expanded = case.map_samples(lambda tensor: tensor[:1].expand(3, *SHAPE))
    assert_same_output(expanded.run(backend=backend), whole.run(backend=backend))
    scalar = torch.tensor(0.25).expand(3, *SHAPE)
    assert_same_output(
        replace(case, model_output=scalar).run(backend=backend),
        replace(case, model_output=scalar.contiguous()).run(backend=backend),
    )


def test_tables_indices_and_seeds_may_be_strided(backend: str) -> None:
    case = case_of(per_sample=True, removed=40)
    expected = case.run(backend=backend)

    def spread(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(3, dim=-1)[..., ::3]

    strided = replace(
        case,
        coefficients=case.coefficients.t().contiguous().t(),
        row=spread(case.row),
        step=None if case.step is None else spread(case.step),
        seeds=spread(case.seeds),
        mixture=MixtureTables(*map(spread, case.mixture[:3])),
    )
    assert_same_output(strided.run(backend=backend), expected)
    one = case.run(row=1, step=5, backend=backend)
    for index in (torch.tensor(1).expand(3), torch.tensor([1])):
        assert_same_output(case.run(row=index, step=5, backend=backend), one)


def check_out(backend: str, layout: Layout, dtype: torch.dtype) -> None:
    case = case_of(dtype)
    expected = case.run(backend=backend)
    out = layout(torch.full_like(case.sample, 9))
    made = case.run(out=out, backend=backend)
    assert made.prev_sample is out
    assert_same_output(made, expected)
    seeds = case.seeds
    noise = standard_normal(seeds, SHAPE, dtype=dtype, out=out, backend=backend)
    assert noise is out
    assert_same_bits(noise, standard_normal(seeds, SHAPE, dtype=dtype, backend=backend))


def test_out_of_any_layout_is_written_and_returned() -> None:
    check_all(check_out, pairs(layout=LAYOUTS[:-1], dtype=DTYPES, backend=BACKENDS))


def check_around(backend: str, elements: int, dtype: torch.dtype) -> None:
    case = case_of(dtype, shape=(elements,))
    around = torch.full((5, elements + 40), 9, dtype=dtype)
    case.run(out=around[1:4, 20:-20], backend=backend)
    expected = torch.full_like(around, 9)
    expected[1:4, 20:-20] = case.run(backend=backend).prev_sample
    assert_same_bits(around, expected)
    around.fill_(9)
    standard_normal(case.seeds, (elements,), dtype=dtype, out=around[1:4, 20:-20], backend=backend)
    expected[1:4, 20:-20] = standard_normal(case.seeds, (elements,), dtype=dtype, backend=backend)
    assert_same_bits(around, expected)


def test_nothing_beside_out_is_written() -> None:
    sizes = [1, 15, 16, 63, 64, 130]
    check_all(check_around, pairs(elements=sizes, dtype=DTYPES, backend=BACKENDS))


def check_in_place(backend: str, dtype: torch.dtype, layout: Layout, name: str) -> None:
    case = case_of(dtype, output_dtype=dtype)
    copies = case.map_samples(layout)
    tensor = getattr(copies, name)
    out = tensor[1] if name == "history" else tensor
    assert_same_output(copies.run(out=out, backend=backend), case.run(backend=backend))


def test_a_step_can_work_in_place() -> None:
    choices = pairs(
        layout=[Tensor.clone, *LAYOUTS[:-1]],
        dtype=DTYPES,
        name=["sample", "model_output", "model_output_uncond", "history"],
        backend=BACKENDS,
    )
    check_all(check_in_place, choices)


def test_all_inputs_may_be_the_tensor_that_is_written(backend: str) -> None:
    case = case_of(shape=(130,))
    one = case.sample.clone()
    same = replace(case, sample=one, model_output=one, model_output_uncond=one, history=[one, one])
    expected = same.run(backend=backend)
    assert_same_output(same.run(out=one, backend=backend), expected)


def test_a_large_step_can_work_in_place(set_threads: Callable[[int], None]) -> None:
    set_threads(3)
    case = case_of(shape=(50001,), output_dtype=torch.float32)
    expected = case.run()
    sample = case.sample.clone()
    assert_same_output(replace(case, sample=sample).run(out=sample), expected)


def test_an_out_of_which_a_part_is_an_input_is_refused(backend: str) -> None:
    case = case_of(shape=(40,), output_dtype=torch.float32)
    memory = torch.full((4, 40), 9.0)
    memory[:3] = case.sample
    before = memory.clone()
    for name in ("sample", "model_output", "model_output_uncond"):
        shifted = replace(case, **{name: memory[:3]})
        with pytest.raises(ValueError, match=f"out: overlaps {name} in memory without being the same tensor"):
            shifted.run(out=memory[1:], backend=backend)
    with pytest.raises(ValueError, match=r"out: overlaps history\[1\] in memory"):
        replace(case, history=[case.history[0], memory[:3]]).run(out=memory[1:], backend=backend)
    spread = torch.zeros(6, 40)
    with pytest.raises(ValueError, match="out: overlaps sample in memory"):
        replace(case, sample=spread[3:]).run(out=spread[::2], backend=backend)
    square = torch.zeros(3, 3)
    arguments = (square, square.clone(), bare(case.coefficients))
    with pytest.raises(ValueError, match="out: overlaps sample in memory"):
        gmm_step(*arguments, row=0, seeds=case.seeds, out=square.t(), backend=backend)
    assert_same_bits(memory, before)


def test_an_out_beside_its_input_in_one_storage_is_right(backend: str) -> None:
    case = case_of(shape=(40,), output_dtype=torch.float32)
    memory = torch.full((6, 40), 9.0)
    memory[:3] = case.sample
    made = replace(case, sample=memory[:3]).run(out=memory[3:], backend=backend)
    assert_same_output(made, case.run(backend=backend))
    assert_same_bits(memory[:3], case.sample)


def test_an_out_whose_elements_share_memory_is_refused(backend: str) -> None:
    case = case_of(shape=(40,))
    memory = torch.full((3, 1), 9.0)
    with pytest.raises(ValueError, match="out: expected a tensor whose elements are distinct in memory"):
        case.run(out=memory.expand(3, 40), backend=backend)
    assert_same_bits(memory, torch.full((3, 1), 9.0))


def test_an_out_whose_samples_overlap_is_refused(backend: str) -> None:
    case = case_of(shape=(40,))
    memory = torch.full((100,), 9.0)
    with pytest.raises(ValueError, match="out: expected a tensor whose elements are distinct in memory"):
        case.run(out=memory.as_strided((3, 40), (20, 1)), backend=backend)


def test_an_out_that_overlaps_an_input_of_another_storage_is_refused(backend: str) -> None:
    case = case_of(shape=(40,), output_dtype=torch.float32)
    memory = np.zeros((4, 40), np.float32)
    sample, out = torch.from_numpy(memory[:3]), torch.from_numpy(memory[1:])
    with pytest.raises(ValueError, match="out: overlaps sample in memory"):
        replace(case, sample=sample).run(out=out, backend=backend)


def test_an_out_that_shares_memory_with_a_table_is_refused(backend: str) -> None:
    case = case_of(shape=(40,), rows=10)
    with pytest.raises(ValueError, match="out: overlaps coefficients"):
        case.run(out=case.coefficients.view(-1)[:120].view(3, 40), backend=backend)
    with pytest.raises(ValueError, match=r"out: overlaps mixture\.offsets"):
        case.run(out=case.mixture.offsets[0], backend=backend)


def test_a_parameter_that_overlaps_an_input_is_refused_like_any_tensor() -> None:
    case = random_case(1, shape=(8,), dtype=torch.float32, output_dtype=torch.float32)
    memory = torch.nn.Parameter(torch.zeros(4, 8), requires_grad=False)
    spoilt = replace(case, sample=memory.data[:3])
    with pytest.raises(ValueError, match="out: overlaps sample in memory"):
        spoilt.run(out=torch.nn.Parameter(memory.data[1:], requires_grad=False))
    assert not memory.any()
