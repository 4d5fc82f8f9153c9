"""A sample's result depends on its own rows alone: any split, order or mix of a batch gives the same bits."""

from __future__ import annotations

from dataclasses import replace

import torch
from covering import check_all, pairs
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output, random_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmmkernel import MixtureTables
from gmmkernel.ops import GMMStepOutput

BATCH = 7


def chosen(made: GMMStepOutput, index: object) -> GMMStepOutput:
    return GMMStepOutput(*(None if tensor is None else tensor[index] for tensor in made))


def batch_case(seed: int, **options: object) -> StepCase:
    return random_case(seed, batch=BATCH, **({"components": 4, "prediction": "x0"} | options))


def check_split(backend: str, sizes: tuple[int, ...], **options: object) -> None:
    case = batch_case(**options, shape=(1, 5, 13))
    whole = case.run(backend=backend)
    first = 0
    for size in sizes:
        part = slice(first, first + size)
        assert_same_output(case.take(part).run(backend=backend), chosen(whole, part))
        first += size


def test_any_split_of_a_batch_gives_the_same_samples() -> None:
    choices = pairs(
        sizes=[(1,) * BATCH, (3, 4), (2, 2, 3), (6, 1), (BATCH, 0)],
        seed=range(4),
        dtype=DTYPES,
        per_sample=[False, True],
        backend=["cpu", "reference"],
    )
    check_all(check_split, choices)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    index=st.lists(st.integers(0, BATCH - 1), min_size=0, max_size=12),
    dtype=st.sampled_from(DTYPES),
)
def test_any_choice_of_samples_in_any_order_gives_theirs(seed: int, index: list[int], dtype) -> None:
    case = batch_case(seed, dtype=dtype, per_sample=True, components=None, prediction="any")
    picked = torch.tensor(index, dtype=torch.int64)
    assert_same_output(case.take(picked).run(), chosen(case.run(), picked))


def test_other_samples_do_not_matter_even_if_they_are_not_finite(backend: str) -> None:
    case = batch_case(3, per_sample=True)
    whole = case.run(backend=backend)
    for bad in (torch.nan, torch.inf):
        spoiled = case.map_samples(lambda tensor, bad=bad: tensor.index_fill(0, torch.tensor([0, 2, 6]), bad))
        rest = [1, 3, 4, 5]
        assert_same_output(chosen(spoiled.run(backend=backend), rest), chosen(whole, rest))


def test_elements_depend_on_their_place_in_the_sample_not_on_its_length(backend: str) -> None:
    case = batch_case(4, shape=(1000,), removed=130)
    whole = case.run(backend=backend)
    for length in (130, 131, 333, 999):
        mixture = case.mixture._replace(offsets=case.mixture.offsets[:, :, :length])
        part = replace(case.map_samples(lambda tensor, n=length: tensor[:, :n]), mixture=mixture)
        made = part.run(backend=backend)
        assert_same_bits(made.prev_sample, whole.prev_sample[:, :length])
        assert_same_bits(made.prediction, whole.prediction[:, :length])


def test_requests_of_different_schedules_share_a_batch_by_joined_tables(backend: str) -> None:
    """A server concatenates the tables of its request classes and shifts the rows."""
    first = batch_case(1, rows=3, per_sample=True, guidance=True, history=2, removed=11)
    second = batch_case(2, rows=5, per_sample=True, guidance=True, history=2, removed=11)
    steps = [torch.arange(BATCH), torch.arange(BATCH) + 100]

    def with_full_tables(case: StepCase, rows: int) -> MixtureTables:
        full = [table.expand(rows, *table.shape[1:]) for table in case.mixture[:3]]
        full[2] = full[2].expand(rows, 4, 11)
        return MixtureTables(*full)

    def joined(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a.float(), b.float()])

    together = StepCase(
        sample=joined(first.sample, second.sample),
        model_output=joined(first.model_output, second.model_output),
        model_output_uncond=joined(first.model_output_uncond, second.model_output_uncond),
        history=[joined(a, b) for a, b in zip(first.history, second.history, strict=True)],
        coefficients=torch.cat([first.coefficients, second.coefficients]),
        row=torch.cat([first.row, second.row + 3]),
        step=torch.cat(steps),
        seeds=torch.cat([first.seeds, second.seeds]),
        mixture=MixtureTables(
            *map(torch.cat, zip(with_full_tables(first, 3)[:3], with_full_tables(second, 5)[:3], strict=True))
        ),
        prediction="x0",
    )
    made = together.run(backend=backend)
    assert_same_output(chosen(made, slice(0, BATCH)), first.run(step=steps[0], backend=backend))
    assert_same_output(chosen(made, slice(BATCH, None)), second.run(step=steps[1], backend=backend))
