"""The samplers that read earlier predictions, and flows: bits, histories, guidance, late starts, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from denoisers import ELEMENTS, SHAPE, by_hand, elementwise, elementwise_pair, per_sample
from helpers import DTYPES, assert_same_bits
from torch import Tensor

from gmmkernel import (
    Column,
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Sampler,
    gaussian_mixture,
    noise_schedule,
    standard_normal,
)
from gmmkernel.samplers import StepState

SCHEDULE = noise_schedule()
STEPS = 6
SEEDS = torch.tensor([5, -1, 0, 2**63 - 1, -(2**63)])
MIXTURE = gaussian_mixture("ortho", elements=ELEMENTS, n_components=3, scale=0.3, n_steps=STEPS)

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "plms": lambda **o: PNDMSampler(SCHEDULE, STEPS, skip_prk_steps=True, **o),
    "f-pndm": lambda **o: PNDMSampler(SCHEDULE, STEPS, **o),
    "deis-3": lambda **o: DEISSampler(SCHEDULE, STEPS, lower_order_final=False, **o),
    "deis-2-rho": lambda **o: DEISSampler(SCHEDULE, STEPS, solver_order=2, interpolation="rho", **o),
    "dpm-solver++": lambda **o: DPMSolverSampler(SCHEDULE, STEPS, **o),
    "dpm-solver++-sde": lambda **o: DPMSolverSampler(SCHEDULE, STEPS, algorithm_type="sde-dpmsolver++", **o),
    "dpm-solver++-sde-mixture": lambda **o: DPMSolverSampler(
        SCHEDULE, STEPS, algorithm_type="sde-dpmsolver++", mixture=MIXTURE, **o
    ),
    "flow": lambda **o: FlowSampler(STEPS, **o),
    "flow-mixture": lambda **o: FlowSampler(STEPS, eta=0.5, mixture=MIXTURE, **o),
}
MULTISTEP = [name for name in SAMPLERS if "flow" not in name]


def run(sampler: Sampler, model: Any = elementwise, **options: Any) -> Any:
    return sampler.sample(model, SEEDS, SHAPE, **({"progress": False} | options))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_reference_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    ours, reference = (run(SAMPLERS[name](dtype=dtype, backend=b)).sample for b in ("cpu", "reference"))
    assert ours.dtype == dtype
    assert bool(ours.isfinite().all())
    assert_same_bits(ours, reference)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    sampler = SAMPLERS[name]()
    whole = run(sampler).sample
    for size in (1, 2, 4):
        assert_same_bits(run(sampler, batch_size=size).sample, whole)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_launch_a_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gmmkernel.samplers.base as base

    calls: list[int] = []
    real = base.gmm_step

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options["row"])
        return real(*args, **options)

    monkeypatch.setattr(base, "gmm_step", counted)
    sampler = SAMPLERS[name]()
    run(sampler)
    assert calls == list(range(len(sampler.timesteps)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_is_its_steps(name: str) -> None:
    sampler = SAMPLERS[name]()
    x = standard_normal(SEEDS, SHAPE)
    history: tuple[Tensor, ...] = ()
    for index, timestep in enumerate(sampler.timesteps):
        x, x0, history, _ = sampler.step(elementwise(x, timestep), index, x, SEEDS, history=history)
        assert x0 is None
    assert_same_bits(x, run(sampler).sample)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_watched_changes_nothing_and_is_the_data(name: str) -> None:
    sampler = SAMPLERS[name](dtype=torch.float64)
    seen: list[StepState] = []
    result = run(sampler, callback=seen.append, return_trajectory=True)
    assert_same_bits(result.sample, run(sampler).sample)
    assert [state.step_index for state in seen] == list(range(len(sampler.timesteps)))
    assert [state.timestep for state in seen] == sampler.timesteps.tolist()
    for index, timestep in enumerate(sampler.timesteps):
        x = result.trajectory[index]
        row = sampler.coefficients[index]
        expected = row[Column.X0_SAMPLE] * x + row[Column.X0_OUTPUT] * elementwise(x, timestep)
        torch.testing.assert_close(result.x0[index], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_data_of_a_guided_step(name: str) -> None:
    sampler = SAMPLERS[name](guidance_scale=2.5, dtype=torch.float64)
    x = standard_normal(SEEDS, SHAPE, dtype=torch.float64)
    uncond, cond = elementwise_pair(x, sampler.timesteps[0])
    x0 = sampler.step((uncond, cond), 0, x, SEEDS, return_x0=True).x0
    row = sampler.coefficients[0]
    expected = row[Column.X0_SAMPLE] * x + row[Column.X0_OUTPUT] * (uncond + 2.5 * (cond - uncond))
    torch.testing.assert_close(x0, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_acts_in_the_stochastic_methods_and_not_in_the_last_step(name: str) -> None:
    weights = SAMPLERS[name]().coefficients[:, Column.OFFSET].tolist()
    stochastic = "sde" in name or "flow" in name
    assert weights == ([1.0] * (STEPS - 1) + [0.0] if stochastic else [0.0] * len(weights))


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_as_a_pair_and_as_a_doubled_batch(name: str) -> None:
    sampler = SAMPLERS[name](guidance_scale=2.5, dtype=torch.float64)
    pair = run(sampler, elementwise_pair).sample
    assert_same_bits(run(sampler, lambda x, t: torch.cat(elementwise_pair(x, t))).sample, pair)

    def combined(x: Tensor, timestep: Tensor) -> Tensor:
        uncond, cond = elementwise_pair(x, timestep)
        return uncond + 2.5 * (cond - uncond)

    torch.testing.assert_close(run(SAMPLERS[name](dtype=torch.float64), combined).sample, pair)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("guided", [False, True])
def test_learned_variance_is_dropped(name: str, guided: bool) -> None:
    options = {"guidance_scale": 2.0} if guided else {}

    def with_variance(x: Tensor, timestep: Tensor) -> Any:
        def wide(output: Tensor) -> Tensor:
            return torch.cat([output, torch.full_like(output, float("nan"))], dim=1)

        if not guided:
            return wide(elementwise(x, timestep))
        return torch.cat([wide(output) for output in elementwise_pair(x, timestep)])

    plain = run(SAMPLERS[name](**options), elementwise_pair if guided else elementwise).sample
    sampler = SAMPLERS[name](learned_variance=True, **options)
    assert_same_bits(run(sampler, with_variance).sample, plain)
    with pytest.raises(
        ValueError, match=r"model_output.*: expected shape \(5, 6, 5\) of a model with learned_var"
    ):
        run(sampler, elementwise_pair if guided else elementwise)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", MULTISTEP)
def test_the_prediction_type_is_only_a_form(name: str, prediction_type: str) -> None:
    """A model that says the same in other words gives the same samples, for every solver that mixes evaluations."""

    def other_words(x: Tensor, timestep: Tensor) -> Tensor:
        a = per_sample(SCHEDULE.alphas_cumprod[timestep], x)
        eps = elementwise(x, timestep)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        return x0 if prediction_type == "sample" else a.sqrt() * eps - (1 - a).sqrt() * x0

    options: dict[str, Any] = {"dtype": torch.float64}
    expected = run(SAMPLERS[name](**options)).sample
    ours = run(SAMPLERS[name](prediction_type=prediction_type, **options), other_words).sample
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_flow_mixtures_against_a_loop_by_hand(eta: float) -> None:
    sampler = FlowSampler(STEPS, eta=eta, mixture=MIXTURE, shift=3.0, clip_sample_range=1.0)
    result = run(sampler, return_trajectory=True)
    for state, expected in zip(result.trajectory, by_hand(sampler, elementwise, SEEDS, MIXTURE), strict=True):
        assert_same_bits(state, expected)


def test_the_sde_solver_takes_a_mixture_of_its_variance() -> None:
    sampler = SAMPLERS["dpm-solver++-sde-mixture"]()
    assert sampler.tables is not None
    sigma = sampler.coefficients[:, Column.SIGMA].double()
    assert bool((sigma[:-1] > 0).all())
    removed = MIXTURE.reductions[:, 0] * sampler.coefficients[:, Column.OFFSET, None].double() ** 2
    expected = (sigma[:, None] ** 2 - removed).clamp(min=0).sqrt()
    torch.testing.assert_close(sampler.tables.std[:, 0].double(), expected, rtol=1e-6, atol=1e-7)


def test_clipping_holds_what_is_predicted() -> None:
    sampler = DPMSolverSampler(SCHEDULE, STEPS, clip_sample_range=0.25)
    assert float(run(sampler, return_trajectory=True).x0.abs().max()) == 0.25


THRESHOLDED: dict[str, Callable[..., Sampler]] = {
    "ddim": lambda **o: DDIMSampler(SCHEDULE, STEPS, eta=0.5, **o),
    "ddim-mixture": lambda **o: DDIMSampler(SCHEDULE, STEPS, eta=0.5, mixture=MIXTURE, **o),
    "dpm-solver++": SAMPLERS["dpm-solver++"],
    "dpm-solver++-sde-mixture": SAMPLERS["dpm-solver++-sde-mixture"],
}


@pytest.mark.parametrize("name", THRESHOLDED)
@pytest.mark.parametrize("guided", [False, True])
def test_dynamic_thresholding(name: str, guided: bool) -> None:
    """A step is that of the data after thresholding; epsilon stays what the model predicts, as in diffusers."""
    options: dict[str, Any] = {"dtype": torch.float64, **({"guidance_scale": 2.5} if guided else {})}
    sampler = THRESHOLDED[name](dynamic_thresholding_ratio=0.8, sample_max_value=1.7, **options)
    plain = THRESHOLDED[name](**options)
    x, history, limits = standard_normal(SEEDS, SHAPE, dtype=torch.float64), (), []
    for index, timestep in enumerate(sampler.timesteps):
        outputs = elementwise_pair(x, timestep) if guided else elementwise(x, timestep)
        made = sampler.step(outputs, index, x, SEEDS, history=history, return_x0=True)
        raw = plain.step(outputs, index, x, SEEDS, history=history, return_x0=True)
        assert made.x0 is not None
        assert raw.x0 is not None
        limit = torch.quantile(raw.x0.flatten(1).abs(), 0.8, dim=1).clamp(1, 1.7).view(-1, 1, 1)
        limits.append(limit)
        expected = raw.x0.clamp(-limit, limit) / limit
        torch.testing.assert_close(made.x0, expected, rtol=1e-12, atol=1e-12)
        moved = raw.prev_sample + sampler.coefficients[index, Column.X0] * (expected - raw.x0)
        torch.testing.assert_close(made.prev_sample, moved, rtol=1e-11, atol=1e-11)
        x, history = made.prev_sample, made.history
    between = torch.cat(limits)
    assert bool((between > 1).any())
    assert bool((between == 1.7).any())


@pytest.mark.parametrize("make", [DDIMSampler, DPMSolverSampler])
def test_bad_thresholding(make: Any) -> None:
    for options, message in (
        (
            {"dynamic_thresholding_ratio": 1.5},
            "dynamic_thresholding_ratio: expected a number from 0 to 1, got 1.5",
        ),
        (
            {"sample_max_value": 2.0},
            "sample_max_value: expected 1.0 without dynamic_thresholding_ratio, got 2.0",
        ),
        (
            {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 0},
            "sample_max_value: expected a finite number > 0, got 0",
        ),
        (
            {"dynamic_thresholding_ratio": 0.9, "clip_sample_range": 1.0},
            "clip_sample_range: expected None beside dynamic_thresholding_ratio, got 1.0",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(SCHEDULE, STEPS, **options)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_late_start_is_a_run_of_the_steps_that_are_left(name: str, first: int) -> None:
    whole = SAMPLERS[name]()
    late, index = whole.starting_at(first)
    start = standard_normal(SEEDS, SHAPE, step=7)
    made = run(whole, initial=start, first_step=first).sample
    x, history = start, ()
    for call in range(index, len(late.timesteps)):
        timestep = late.timesteps[call]
        x, _, history, _ = late.step(elementwise(x, timestep), call, x, SEEDS, history=history)
    assert_same_bits(made, x)
    visited = DDIMSampler(SCHEDULE, STEPS).timesteps if "flow" not in name else whole.timesteps
    assert late.timesteps[index] == visited[first]
    assert late.timesteps[-1] == visited[-1]


def test_a_late_start_draws_the_noise_of_its_steps() -> None:
    sampler = DPMSolverSampler(SCHEDULE, STEPS, algorithm_type="sde-dpmsolver++", solver_order=1)
    whole = run(sampler, return_trajectory=True)
    assert_same_bits(run(sampler, initial=whole.trajectory[2], first_step=2).sample, whole.sample)


def test_a_late_multistep_start_begins_with_order_one() -> None:
    late, _ = SAMPLERS["deis-3"]().starting_at(3)
    used = (late.coefficients[:, Column.HISTORY_0 : Column.HISTORY_2] != 0).tolist()
    assert used == [[False, False]] * 4 + [[True, False], [False, False]]  # the last step ends at a = 1
    late.step(torch.zeros(5, *SHAPE), 3, torch.zeros(5, *SHAPE), SEEDS)


@pytest.mark.parametrize("name", ["plms", "f-pndm", "deis-3", "dpm-solver++"])
def test_histories_that_do_not_fit(name: str) -> None:
    sampler = SAMPLERS[name]()
    if name in ("deis-3", "dpm-solver++"):  # which keep what some step reads, and no tensor more
        read = (sampler.coefficients[:, Column.HISTORY_0 : Column.HISTORY_3 + 1] != 0).any(0)
        assert sampler.depth == int(read.sum())
    x = standard_normal(SEEDS, SHAPE)
    made = sampler.step(x, 0, x, SEEDS)
    assert made.history
    with pytest.raises(
        ValueError, match=r"history: expected 0 tensors at step 0, as the step before .*, got "
    ):
        sampler.step(x, 0, x, SEEDS, history=made.history)
    with pytest.raises(
        ValueError, match=rf"history: expected {len(made.history)} tensors at step 1, .*, got 0"
    ):
        sampler.step(x, 1, x, SEEDS)
    with pytest.raises(TypeError, match="history: expected a tuple of tensors, got list"):
        sampler.step(x, 1, x, SEEDS, history=list(made.history))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"history\[0\]: expected the sample's shape \(2, 3, 5\), got \(5, 3, 5\)"
    ):
        sampler.step(x[:2], 1, x[:2], SEEDS[:2], history=made.history)


def test_methods_that_store_nothing_take_no_history() -> None:
    x = standard_normal(SEEDS, SHAPE)
    message = "history: expected none, DDIMSampler stores nothing, got 1 tensors"
    with pytest.raises(ValueError, match=message):
        DDIMSampler(SCHEDULE, STEPS).step(x, 0, x, SEEDS, history=(x,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DEISSampler(SCHEDULE, 5, solver_order=4),
            "solver_order: expected an integer from 1 to 3, got 4",
        ),
        (
            lambda: DPMSolverSampler(SCHEDULE, 5, solver_order=3),
            "solver_order: expected an integer from 1 to 2",
        ),
        (
            lambda: DEISSampler(SCHEDULE, 5, interpolation="linear"),
            "interpolation: expected one of 'log-rho', 'rho'",
        ),
        (
            lambda: DPMSolverSampler(SCHEDULE, 5, algorithm_type="dpmsolver"),
            "algorithm_type: expected one of 'dpms",
        ),
        (
            lambda: DPMSolverSampler(SCHEDULE, STEPS, mixture=MIXTURE),
            "mixture: expected None with algorithm_type='dpmsolver++', whose steps draw no noise",
        ),
        (
            lambda: DPMSolverSampler(SCHEDULE, 5, algorithm_type="sde-dpmsolver++", mixture=MIXTURE),
            "mixture: expected one made for 5 steps or shared by all, got one made for 6",
        ),
        (lambda: FlowSampler(0), "num_inference_steps: expected an integer >= 1, got 0"),
        (
            lambda: FlowSampler(2, times=torch.tensor([1.0, 0.0]).double()),
            "times: expected shape [3] for 2 steps",
        ),
        (
            lambda: FlowSampler(1, times=torch.tensor([1.0, 0.0]).double(), shift=2.0),
            "and no shift beside them, got shape",
        ),
        (
            lambda: FlowSampler(1, times=torch.tensor([0.0, 1.0]).double()),
            "times: expected strictly descending",
        ),
        (lambda: FlowSampler(5, shift=0.0), "shift: expected a finite number > 0, got 0.0"),
        (
            lambda: FlowSampler(5, dynamics="ode", noise_level=5.0),
            "noise_level: expected None with dynamics='ode', which draws nothing, got 5.0",
        ),
        (lambda: FlowSampler(5, eta=1.5), "eta: expected a number from 0 to 1, got 1.5"),
        (
            lambda: FlowSampler(5, num_train_timesteps=0),
            "num_train_timesteps: expected an integer >= 1, got 0",
        ),
        (lambda: PNDMSampler(SCHEDULE, 3), "num_inference_steps: expected at least 4 without skip_prk_steps"),
        (
            lambda: PNDMSampler(SCHEDULE, 1000),
            "timesteps: expected a timestep between those of each of the first steps without skip_prk_steps, got 999",
        ),
        (
            lambda: PNDMSampler(noise_schedule(rescale_betas_zero_snr=True), 5, spacing="trailing"),
            "timesteps: expected steps that start where alphas_cumprod > 0, got row 0 (timestep 999)",
        ),
        (
            lambda: DEISSampler(
                noise_schedule(rescale_betas_zero_snr=True),
                5,
                spacing="trailing",
                prediction_type="v_prediction",
            ),
            "timesteps: expected steps that start where alphas_cumprod > 0, got row 0 (timestep 999)",
        ),
        (
            lambda: PNDMSampler(SCHEDULE, 5).starting_at(2),
            "first_step: expected an integer from 0 to 1, got 2",
        ),
        (
            lambda: DEISSampler(SCHEDULE, 5).starting_at(5),
            "first_step: expected an integer from 0 to 4, got 5",
        ),
    ],
)
def test_what_cannot_be_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("make", [DEISSampler, DPMSolverSampler, PNDMSampler])
def test_types_of_arguments(make: Any) -> None:
    with pytest.raises(TypeError, match="schedule: expected a NoiseSchedule, got float"):
        make(1.0, 5)
    with pytest.raises(TypeError, match="learned_variance: expected True or False, got 1"):
        make(SCHEDULE, 5, learned_variance=1)
    with pytest.raises(TypeError, match=r"dtype: expected torch.float32, torch.bfloat16, torch.float16 or "):
        make(SCHEDULE, 5, dtype=torch.int64)


def test_dpm_solver_starts_from_pure_noise() -> None:
    """Where a = 0 the ratio of the steps' lengths is infinite: the data of that step has no slope to give."""
    schedule = noise_schedule(rescale_betas_zero_snr=True)
    options: dict[str, Any] = {
        "spacing": "trailing",
        "prediction_type": "v_prediction",
        "dtype": torch.float64,
    }
    sampler = DPMSolverSampler(schedule, STEPS, **options)
    assert bool(sampler.coefficients[:, Column.SAMPLE].isfinite().all())
    assert sampler.coefficients[1, Column.HISTORY_0] == 0
    assert sampler.coefficients[2, Column.HISTORY_0] < 0
    first = run(sampler, return_trajectory=True).trajectory[1]
    ddim = run(DDIMSampler(schedule, STEPS, **options), return_trajectory=True).trajectory[1]
    torch.testing.assert_close(first, ddim, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_a_history() -> None:
    sampler = SAMPLERS["dpm-solver++"](dtype=torch.float64)
    x = standard_normal(SEEDS, SHAPE, dtype=torch.float64)

    def two_steps(start: Tensor) -> Tensor:
        made = sampler.step(elementwise(start, torch.tensor(833)), 0, start, SEEDS[:2])
        return sampler.step(
            made.prev_sample * 0.5, 1, made.prev_sample, SEEDS[:2], history=made.history
        ).prev_sample

    assert torch.autograd.gradcheck(two_steps, x[:2].clone().requires_grad_())


@pytest.mark.parametrize("name", ["plms", "dpm-solver++-sde-mixture", "flow"])
def test_a_loop_of_steps_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # poisoned torch.empty is not what is traced
    sampler = SAMPLERS[name](guidance_scale=2.0)

    def loop(x: Tensor) -> Tensor:
        history: tuple[Tensor, ...] = ()
        for index in range(3):
            outputs = torch.cat([torch.tanh(x), x * 0.5])
            x, _, history, _ = sampler.step(outputs, index, x, SEEDS, history=history)
        return x

    start = standard_normal(SEEDS, SHAPE)
    torch.compiler.reset()
    assert_same_bits(torch.compile(loop, fullgraph=True, backend="eager")(start), loop(start))
