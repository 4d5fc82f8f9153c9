"""A sampler's bits: those of the NumPy specification's loop, whatever the batches, the backend or the first step."""

from __future__ import annotations

import math

import pytest
import torch
from denoisers import ELEMENTS, SHAPE, by_hand, elementwise, elementwise_pair
from helpers import DTYPES, assert_same_bits

from gmmkernel import Column, DDIMSampler, Mixture, gaussian_mixture, noise_schedule, standard_normal
from gmmkernel._sqrt import square_root

SCHEDULE = noise_schedule()
STEPS = 4
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
SEEDS = torch.tensor([5, -1, 0, 2**63 - 1, -(2**63), 77, 78, 79, 80])


def some_mixture(variant: str, *, shared: bool = False, weighted: bool = True, scale: float = 0.7) -> Mixture:
    return gaussian_mixture(
        variant,
        elements=ELEMENTS,
        n_components=4,
        scale=scale,
        n_steps=None if shared else STEPS,
        weights=WEIGHTS if weighted else None,
        seed=3,
    )


@pytest.mark.parametrize("variant", ["rand", "ortho", "ortho-vub"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_mixtures_against_a_loop_by_hand(variant: str, shared: bool, weighted: bool, eta: float) -> None:
    mixture = some_mixture(variant, shared=shared, weighted=weighted)
    sampler = DDIMSampler(SCHEDULE, STEPS, eta=eta, mixture=mixture, clip_sample_range=1.0)
    result = sampler.sample(elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True)
    assert result.trajectory is not None
    for state, expected in zip(result.trajectory, by_hand(sampler, elementwise, SEEDS, mixture), strict=True):
        assert_same_bits(state, expected)
    assert_same_bits(result.sample, result.trajectory[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_mixture", [False, True])
def test_every_dtype_and_a_guidance_pair(dtype: torch.dtype, with_mixture: bool) -> None:
    mixture = some_mixture("ortho") if with_mixture else None
    sampler = DDIMSampler(
        SCHEDULE,
        STEPS,
        eta=0.8,
        mixture=mixture,
        guidance_scale=2.5,
        prediction_type="v_prediction",
        dtype=dtype,
    )
    result = sampler.sample(elementwise_pair, SEEDS, SHAPE, progress=False, return_trajectory=True)
    assert result.trajectory is not None
    assert result.x0 is not None
    assert result.sample.dtype == result.trajectory.dtype == result.x0.dtype == dtype
    assert sampler.coefficients.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for state, expected in zip(
        result.trajectory, by_hand(sampler, elementwise_pair, SEEDS, mixture), strict=True
    ):
        assert_same_bits(state, expected)


@pytest.mark.parametrize("variant", ["rand", "ortho", "ortho-vub"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_is_no_mixture(variant: str, eta: float, dtype: torch.dtype) -> None:
    options = {"eta": eta, "dtype": dtype, "clip_sample_range": 1.0}
    single = gaussian_mixture(variant, elements=ELEMENTS, n_components=1, scale=3.0, n_steps=STEPS)
    with_one = DDIMSampler(SCHEDULE, STEPS, mixture=single, **options)
    with_none = DDIMSampler(SCHEDULE, STEPS, **options)
    assert with_one.tables is not None
    assert with_none.tables is None
    for left, right in zip(
        with_one.sample(elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True),
        with_none.sample(elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True),
        strict=True,
    ):
        assert_same_bits(left, right)


def test_a_mixture_changes_samples_and_its_steps_differ() -> None:
    plain, shared, separate = (
        DDIMSampler(SCHEDULE, STEPS, mixture=mixture).sample(elementwise, SEEDS, SHAPE, progress=False).sample
        for mixture in (None, some_mixture("ortho", shared=True), some_mixture("ortho"))
    )
    assert not torch.equal(plain, shared)
    assert not torch.equal(plain, separate)
    assert not torch.equal(shared, separate)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 9, 100])
def test_batches_never_show(batch_size: int, backend: str) -> None:
    sampler = DDIMSampler(SCHEDULE, STEPS, eta=1.0, mixture=some_mixture("ortho"), backend=backend)
    expected = DDIMSampler(SCHEDULE, STEPS, eta=1.0, mixture=some_mixture("ortho")).sample(
        elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True
    )
    result = sampler.sample(
        elementwise, SEEDS, SHAPE, batch_size=batch_size, progress=False, return_trajectory=True
    )
    for part, expected_part in zip(result, expected, strict=True):
        assert_same_bits(part, expected_part)


def test_the_order_of_the_seeds_never_shows() -> None:
    sampler = DDIMSampler(SCHEDULE, STEPS, eta=1.0, mixture=some_mixture("rand"))
    expected = sampler.sample(elementwise, SEEDS, SHAPE, progress=False).sample
    generator = torch.Generator().manual_seed(0)
    for batch_size in (2, 4, 9):
        order = torch.randperm(len(SEEDS), generator=generator)
        permuted = sampler.sample(
            elementwise, SEEDS[order], SHAPE, batch_size=batch_size, progress=False
        ).sample
        assert_same_bits(permuted, expected[order])
    twice = sampler.sample(elementwise, SEEDS[[3, 3]], SHAPE, progress=False).sample
    assert_same_bits(twice, expected[[3, 3]])
    assert len({tuple(sample.flatten().tolist()) for sample in expected}) == len(SEEDS)


@pytest.mark.parametrize("with_mixture", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_run_goes_on_from_any_step(with_mixture: bool, batch_size: int | None) -> None:
    mixture = some_mixture("ortho-vub") if with_mixture else None
    sampler = DDIMSampler(SCHEDULE, STEPS, eta=1.0, mixture=mixture)
    whole = sampler.sample(elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True)
    assert whole.trajectory is not None
    assert whole.x0 is not None
    for step in range(STEPS):
        rest = sampler.sample(
            elementwise,
            SEEDS,
            SHAPE,
            initial=whole.trajectory[step],
            first_step=step,
            batch_size=batch_size,
            progress=False,
            return_trajectory=True,
        )
        assert_same_bits(rest.sample, whole.sample)
        assert_same_bits(rest.trajectory, whole.trajectory[step:])
        assert_same_bits(rest.x0, whole.x0[step:])


def test_the_start_is_the_noise_of_the_seeds() -> None:
    sampler = DDIMSampler(SCHEDULE, STEPS)
    result = sampler.sample(elementwise, SEEDS, SHAPE, progress=False, return_trajectory=True)
    assert result.trajectory is not None
    assert_same_bits(result.trajectory[0], standard_normal(SEEDS, SHAPE))
    again = sampler.sample(elementwise, SEEDS, SHAPE, initial=standard_normal(SEEDS, SHAPE), progress=False)
    assert_same_bits(again.sample, result.sample)


def test_the_loop_is_its_steps() -> None:
    sampler = DDIMSampler(SCHEDULE, STEPS, eta=1.0, mixture=some_mixture("ortho"), guidance_scale=3.0)
    x = standard_normal(SEEDS, SHAPE)
    for index, timestep in enumerate(sampler.timesteps):
        made = sampler.step(elementwise_pair(x, timestep), index, x, SEEDS)
        x = made.prev_sample
        assert made[1:] == (None, (), None)
    assert_same_bits(x, sampler.sample(elementwise_pair, SEEDS, SHAPE, progress=False).sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_is_extrapolated(dtype: torch.dtype) -> None:
    guided = DDIMSampler(SCHEDULE, STEPS, eta=0.5, guidance_scale=4.0, dtype=dtype)
    plain = DDIMSampler(SCHEDULE, STEPS, eta=0.5, dtype=dtype)

    def combined(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        uncond, cond = elementwise_pair(x, timestep)
        return uncond + 4.0 * (cond - uncond)

    ours = guided.sample(elementwise_pair, SEEDS, SHAPE, progress=False).sample
    expected = plain.sample(combined, SEEDS, SHAPE, progress=False).sample
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    alone = plain.sample(elementwise, SEEDS, SHAPE, progress=False).sample
    assert not torch.allclose(ours, alone, rtol=0.1, atol=0.1)


def test_square_roots_in_transforms() -> None:
    """Rows and tables are made of them, which a loss that learns offsets makes anew."""
    values = torch.tensor([[0.25, 2.0], [9.0, 0.3]], dtype=torch.float64)
    expected = 0.5 / values.sqrt()
    torch.testing.assert_close(torch.func.grad(lambda v: square_root(v).sum())(values), expected)
    mapped = torch.vmap(torch.func.grad(lambda v: square_root(v).sum()), in_dims=1, out_dims=1)(values)
    torch.testing.assert_close(mapped, expected)
    twice = torch.func.grad(lambda v: torch.func.grad(lambda w: square_root(w).sum())(v).sum())(values)
    torch.testing.assert_close(twice, -0.25 * values**-1.5)


def test_square_roots_are_correctly_rounded() -> None:
    """Math libraries' own vector routines may be off by a bit, and differ between machines."""
    sampler = DDIMSampler(SCHEDULE, 1000, eta=1.0, prediction_type="v_prediction", dtype=torch.float64)
    alphas = SCHEDULE.alphas_cumprod.tolist()[::-1]
    assert sampler.coefficients[:, Column.X0_SAMPLE].tolist() == [math.sqrt(a) for a in alphas]
    assert sampler.coefficients[:, Column.X0_OUTPUT].tolist() == [-math.sqrt(1 - a) for a in alphas]
    assert sampler.coefficients[:-1, Column.X0].tolist() == [math.sqrt(a) for a in alphas[1:]]
    mixture = gaussian_mixture("ortho", elements=1000, n_components=2, scale=0.1)
    tables = mixture.bind(sampler.coefficients[:3])
    for std, sigma in zip(tables.std, sampler.coefficients[:3, Column.SIGMA].tolist(), strict=True):
        variances = [sigma * sigma - r for r in mixture.reductions[0, 0].tolist()]
        assert std[0].tolist() == [math.sqrt(max(variance, 0)) for variance in variances]
