"""Shards draw the noise that the whole would have drawn, and their log-densities add up to its bits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from covering import check_all, numbered, pairs
from helpers import DTYPE_PAIRS, DTYPES, StepCase, assert_same_bits, assert_same_output, bare, random_case
from losses import random_case as random_training
from torch import Tensor

from gmmkernel import (
    Column,
    Stream,
    gmm_step,
    gmm_step_log_prob,
    gmm_step_log_ratio,
    join_log_prob,
    shard_view,
    standard_normal,
)
from gmmkernel.backends import cpu
from gmmkernel.backends.reference.normal import normals_from_words
from gmmkernel.backends.reference.philox import random_words

SEEDS = torch.tensor([3, -1, 2**63 - 1])
FAR = (
    2**34 - 70,
    2**34 - 5,
    2**40 + 2,
    2**63 - 200,
)  # blocks' numbers carry, in the middle and later; nearly the last


def gaussian(seed: int, **options: Any) -> StepCase:
    """Return a random step without a mixture that draws noise in every row."""
    case = random_case(seed, components=0, **options)
    case.coefficients[:, Column.SIGMA] = case.coefficients[:, Column.SIGMA].abs() + 0.1
    return case


# ---- noise ----


def test_any_cut_has_the_noise_of_the_whole(backend: str) -> None:
    """Residues modulo 64 and 4, of the start and of the length, at the beginning."""
    whole = standard_normal(SEEDS, (330,), step=2, backend=backend)
    starts = range(70) if backend == "cpu" else (0, 1, 2, 3, 4, 63, 64, 65, 67)
    for start in starts:
        for length in (1, 3, 4, 64, 65, 259 - start % 3):
            part = standard_normal(SEEDS, (length,), step=2, first_element=start, backend=backend)
            assert_same_bits(part, whole[:, start : start + length])


def test_far_away_as_well(backend: str) -> None:
    """Against the specification's own blocks, one number after the other."""
    for first in FAR:
        made = standard_normal(SEEDS[:1], (130,), step=7, first_element=first, backend=backend)
        for i in (0, 1, 62, 63, 64, 68, 129):
            words = random_words(3, 7, Stream.INITIAL, first_block=(first + i) // 4, blocks=1)
            assert float(made[0, i]) == float(normals_from_words(words)[0, (first + i) % 4])


def test_each_sample_has_a_place_of_its_own(backend: str) -> None:
    firsts = torch.tensor([5, 0, 64])
    made = standard_normal(SEEDS, (100,), first_element=firsts, backend=backend)
    for b, first in enumerate(firsts.tolist()):
        alone = standard_normal(SEEDS[b : b + 1], (100,), first_element=first, backend=backend)
        assert_same_bits(made[b : b + 1], alone)


def check_step(seed: int, first: int, length: int, **options: Any) -> None:
    whole = gaussian(seed, batch=3, shape=(first + length + 3,), **options)
    part = whole.map_samples(lambda tensor: tensor[:, first : first + length])
    expected = whole.run()
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            made = replace(part, first_element=first).run()
        assert_same_bits(made.prev_sample, expected.prev_sample[:, first : first + length])
    each = torch.tensor([first] * 3)
    assert_same_output(replace(part, first_element=each).run(backend="reference"), made)


def test_steps_of_any_cut_are_the_whole_s() -> None:
    choices = pairs(
        first=[0, 1, 2, 3, 4, 63, 64, 1021],
        length=[1, 3, 64, 1030],
        types=DTYPE_PAIRS,
        guidance=(False, True),
        history=(0, 2),
    )
    for options in choices:
        options["dtype"], options["output_dtype"] = options.pop("types")
    check_all(check_step, numbered(choices))


def test_gradients_of_a_shard_draw_its_noise_again() -> None:
    """That of SIGMA is made of it."""
    whole = gaussian(
        3, batch=2, shape=(200,), dtype=torch.float64, output_dtype=torch.float64, prediction=None
    )
    parts = []
    for first, last in ((0, 67), (67, 200)):
        leaf = whole.coefficients.clone().requires_grad_()
        part = whole.map_samples(lambda tensor, cut=slice(first, last): tensor[:, cut])
        replace(part, coefficients=leaf, first_element=first).run().prev_sample.sum().backward()
        parts.append(leaf.grad)
    leaf = whole.coefficients.clone().requires_grad_()
    replace(whole, coefficients=leaf).run().prev_sample.sum().backward()
    assert torch.allclose(sum(parts), leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_samples_of_any_cut_are_the_whole_s(backend: str, dtype: torch.dtype) -> None:
    case = random_training(2, shape=(1100,), dtype=dtype)
    whole = case.noised(backend=backend)
    for first, last in ((0, 3), (3, 1027), (1027, 1100)):
        part = replace(case, data=case.data[:, first:last])
        assert_same_bits(part.noised(first_element=first, backend=backend), whole[:, first:last])
    leaf = case.data[:, 3:].clone().requires_grad_()
    made = replace(case, data=leaf).noised(first_element=torch.tensor([3] * len(leaf)))
    assert_same_bits(made.detach(), case.noised()[:, 3:])
    assert made.requires_grad


def test_vmap_and_the_compiler_know_of_it() -> None:
    firsts = torch.tensor([3, 64])
    mapped = torch.vmap(lambda first: standard_normal(SEEDS, (9,), first_element=first.expand(3)))(firsts)
    for n in range(2):
        assert_same_bits(mapped[n], standard_normal(SEEDS, (9,), first_element=int(firsts[n])))
    case = gaussian(1, shape=(20,), history=0)

    def step(x: Tensor, first: Tensor) -> Tensor:
        return replace(case, sample=x, first_element=first).run().prev_sample

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(case.sample, firsts[:1]), step(case.sample, firsts[:1]))


# ---- views ----


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_a_shard_of_any_dimension_draws_its_own_part(dim: int) -> None:
    shape = (3, 4, 5, 6)
    case = gaussian(4, batch=3, shape=shape, history=0, guidance=False, prediction=None, per_sample=True)
    whole = case.run(return_log_prob=True)
    start = 0
    for length in (1, shape[dim] - 1):
        parts = [
            shard_view(tensor.narrow(dim + 1, start, length).contiguous(), shape, dim, start)
            for tensor in (case.sample, case.model_output)
        ]
        repeat = parts[0].repeat
        made = gmm_step(
            parts[0].view,
            parts[1].view,
            case.coefficients,
            row=case.row.repeat_interleave(repeat),
            step=case.row.repeat_interleave(repeat)
            if case.step is None
            else case.step.repeat_interleave(repeat),
            seeds=case.seeds.repeat_interleave(repeat),
            first_element=parts[0].first_element,
        ).prev_sample
        expected = whole.prev_sample.narrow(dim + 1, start, length)
        assert_same_bits(made.view(expected.shape), expected)
        start += length


BAD_SHARDS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "no tensor": ((None, (4, 6), 0, 0), TypeError, "tensor: expected a torch.Tensor"),
    "another shape": (
        (torch.zeros(2, 4, 5), (4, 6), 0, 0),
        ValueError,
        r"tensor: expected parts \[B, ...\] of samples",
    ),
    "another rank": ((torch.zeros(2, 4), (4, 6), 0, 0), ValueError, r"tensor: expected parts"),
    "no such dimension": ((torch.zeros(2, 4, 6), (4, 6), 2, 0), ValueError, "dim: expected"),
    "beyond the end": ((torch.zeros(2, 3, 6), (4, 6), 0, 2), ValueError, "start: expected"),
    "strided": ((torch.zeros(2, 6, 4).mT, (4, 6), 0, 0), ValueError, "tensor: expected a contiguous tensor"),
}


@pytest.mark.parametrize("fault", BAD_SHARDS)
def test_what_is_no_shard_is_refused(fault: str) -> None:
    given, error, message = BAD_SHARDS[fault]
    with pytest.raises(error, match="^" + message):
        shard_view(*given)


# ---- log-densities ----


def check_scored(seed: int, **options: Any) -> None:
    case = random_case(seed, components=0, **options)
    expected = case.run(backend="reference", return_log_prob=True)
    arguments = {"row": case.row, "model_output_uncond": case.model_output_uncond, "history": case.history}
    again = gmm_step_log_prob(
        expected.prev_sample, case.sample, case.model_output, case.coefficients, **arguments
    )
    assert_same_bits(expected.log_prob, again)
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            assert_same_output(case.run(return_log_prob=True), expected)
    for backend in ("cpu", "reference"):  # at once, and after Python's checks
        in_place = case.map_samples(torch.clone)
        made = in_place.run(return_log_prob=True, out=in_place.sample, backend=backend)
        assert_same_output(made, expected)


def test_a_step_scores_what_it_draws_with_the_bits_of_a_call_of_its_own() -> None:
    choices = pairs(
        shape=[(1,), (63,), (1000,), (1025,), (2, 1100)],
        types=DTYPE_PAIRS,
        guidance=(False, True),
        history=(0, 1, 4),
        prediction=(None, "x0", "mean"),
        special=(False, True),
    )
    for options in choices:
        options["dtype"], options["output_dtype"] = options.pop("types")
    check_all(check_scored, numbered(choices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shards_cut_at_tiles_give_the_bits_of_the_whole(dtype: torch.dtype) -> None:
    """Two levels of the tree, and any other cut agrees but for rounding."""
    elements = 1024 * 1024 + 3000 if dtype == torch.float32 else 5000
    generator = torch.Generator().manual_seed(1)
    y, x, output, old = torch.randn(4, 2, elements, generator=generator, dtype=dtype).unbind(0)
    rows = gaussian(1, dtype=dtype).coefficients
    whole = gmm_step_log_prob(y, x, output, rows, row=1)
    ratio = gmm_step_log_ratio(y, x, output, old, rows, row=1)
    for cuts in ((0, 1024, 4096, elements), (0, 1000, elements)):
        of_tiles, ratios = [], []
        for first, last in pairwise(cuts):
            parts = [tensor[:, first:last] for tensor in (y, x, output, old)]
            of_tiles.append(gmm_step_log_prob(*parts[:3], rows, row=1, reduction="tiles"))
            ratios.append(gmm_step_log_ratio(*parts, rows, row=1, reduction="tiles"))
        joined = join_log_prob(torch.cat(of_tiles, 1), elements)
        found = [join_log_prob(torch.cat(parts, 1), 0) for parts in zip(*ratios, strict=True)]
        if cuts[1] % 1024 == 0:
            assert_same_bits(joined, whole)
            for one, other in zip(found, ratio, strict=True):
                assert_same_bits(one, other)
        else:
            assert torch.allclose(joined, whole, rtol=1e-6)


def test_gradients_go_through_joined_tiles() -> None:
    case = gaussian(
        2, batch=2, shape=(2100,), dtype=torch.float64, output_dtype=torch.float64, history=1, guidance=True
    )
    y = torch.randn(case.sample.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uncond, stored = case.model_output_uncond, case.history[0]
    found = []
    for by_tiles in (False, True):
        leaves = [
            each.clone().requires_grad_() for each in (y, case.sample, case.model_output, case.coefficients)
        ]
        given = {"row": 1, "model_output_uncond": uncond, "history": [stored]}
        if by_tiles:
            made = join_log_prob(gmm_step_log_prob(*leaves, reduction="tiles", **given), 2100)
        else:
            made = gmm_step_log_prob(*leaves, **given)
        found.append(torch.autograd.grad(made, leaves, torch.tensor([1.0, -2.0]).double()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    leaf = case.sample.clone().requires_grad_()
    tiles = gmm_step_log_prob(y, leaf, case.model_output, bare(case.coefficients), row=1, reduction="tiles")
    (grad,) = torch.autograd.grad(tiles.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^reduction: expected"):
        grad.sum().backward()


def test_a_density_that_overflows_joins_to_minus_infinity() -> None:
    tiles = torch.tensor([[-1.0, -math.inf], [math.nan, 0.0]])
    joined = join_log_prob(tiles, 2000)
    assert joined[0] == -math.inf
    assert joined[1].isnan()


@pytest.mark.parametrize(
    ("tiles", "elements", "error", "message"),
    [
        (None, 3, TypeError, "tiles: expected a torch.Tensor"),
        (torch.zeros(2, 3).half(), 3, TypeError, "tiles: expected float32 or float64"),
        (torch.zeros(3), 3, ValueError, r"tiles: expected shape \[B, T\]"),
        (torch.zeros(2, 3), -1, ValueError, "elements: expected"),
        (torch.zeros(2, 3), 2.5, TypeError, "elements: expected"),
        (
            torch.zeros(2, 3),
            4000,
            ValueError,
            "tiles: expected 4 of each sample of 4000 elements, or more .* got 3",
        ),
        (
            torch.zeros(2, 3),
            2,
            ValueError,
            "tiles: expected 1 of each sample of 2 elements, or more .* got 3",
        ),
    ],
)
def test_what_does_not_join_is_refused(
    tiles: Any, elements: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + message):
        join_log_prob(tiles, elements)


def test_bad_shards_and_reductions_are_refused(backend: str) -> None:
    case = gaussian(1, shape=(20,))
    for first in (-1, 2**63, torch.tensor([0, -5, 0])):
        with pytest.raises(IndexError, match=r"^first_element: expected 0 to"):
            replace(case, first_element=first).run(backend=backend)
        with pytest.raises(IndexError, match=r"^first_element: expected 0 to"):
            standard_normal(SEEDS, (3,), first_element=first, backend=backend)
        noised = random_training(1)
        with pytest.raises(IndexError, match=r"^first_element: expected 0 to"):
            noised.noised(
                first_element=first if isinstance(first, int) else first[: len(noised.data)], backend=backend
            )
    with pytest.raises(TypeError, match=r"^first_element: expected an int or an int64 tensor"):
        replace(case, first_element=1.0).run(backend=backend)
    mixed = random_case(1, shape=(20,), components=2)
    for first in (4, torch.tensor([0])):
        with pytest.raises(ValueError, match=r"^first_element: expected 0 beside a mixture"):
            replace(mixed, first_element=first).run(backend=backend)
    mixture = mixed.mixture._replace(weights=torch.ones(1, 2, dtype=mixed.coefficients.dtype) / 2)
    given = mixed.sample, mixed.sample, mixed.sample, mixed.coefficients
    for reduction in ("none", "tiles"):
        with pytest.raises(ValueError, match=r"^reduction: expected \"sum\""):
            gmm_step_log_prob(*given, row=0, mixture=mixture, reduction=reduction, backend=backend)


def test_the_steps_of_everybody_else_are_what_they_were() -> None:
    """A first element of 0 is none."""
    case = gaussian(1, shape=(20,))
    assert_same_output(replace(case, first_element=0).run(), case.run())
    assert_same_output(replace(case, first_element=torch.tensor([0])).run(), case.run())
    noised = random_training(1)
    assert_same_bits(noised.noised(first_element=0), noised.noised())
