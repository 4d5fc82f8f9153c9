"""What holds for every sampler: the loop is its steps, tables are those of the rows, chunks never show."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from every_sampler import ELEMENTS, SHAPE, STEPS, every_sampler, mixtures, model, model_of
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import (
    Column,
    DDIMSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Sampler,
    noise_schedule,
    standard_normal,
)

SEEDS = torch.tensor([4, -9, 2**61, 77, 5])
LABELS = torch.tensor([0.3, -0.2, 0.7, 0.1, -0.6])
SAMPLERS = every_sampler()


def starts(sampler: Sampler) -> tuple[int, ...]:
    """F-PNDM needs four steps."""
    return (0, 1) if isinstance(sampler, PNDMSampler) and len(sampler.timesteps) > 9 else (0, 1, STEPS - 1)


def first_difference(found: Any, expected: Any) -> str:
    for name, a, b in zip(type(expected)._fields, found, expected, strict=True):
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            return name
    return ""


def test_sampling_is_the_loop_over_step() -> None:
    """From every start, by the sampler of the whole run and by that of its rest."""
    offenders = []
    clean = standard_normal(SEEDS, SHAPE, step=1)
    for name, sampler in SAMPLERS.items():
        for first_step in starts(sampler):
            initial = sampler.add_noise(clean, first_step, SEEDS)
            late, index = sampler.starting_at(first_step)
            x, history = initial, ()
            for call in range(index, len(late.timesteps)):
                output = model_of(late)(x, late.timesteps[call].expand(len(x)))
                x, _, history, _ = late.step(output, call, x, SEEDS, history=history)
            rest = 0 if isinstance(sampler, PNDMSampler) else first_step
            for way, by, first in (("whole", sampler, first_step), ("rest", late, rest)):
                found = by.sample(
                    model_of(by), SEEDS, SHAPE, initial=initial, first_step=first, progress=False
                )
                if not torch.equal(found.sample, x):
                    offenders.append(f"{name}, from step {first_step}, by the sampler of the {way}")
    assert not offenders


def test_tables_are_those_of_the_rows() -> None:
    """And the rows have the scale that the mixture gives them, wherever a run starts."""
    offenders = []
    for name, sampler in SAMPLERS.items():
        for first_step in starts(sampler):
            late, _ = sampler.starting_at(first_step)
            if late.mixture is None:
                assert late.tables is None
                continue
            if not torch.equal(late.coefficients, late.mixture.scaled(late.coefficients)):
                offenders.append(f"{name}, from step {first_step}: rows without the scale of rho")
            different = first_difference(late.tables, late.mixture.bind(late.coefficients))
            if different:
                offenders.append(f"{name}, from step {first_step}: {different} of other rows")
    assert not offenders


@pytest.mark.parametrize("name", ["timesteps", "coefficients", "tables", "mixture"])
def test_nothing_that_belongs_together_is_set_alone(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(SAMPLERS["DDIM, no mixture"], name, None)


def test_noise_of_its_own_leaves_no_mixture() -> None:
    sampler = SAMPLERS["DDIM, ortho"]
    assert isinstance(sampler, DDIMSampler)
    changed = sampler.with_sigma(torch.full((STEPS,), 0.5, dtype=torch.float64))
    assert changed.tables is None
    assert changed.mixture is None
    assert sampler.tables is not None
    assert changed.coefficients[:, Column.SIGMA].tolist() == [0.5] * STEPS


def test_conditioning_goes_with_its_sample() -> None:
    """In chunks of every size, in any order, and as the closure over one sample would have it."""
    for sampler in (SAMPLERS["DDIM, ortho"], SAMPLERS["PLMS, guided"]):
        alone = torch.cat(
            [
                sampler.sample(
                    model_of(sampler), SEEDS[[i]], SHAPE, conditioning=[LABELS[[i]]], progress=False
                ).sample
                for i in range(5)
            ]
        )
        order = torch.tensor([3, 0, 4, 2, 1])
        for batch_size in (None, 1, 2, 3, 7):
            found = sampler.sample(
                model_of(sampler),
                SEEDS[order],
                SHAPE,
                conditioning=(LABELS[order],),
                batch_size=batch_size,
                progress=False,
            ).sample
            assert_same_bits(found, alone[order])


@pytest.mark.parametrize(
    ("conditioning", "error", "message"),
    [
        (LABELS, TypeError, "conditioning: expected a sequence of tensors, got one tensor"),
        ([LABELS.tolist()], TypeError, r"conditioning\[0\]: expected a torch.Tensor, got list"),
        ([LABELS, LABELS[:4]], ValueError, r"conditioning\[1\]: expected shape \[5, \.\.\.\].*got \[4\]"),
        ([LABELS.sum()], ValueError, r"conditioning\[0\]: expected shape \[5, \.\.\.\].*got \[\]"),
    ],
)
def test_bad_conditioning(conditioning: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SAMPLERS["F-PNDM"].sample(model, SEEDS, SHAPE, conditioning=conditioning, progress=False)


@pytest.mark.parametrize("with_initial", [False, True])
def test_the_number_of_seeds_never_shows(with_initial: bool) -> None:
    """With a network of which every bit depends on the batch size, as a real one's may."""
    sampler, sizes = SAMPLERS["DDIM, ortho"], set()

    def uneven(x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        sizes.add((len(x), len(timestep), len(label)))
        return model(x, timestep, label) + len(x) / 16

    def run(count: int, **options: Any) -> Any:
        seeds = SEEDS[:count]
        return sampler.sample(
            uneven,
            seeds,
            SHAPE,
            conditioning=(LABELS[:count],),
            initial=standard_normal(seeds, SHAPE, step=3) if with_initial else None,
            batch_size=2,
            progress=False,
            **options,
        )

    whole = run(5, return_trajectory=True)
    for count in (1, 2, 3, 4):
        seen: list[int] = []
        part = run(
            count, return_trajectory=True, callback=lambda state, seen=seen: seen.append(len(state.x0))
        )
        assert_same_bits(part.sample, whole.sample[:count])
        assert_same_bits(part.trajectory, whole.trajectory[:, :count])
        assert_same_bits(part.x0, whole.x0[:, :count])
        assert seen == [2] * STEPS * (count // 2) + [1] * STEPS * (count % 2)
    assert sizes == {(2, 2, 2)}


def test_noised_data_start_a_run_at_any_step() -> None:
    """A model that knows the data gives them back, from every step, whatever it predicts and whatever the solver."""
    data = standard_normal(SEEDS, SHAPE, step=1, dtype=torch.float64)
    schedule = noise_schedule("scaled_linear")

    def knows(kind: str) -> Any:
        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            if kind == "flow":
                t = timestep.view(-1, 1, 1) / 1000
                signal, noise = 1 - t, t
            else:
                a = schedule.alphas_cumprod[timestep].view(-1, 1, 1)
                signal, noise = a.sqrt(), (1 - a).sqrt()
            eps = (x - signal * data) / noise
            return {"epsilon": eps, "sample": data, "v_prediction": signal * eps - noise * data}.get(
                kind, eps - data
            )

        return predict

    given: list[tuple[str, Sampler]] = [("flow", FlowSampler(4, dtype=torch.float64))]
    for kind in ("epsilon", "sample", "v_prediction"):
        options: dict[str, Any] = {"prediction_type": kind, "dtype": torch.float64}
        given.append((kind, DDIMSampler(schedule, 4, spacing="trailing", **options)))
        given.append((kind, DPMSolverSampler(schedule, 4, **options)))
        given.append((kind, PNDMSampler(schedule, 4, skip_prk_steps=True, **options)))
    for kind, sampler in given:
        for first_step in range(4):
            start = sampler.add_noise(data, first_step, SEEDS)
            found = sampler.sample(
                knows(kind), SEEDS, SHAPE, initial=start, first_step=first_step, progress=False
            ).sample
            torch.testing.assert_close(found, data, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_added_as_for_training(dtype: torch.dtype) -> None:
    """sqrt(a_t) x0 + sqrt(1 - a_t) z, with the noise that a whole run of the seed starts from."""
    schedule = noise_schedule("scaled_linear")
    data = standard_normal(SEEDS, SHAPE, step=1, dtype=dtype)
    sampler = DPMSolverSampler(schedule, STEPS, dtype=dtype)
    noise = standard_normal(SEEDS, SHAPE).double()
    for first_step, t in enumerate(sampler.timesteps.tolist()):
        a = schedule.alphas_cumprod[t]
        expected = a.sqrt() * data.double() + (1 - a).sqrt() * noise
        found = sampler.add_noise(data, first_step, SEEDS)
        assert found.dtype == dtype
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sample": torch.zeros(5, 3, 4).double()},
            TypeError,
            "sample: expected torch.float32, got torch.float64",
        ),
        ({"sample": [0.0]}, TypeError, "sample: expected a torch.Tensor, got list"),
        ({"sample": torch.tensor(0.0)}, ValueError, r"sample: expected shape \[N, \.\.\.\], got a scalar"),
        (
            {"sample": torch.zeros(5, 3, 4, device="meta")},
            ValueError,
            "sample: expected a tensor on cpu, got one on",
        ),
        ({"first_step": STEPS}, ValueError, "first_step: expected an integer from 0 to 4, got 5"),
        ({"seeds": SEEDS[:4]}, ValueError, "seeds: expected one for each of 5 samples, got 4"),
    ],
)
def test_bad_input_of_add_noise(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"sample": torch.zeros(5, *SHAPE), "first_step": 1, "seeds": SEEDS} | changes
    with pytest.raises(error, match=message):
        SAMPLERS["DDIM, no mixture"].add_noise(**given)


def test_late_starts_of_a_runge_kutta_method() -> None:
    """Which needs four steps: what is refused is the step to start from."""
    sampler = PNDMSampler(noise_schedule(), 10)
    assert len(sampler.starting_at(6)[0].timesteps) == 4 + 9
    for first_step in (7, 9):
        with pytest.raises(
            ValueError, match=f"first_step: expected an integer from 0 to 6, got {first_step}"
        ):
            sampler.add_noise(torch.zeros(5, *SHAPE), first_step, SEEDS)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_model_may_change_its_timesteps(batch_size: int) -> None:
    sampler = DDIMSampler(noise_schedule(), STEPS)
    before = sampler.timesteps.clone()

    def careless(x: Tensor, timestep: Tensor) -> Tensor:
        return model(x, timestep.add_(1))

    sampler.sample(careless, SEEDS, SHAPE, batch_size=batch_size, progress=False)
    assert torch.equal(sampler.timesteps, before)


def test_a_sampler_of_another_process_gives_the_same() -> None:
    """Pickled, and begun late after that: nothing it is made of stays behind."""
    for name, sampler in SAMPLERS.items():
        again = pickle.loads(pickle.dumps(sampler))
        initial = standard_normal(SEEDS, SHAPE, step=1)
        runs = [
            one.sample(model_of(one), SEEDS, SHAPE, initial=initial, first_step=1, progress=False).sample
            for one in (sampler, again)
        ]
        assert torch.equal(*runs), name


def test_every_mixture_is_used() -> None:
    """The sweep above is over steps that draw: a mixture that changed nothing would prove nothing."""
    plain = SAMPLERS["DDIM, no mixture"].sample(model, SEEDS, SHAPE, progress=False).sample
    for name, mixture in mixtures().items():
        assert mixture.elements == ELEMENTS
        found = SAMPLERS[f"DDIM, {name}"].sample(model, SEEDS, SHAPE, progress=False).sample
        assert not torch.equal(found, plain), name
