"""`torch.vmap` over the random draws: a mapped dimension is part of the batch, with the bits of a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import (
    add_noise,
    ddim_coefficients,
    draw_components,
    gmm_step,
    noise_schedule,
    skip_step_loss,
    standard_normal,
    timesteps,
    training_coefficients,
)

SEEDS = torch.arange(-3, 3).view(2, 3)
STEPS = torch.tensor([[4, 5, 2**32 - 1], [0, 4, 9]])
ROWS = torch.tensor([[0, 1, 3], [3, 0, 2]])
ONE_ENTRY = torch.tensor([[[2**30, 2**31]], [[7, 2**31 + 2**30]]])  # [2, 1, K - 1]
FOUR_ENTRIES = torch.randint(2**32, (2, 4, 2), generator=torch.Generator().manual_seed(1)).sort(-1).values


def noise(seeds: Tensor, step: Any) -> Tensor:
    return standard_normal(seeds, (2, 5), step=step, dtype=torch.bfloat16)


def components(seeds: Tensor, cdf: Tensor, row: Any, step: Any) -> Tensor:
    return draw_components(seeds, cdf, row=row, step=step)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], tuple[int | None, ...]]] = {
    # what is called, its arguments, and which of them have a mapped dimension in front
    "seeds": (noise, (SEEDS, 7), (0, None)),
    "steps": (noise, (SEEDS[0], STEPS), (None, 0)),
    "one step of each": (noise, (SEEDS[0], STEPS[:, 2]), (None, 0)),
    "seeds and steps": (noise, (SEEDS, STEPS), (0, 0)),
    "seeds, one step tensor": (noise, (SEEDS, STEPS[1, :1]), (0, None)),
    "components": (components, (SEEDS, FOUR_ENTRIES[0], 2, None), (0, None, None, None)),
    "rows": (components, (SEEDS, FOUR_ENTRIES[1], ROWS, None), (0, None, 0, None)),
    "cdf": (components, (SEEDS[0], FOUR_ENTRIES, 3, 8), (None, 0, None, None)),
    "cdf and rows": (components, (SEEDS, FOUR_ENTRIES, ROWS, STEPS), (0, 0, 0, 0)),
    "cdf, same rows": (components, (SEEDS, FOUR_ENTRIES, ROWS[1], STEPS), (0, 0, None, 0)),
    "one entry for any row": (components, (SEEDS, ONE_ENTRY, ROWS, None), (0, 0, 0, None)),
    "one entry, a row": (components, (SEEDS[1], ONE_ENTRY, 9, STEPS), (None, 0, None, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mapped_dimension_has_the_bits_of_a_loop(case: str) -> None:
    function, given, mapped = CASES[case]
    tensors = [i for i, dim in enumerate(mapped) if dim is not None]

    def call(*chosen: Tensor) -> Tensor:
        whole = list(given)
        for i, tensor in zip(tensors, chosen, strict=True):
            whole[i] = tensor
        return function(*whole)

    stacked = [given[i] for i in tensors]
    expected = torch.stack([call(*(tensor[n] for tensor in stacked)) for n in range(2)])
    assert len(expected.unique(dim=0)) > 1
    assert_same_bits(torch.vmap(call)(*stacked), expected)
    last = [tensor.movedim(0, -1) for tensor in stacked]
    assert_same_bits(torch.vmap(call, in_dims=-1, out_dims=1)(*last), expected.movedim(0, 1))
    # A second mapped dimension, in which everything is reversed.
    twice = [torch.stack([tensor, tensor.flip(0)]) for tensor in stacked]
    assert_same_bits(torch.vmap(torch.vmap(call))(*twice), torch.stack([expected, expected.flip(0)]))


def test_a_batch_of_one_and_seeds_with_strides() -> None:
    """A mapped dimension beside one sample, or every other seed, merges into indices with strides of their own."""
    rows = ddim_coefficients(noise_schedule("linear"), timesteps(5), eta=1.0)
    training_rows = training_coefficients(noise_schedule("linear"))
    x, seeds = torch.linspace(-1, 1, 20).view(4, 1, 5), torch.arange(8)[::2]

    def functions(seed: Tensor) -> list[Callable[[Tensor], Tensor]]:
        return [
            lambda x: gmm_step(x, x * x, rows, row=1, seeds=seed).prev_sample,
            lambda x: add_noise(x, training_rows, row=seed * 3, seeds=seed),
            lambda x: skip_step_loss(x, training_rows, row=20, seeds=seed, step=seed),
            lambda x: x + standard_normal(seed, (5,), step=seed),
            lambda x: x + draw_components(seed, FOUR_ENTRIES[0], row=1)[:, None],
        ]

    for n in range(5):
        expected = torch.stack([functions(seeds[:1])[n](sample) for sample in x])
        assert_same_bits(torch.vmap(functions(seeds[:1])[n])(x), expected)
        if n < 3:
            jacobian = torch.func.jacrev(functions(seeds[:1])[n])(x[0])
            alone = torch.autograd.functional.jacobian(functions(seeds[:1])[n], x[0])
            assert_same_bits(jacobian, alone)
        alone = torch.stack([functions(seed[None])[n](x[0]) for seed in seeds])
        assert_same_bits(torch.vmap(lambda seed, n=n: functions(seed[None])[n](x[0]))(seeds), alone)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_what_vmap_says_of_randomness_does_not_matter_to_draws_from_seeds(randomness: str) -> None:
    mapped = torch.vmap(lambda seeds: noise(seeds, 1), randomness=randomness)(SEEDS)
    assert_same_bits(mapped, noise(SEEDS.flatten(), 1).view(2, 3, 2, 5))
    same = torch.vmap(lambda scale: scale * noise(SEEDS[0], 1), randomness=randomness)(torch.ones(2))
    assert_same_bits(same[0], same[1])


def test_draws_inside_other_transforms() -> None:
    weights = torch.ones(3, 2, 5, dtype=torch.bfloat16)

    def loss(weights: Tensor, seeds: Tensor) -> Tensor:
        return (weights * noise(seeds, 1)).sum()

    assert_same_bits(torch.func.grad(loss)(weights, SEEDS[0]), noise(SEEDS[0], 1))
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, SEEDS)
    assert_same_bits(per_sample[1], noise(SEEDS[1], 1))
    assert_same_bits(
        torch.func.jvp(lambda w: loss(w, SEEDS[0]), (weights,), (weights,))[1], loss(weights, SEEDS[0])
    )


def test_second_derivatives_with_mapped_seeds_are_those_of_a_loop() -> None:
    rows = ddim_coefficients(noise_schedule("linear"), timesteps(5), eta=1.0).double()
    training_rows = training_coefficients(noise_schedule("linear"), dtype=torch.float64)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)

    def of_step(x: Tensor, seeds: Tensor) -> Tensor:
        return gmm_step(x, x * x, rows, row=1, seeds=seeds).prev_sample.pow(3).sum()

    def of_loss(x: Tensor, seeds: Tensor) -> Tensor:
        return skip_step_loss(x, training_rows, row=20, seeds=seeds).pow(2).sum()

    for function in (of_step, of_loss):
        hessian = torch.func.jacrev(torch.func.grad(function))
        alone = torch.stack([hessian(x[n], SEEDS[n]) for n in range(2)])
        assert alone.any()
        torch.testing.assert_close(torch.vmap(hessian)(x, SEEDS), alone)


def test_out_is_refused_by_name() -> None:
    rows = ddim_coefficients(noise_schedule("linear"), timesteps(5), eta=1.0)
    x, out = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    message = (
        r"out: expected None in a function that torch\.func transforms \(vmap, grad, \.\.\.\); leave it out"
    )
    for call in (
        lambda x, seeds, out: standard_normal(seeds, (4,), out=out),
        lambda x, seeds, out: gmm_step(x, x, rows, row=1, seeds=seeds, out=out).prev_sample,
        lambda x, seeds, out: add_noise(x, torch.ones(5, 9), row=1, seeds=seeds, out=out),
    ):
        for mapped_out in (0, None):
            with pytest.raises(RuntimeError, match=message):
                torch.vmap(call, in_dims=(0, 0, mapped_out))(x, SEEDS, out if mapped_out == 0 else out[0])
    assert not out.any()


def test_a_mapped_row_or_step_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError, match="row: expected 0 to 3, got 4"):
        torch.vmap(lambda row: draw_components(SEEDS[0], FOUR_ENTRIES[0], row=row))(torch.tensor([1, 4]))
    with pytest.raises(IndexError, match="step: expected 0 to 4294967295, got -1"):
        torch.vmap(lambda step: noise(SEEDS[0], step))(torch.tensor([1, -1]))
