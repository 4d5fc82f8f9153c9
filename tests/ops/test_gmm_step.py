"""`gmm_step` against the equations in extended precision, and its rules about terms, rows, steps and results."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import truth
from covering import check_all, numbered
from helpers import (
    DTYPE_PAIRS,
    DTYPES,
    PREDICTIONS,
    StepCase,
    assert_same_bits,
    assert_same_output,
    coefficient_row,
    every_option,
    random_case,
)

from gmmkernel import Column, MixtureTables, Stream, gmm_step, standard_normal
from gmmkernel.ops import GMMStepOutput


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """One sample as float64, exactly."""
    return tensor.detach().double().reshape(-1).numpy()


def index_of(value: int | torch.Tensor, sample: int) -> int:
    if not isinstance(value, torch.Tensor):
        return value
    return int(value.reshape(-1)[0 if value.numel() == 1 else sample])


def entry(table: torch.Tensor, row: int) -> torch.Tensor:
    return table[0 if table.shape[0] == 1 else row]


def true_step(case: StepCase, sample: int) -> tuple[dict[str, truth.Bounded], int]:
    """What the equations give for one sample, with the bound on rounding, and the component."""
    row = index_of(case.row, sample)
    step = row if case.step is None else index_of(case.step, sample)
    seed = int(case.seeds[sample])
    arithmetic = "float64" if case.sample.dtype == torch.float64 else "float32"
    component, offset, std = 0, None, np.zeros(0)
    if case.mixture is not None:
        component = truth.choose_component(seed, step, entry(case.mixture.cdf, row).tolist())
        offset = numbers(entry(case.mixture.offsets, row)[component])
        std_rows = entry(case.mixture.std, row)
        std = numbers(std_rows[0 if len(std_rows) == 1 else component])
    elements = case.sample[sample].numel()
    value = truth.standard_normal(seed, step, truth.TRANSITION, elements)
    noise = truth.Bounded(value, abs(value) * truth.NORMAL_RELATIVE_ERROR)
    if arithmetic == "float64":  # its own rounding shows only beside exactly the same noise
        drawn = standard_normal(case.seeds[sample, None], (elements,), step=step, stream=Stream.TRANSITION)
        assert (abs(numbers(drawn) - noise.value) <= noise.error).all()
        noise = truth.Bounded.exactly(numbers(drawn))
    uncond = case.model_output_uncond
    true = truth.step(
        numbers(case.sample[sample]),
        numbers(case.model_output[sample]),
        None if uncond is None else numbers(uncond[sample]),
        [numbers(stored[sample]) for stored in case.history],
        numbers(case.coefficients[row]),
        offset,
        std,
        noise,
        truth.FORMATS[arithmetic],
    )
    stored_as = str(case.sample.dtype).removeprefix("torch.")
    if stored_as != arithmetic:
        true = {name: bounded.rounded(truth.FORMATS[stored_as]) for name, bounded in true.items()}
    return true, component


def assert_true(case: StepCase, made: GMMStepOutput) -> None:
    for sample in range(len(case.seeds)):
        true, component = true_step(case, sample)
        assert made.components[sample] == component
        error = abs(numbers(made.prev_sample[sample]) - true["prev_sample"].value)
        assert (error <= true["prev_sample"].error).all()
        if case.prediction:
            expected = true[case.prediction]
            assert (abs(numbers(made.prediction[sample]) - expected.value) <= expected.error).all()


def check_step(seed: int, **options: Any) -> None:
    case = random_case(seed, batch=2, **options)
    assert_true(case, case.run())


def test_step_follows_the_equations_within_the_derived_bound() -> None:
    check_all(check_step, numbered(every_option(types=DTYPE_PAIRS)))


def test_result_has_the_samples_shape_type_and_place(backend: str) -> None:
    for dtype, wanted in itertools.product(DTYPES, PREDICTIONS):
        case = random_case(1, shape=(2, 3, 5), dtype=dtype, prediction=wanted)
        made = case.run(backend=backend)
        assert isinstance(made, GMMStepOutput)
        for tensor in (made.prev_sample, made.prediction):
            if tensor is not None:
                assert tensor.shape == case.sample.shape
                assert tensor.dtype == dtype
                assert tensor.is_contiguous()
        assert (made.prediction is None) == (wanted is None)
        assert made.components.dtype == torch.int64
        assert made.components.shape == (3,)
        assert case.run(backend=backend, return_components=False).components is None


def test_shape_of_a_sample_does_not_matter_only_its_elements(backend: str) -> None:
    case = random_case(5, shape=(60,), components=3, prediction="x0")
    flat = case.run(backend=backend)
    for shape in ((60, 1), (3, 4, 5), (1, 2, 30, 1)):
        made = case.map_samples(lambda tensor, shape=shape: tensor.reshape(3, *shape)).run(backend=backend)
        assert_same_bits(made.prev_sample, flat.prev_sample.reshape(3, *shape))
        assert_same_bits(made.prediction, flat.prediction.reshape(3, *shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_one_element(backend: str, dtype: torch.dtype) -> None:
    case = random_case(4, batch=5, shape=(1,), dtype=dtype, components=3, removed=1, prediction="epsilon")
    made = case.run(backend=backend)
    assert_true(case, made)
    without_dimension = case.map_samples(lambda tensor: tensor[:, 0]).run(backend=backend)
    assert_same_bits(without_dimension.prev_sample, made.prev_sample[:, 0])
    assert_same_bits(without_dimension.prediction, made.prediction[:, 0])


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("shape", [(5,), (2, 0), ()])
def test_an_empty_batch_gives_an_empty_result(backend: str, shape: tuple[int, ...], components: int) -> None:
    case = random_case(4, batch=0, shape=shape, components=components, prediction="x0")
    made = case.run(backend=backend)
    assert made.prev_sample.shape == made.prediction.shape == (0, *shape)
    assert made.components.shape == (0,)


@pytest.mark.parametrize("components", [0, 3])
def test_samples_without_elements_give_a_result_without_elements(backend: str, components: int) -> None:
    case = random_case(4, batch=2, shape=(3, 0), components=components, removed=0, prediction="x0")
    made = case.run(backend=backend)
    assert made.prev_sample.shape == made.prediction.shape == (2, 3, 0)
    assert made.components.shape == (2,)


def test_row_and_step_may_be_ints_or_tensors_of_one_or_all(backend: str) -> None:
    case = random_case(6, batch=4, components=4)
    expected = case.run(row=2, step=9, backend=backend)
    two, nine = torch.tensor(2), torch.tensor(9)
    for row, step in itertools.product(
        (2, two, two[None], two.repeat(4)), (9, nine, nine[None], nine.repeat(4))
    ):
        assert_same_output(case.run(row=row, step=step, backend=backend), expected)


def test_step_is_the_row_unless_given(backend: str) -> None:
    case = random_case(6, batch=4, components=4)
    for row in (2, torch.tensor([0, 3, 1, 1])):
        expected = case.run(row=row, step=row, backend=backend)
        assert_same_output(case.run(row=row, step=None, backend=backend), expected)
    assert not torch.equal(case.run(row=2, step=3).prev_sample, case.run(row=2, step=2).prev_sample)


def test_each_sample_takes_its_own_row_of_every_table(backend: str) -> None:
    case = random_case(9, batch=4, components=3, removed=5, history=3, guidance=True, prediction="epsilon")
    rows, steps = torch.tensor([3, 0, 3, 1]), torch.tensor([7, 7, 2**32 - 1, 0])
    together = case.run(row=rows, step=steps, backend=backend)
    for b in range(4):
        alone = case.take(slice(b, b + 1)).run(row=int(rows[b]), step=int(steps[b]), backend=backend)
        assert_same_bits(together.prev_sample[b], alone.prev_sample[0])
        assert_same_bits(together.prediction[b], alone.prediction[0])
        assert together.components[b] == alone.components[0]


def test_tables_of_one_entry_are_shared_by_all_rows(backend: str) -> None:
    case = random_case(3, batch=5, components=6, removed=20, per_sample=True)
    single = MixtureTables(*(table[:1] for table in case.mixture[:3]))
    repeated = MixtureTables(*(table.repeat(4, *[1] * (table.dim() - 1)) for table in single[:3]))
    expected = case.run(mixture=repeated, backend=backend)
    for shared in itertools.product((False, True), repeat=3):
        tables = [s if one else r for one, s, r in zip(shared, single[:3], repeated[:3], strict=True)]
        assert_same_output(case.run(mixture=MixtureTables(*tables), backend=backend), expected)


def test_std_shared_by_components_is_std_repeated(backend: str) -> None:
    case = random_case(3, batch=5, components=6, removed=20)
    shared = case.mixture._replace(std=case.mixture.std[:, :1])
    repeated = case.mixture._replace(std=case.mixture.std[:, :1].repeat(1, 6, 1))
    assert_same_output(case.run(mixture=shared, backend=backend), case.run(mixture=repeated, backend=backend))


def test_a_std_table_of_sigma_is_no_std_table(backend: str) -> None:
    case = random_case(3, components=6, removed=0, per_sample=True)
    sigma = case.coefficients[:, Column.SIGMA].abs() + 0.1
    case.coefficients[:, Column.SIGMA] = sigma
    full = case.mixture._replace(std=sigma[:, None, None].repeat(1, 1, 63))
    assert_same_output(case.run(mixture=full, backend=backend), case.run(backend=backend))


def test_one_component_without_offset_is_a_gaussian_step(backend: str) -> None:
    case = random_case(3, components=1, removed=0)
    zero = case.mixture._replace(offsets=torch.zeros_like(case.mixture.offsets))
    made = case.run(mixture=zero, backend=backend)
    assert_same_output(made, case.run(mixture=None, backend=backend))
    assert made.components.tolist() == [0, 0, 0]


def simple(**columns: float) -> dict[str, torch.Tensor | int]:
    """Arguments of a step of two samples of 40 ones, with one coefficient row."""
    return {
        "sample": torch.ones(2, 40),
        "model_output": torch.ones(2, 40),
        "coefficients": coefficient_row(**columns),
        "row": 0,
        "seeds": torch.tensor([5, 6]),
    }


def test_history_switched_off_by_its_coefficient_is_absent(backend: str) -> None:
    bad, good = torch.full((2, 40), math.nan), torch.full((2, 40), 3.0)
    made = gmm_step(**simple(sample=2, history_1=4), history=[bad, good, bad], backend=backend)
    assert_same_bits(made.prev_sample, torch.full((2, 40), 14.0))
    made = gmm_step(**simple(history_0=1e-38), history=[bad], backend=backend)
    assert made.prev_sample.isnan().all()


def test_offset_switched_off_by_its_coefficient_is_absent(backend: str) -> None:
    offsets = torch.full((1, 2, 40), math.nan)
    mixture = MixtureTables(torch.tensor([[2**31]]), offsets, torch.zeros(1, 1, 0))
    made = gmm_step(**simple(sample=2), mixture=mixture, return_components=True, backend=backend)
    assert_same_bits(made.prev_sample, torch.full((2, 40), 2.0))
    made = gmm_step(**simple(offset=1e-38), mixture=mixture, backend=backend)
    assert made.prev_sample.isnan().all()


def test_offset_coefficient_scales_the_offset(backend: str) -> None:
    offsets = torch.arange(80.0).reshape(1, 2, 40)
    mixture = MixtureTables(torch.tensor([[2**31]]), offsets, torch.zeros(1, 1, 0))
    made = gmm_step(**simple(offset=0.5), mixture=mixture, return_components=True, backend=backend)
    assert_same_bits(made.prev_sample, offsets[0, made.components] / 2)


def test_noise_is_absent_where_sigma_is_zero_and_the_mixture_gives_no_std(backend: str) -> None:
    arguments = simple(sample=1)
    arguments["sample"] = arguments["model_output"] = torch.full((2, 40), -0.0)
    made = gmm_step(**arguments, backend=backend)
    assert_same_bits(made.prev_sample, torch.full((2, 40), -0.0))  # -0 + 0 * z would be +0 wherever z > 0


def test_noise_is_the_transition_streams(backend: str) -> None:
    arguments = simple(sigma=1)
    z = standard_normal(arguments["seeds"], (40,), step=0, stream=Stream.TRANSITION, backend=backend)
    assert_same_bits(gmm_step(**arguments, backend=backend).prev_sample, z)
    std = torch.arange(17.0).reshape(1, 1, 17)
    mixture = MixtureTables(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 1, 40), std)
    made = gmm_step(**arguments, mixture=mixture, backend=backend).prev_sample
    assert torch.equal(made[:, :17], z[:, :17] * std[0])
    assert torch.equal(made[:, 17:], z[:, 17:])


def test_guidance_of_one_or_zero_is_one_of_the_pair(backend: str) -> None:
    case = random_case(1, guidance=True, components=0, history=0, prediction="model_output")
    conditional, unconditional = case.model_output.float(), case.model_output_uncond.float()
    for scale, expected in ((1.0, conditional), (0.0, unconditional)):
        case.coefficients[:, Column.GUIDANCE] = scale
        made = case.run(backend=backend).prediction
        # Half an ulp for the difference, another for the result.
        assert ((made - expected).abs() <= 2**-23 * (conditional.abs() + unconditional.abs())).all()
    same = replace(case, model_output_uncond=case.model_output)
    assert_same_bits(same.run(backend=backend).prediction, conditional)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_is_not_hidden(backend: str, bad: float) -> None:
    case = random_case(1, components=2, guidance=True, history=1, prediction="x0", per_sample=False)
    row = coefficient_row(x0_sample=1, x0_output=1, sample=1, guidance=2, history_0=1, sigma=1)
    for name in ("sample", "model_output", "model_output_uncond"):
        tensor = getattr(case, name).clone()
        tensor[1, 5] = bad
        made = replace(case, **{name: tensor}, coefficients=row, row=0).run(mixture=None, backend=backend)
        finite = made.prediction.isfinite()
        assert not finite[1, 5]
        assert int((~finite).sum()) == 1
    clipped = row.clone()
    clipped[0, Column.CLIP_MIN], clipped[0, Column.CLIP_MAX] = -1, 1
    held = replace(case, sample=torch.full_like(case.sample, bad), coefficients=clipped, row=0).run(
        mixture=None, backend=backend
    )
    expected = bad if math.isnan(bad) else math.copysign(1, bad)
    assert_same_bits(held.prediction, torch.full_like(case.sample, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_as_they_were(backend: str, dtype: torch.dtype) -> None:
    case = random_case(2, dtype=dtype, components=3, removed=9, guidance=True, history=4, per_sample=True)
    tensors = [
        case.sample,
        case.model_output,
        case.model_output_uncond,
        *case.history,
        case.coefficients,
        case.row,
        case.seeds,
        *case.mixture[:3],
    ]
    before = [tensor.clone() for tensor in tensors]
    case.run(backend=backend)
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same_bits(tensor, copy)


def test_samples_differ_by_seed_and_by_step(backend: str) -> None:
    arguments = simple(sigma=1)
    seeds = torch.tensor([0, 1, -1, 2**32, 2**63 - 1, -(2**63)])
    ones = torch.ones(6, 40)
    arguments |= {"sample": ones, "model_output": ones, "seeds": seeds}
    made = [
        gmm_step(**arguments, step=step, backend=backend).prev_sample for step in (0, 1, 2**31, 2**32 - 1)
    ]
    assert len(torch.cat(made).unique(dim=0)) == 24


def test_poison_reaches_what_the_ops_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that writes nothing leaves NaN and -1 behind: what the other tests rely on."""
    from gmmkernel import backends, draw_components

    class Idle:
        @staticmethod
        def gmm_step(*_: object) -> None: ...

        standard_normal = draw_components = gmm_step

    monkeypatch.setattr(backends, "load", lambda name: Idle)
    case = random_case(1, components=2, prediction="x0")
    made = case.run()
    assert made.prev_sample.isnan().all()
    assert made.prediction.isnan().all()
    assert made.components.tolist() == [-1, -1, -1]
    assert standard_normal(case.seeds, (4,), dtype=torch.bfloat16).isnan().all()
    assert draw_components(case.seeds, case.mixture.cdf[:1]).tolist() == [-1, -1, -1]
