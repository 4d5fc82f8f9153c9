"""What a caller of the samplers sees: callbacks, trajectories, progress, seeds, control samplers, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import ELEMENTS, SHAPE, elementwise, elementwise_pair
from helpers import assert_same_bits
from torch import Tensor, nn

from gmmkernel import (
    Column,
    DDIMSampler,
    FlowSampler,
    PNDMSampler,
    backends,
    gaussian_mixture,
    noise_schedule,
    seeds_from_generator,
    seeds_from_ids,
    standard_normal,
)
from gmmkernel.samplers import StepState

SCHEDULE = noise_schedule()
STEPS = 4
SEEDS = torch.arange(5)
MIXTURE = gaussian_mixture("ortho", elements=ELEMENTS, n_components=3, n_steps=STEPS)


def make(**options: Any) -> DDIMSampler:
    return DDIMSampler(SCHEDULE, STEPS, **options)


def run(sampler: DDIMSampler, **options: Any) -> Any:
    return sampler.sample(elementwise, SEEDS, SHAPE, **({"progress": False} | options))


def test_callbacks_see_every_step_of_every_batch_in_order() -> None:
    sampler = make(eta=1.0, mixture=MIXTURE)
    seen: list[StepState] = []
    result = run(sampler, batch_size=2, callback=seen.append, return_trajectory=True)
    assert [state.step_index for state in seen] == [0, 1, 2, 3] * 3
    assert [state.timestep for state in seen] == [750, 500, 250, 0] * 3
    assert all(type(state.timestep) is int for state in seen)
    assert [state.seeds.tolist() for state in seen[::STEPS]] == [[0, 1], [2, 3], [4]]
    for number, state in enumerate(seen):
        batch = slice(2 * (number // STEPS), 2 * (number // STEPS) + 2)
        assert_same_bits(state.sample, result.trajectory[state.step_index + 1, batch])
        assert_same_bits(state.x0, result.x0[state.step_index, batch])
    late: list[StepState] = []
    run(sampler, initial=result.trajectory[2], first_step=2, callback=late.append)
    assert [(state.step_index, state.timestep) for state in late] == [(2, 250), (3, 0)]


def test_a_callback_changes_nothing_and_can_stop_a_run() -> None:
    sampler = make(eta=1.0)
    watched = run(sampler, callback=lambda state: None)
    assert watched.trajectory is None
    assert watched.x0 is None
    assert_same_bits(watched.sample, run(sampler).sample)

    def stop(state: StepState) -> None:
        if state.step_index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sampler, callback=stop)


def test_a_trajectory_has_all_states_and_predictions() -> None:
    result = run(make(), return_trajectory=True)
    assert result.trajectory.shape == (STEPS + 1, 5, *SHAPE)
    assert result.x0.shape == (STEPS, 5, *SHAPE)
    assert_same_bits(result.trajectory[0], standard_normal(SEEDS, SHAPE))
    assert_same_bits(result.trajectory[-1], result.sample)
    a = SCHEDULE.alphas_cumprod[make().timesteps].view(STEPS, 1, 1, 1)
    states = result.trajectory[:-1].double()
    outputs = torch.stack([elementwise(x, t) for x, t in zip(states, make().timesteps, strict=True)])
    expected = (states - (1 - a).sqrt() * outputs) / a.sqrt()
    torch.testing.assert_close(result.x0.double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_bits(result.sample, result.x0[-1])  # the last step ends at the data
    assert run(make())[1:] == (None,) * 4


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_clipping_holds_what_is_predicted(prediction_type: str) -> None:
    free = run(make(prediction_type=prediction_type), return_trajectory=True)
    clipped = run(make(prediction_type=prediction_type, clip_sample_range=0.5), return_trajectory=True)
    assert_same_bits(clipped.x0[0], free.x0[0].clamp(-0.5, 0.5))
    assert float(free.x0[0].abs().max()) > 0.5
    assert float(clipped.x0.abs().max()) == 0.5


def test_the_model_gets_samples_and_their_timesteps() -> None:
    calls: list[tuple[tuple[int, ...], Tensor]] = []

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        calls.append((tuple(x.shape), timestep))
        return elementwise(x, timestep)

    make().sample(model, SEEDS, SHAPE, batch_size=3, progress=False)
    assert [shape for shape, _ in calls] == [
        (3, *SHAPE)
    ] * 2 * STEPS  # five seeds: the last chunk is filled up
    assert [timestep.tolist() for _, timestep in calls] == [[t] * 3 for t in (750, 500, 250, 0)] * 2
    assert all(timestep.dtype == torch.int64 for _, timestep in calls)


def test_no_gradient_is_kept_and_the_setting_comes_back() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5))
            self.enabled: list[bool] = []

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            self.enabled.append(torch.is_grad_enabled())
            return x * self.weight

    model = Scale()
    assert torch.is_grad_enabled()
    result = make(eta=1.0, mixture=MIXTURE).sample(
        model, SEEDS, SHAPE, progress=False, return_trajectory=True, callback=lambda state: None
    )
    assert torch.is_grad_enabled()
    assert model.enabled == [False] * STEPS
    assert not any(part.requires_grad for part in result[:3])
    x = standard_normal(SEEDS, SHAPE)
    make().step(model(x, torch.tensor(0)), 0, x, SEEDS).prev_sample.sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"mixture": MIXTURE, "eta": 1.0}])
def test_no_seeds_give_no_samples(options: dict[str, Any]) -> None:
    model = elementwise_pair if "guidance_scale" in options else elementwise
    result = make(**options).sample(
        model, SEEDS[:0], SHAPE, batch_size=2, progress=False, return_trajectory=True
    )
    assert result.sample.shape == (0, *SHAPE)
    assert result.trajectory is not None
    assert result.trajectory.shape == (STEPS + 1, 0, *SHAPE)
    assert result.x0 is not None
    assert result.x0.shape == (STEPS, 0, *SHAPE)


def test_progress_is_shown_or_not(capfd: pytest.CaptureFixture[str]) -> None:
    run(make())
    assert capfd.readouterr() == ("", "")
    make().sample(elementwise, SEEDS, SHAPE, batch_size=2)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(rf"100%.* {3 * STEPS}/{3 * STEPS} .*step", err)
    make().sample(elementwise, SEEDS, SHAPE, initial=standard_normal(SEEDS, SHAPE), first_step=3)
    assert " 1/1 " in capfd.readouterr().err


@pytest.mark.parametrize("options", [{}, {"mixture": MIXTURE, "eta": 0.5}])
def test_other_noise_levels(options: dict[str, Any]) -> None:
    sampler = make(**options)
    before = sampler.coefficients.clone()
    sigma = torch.tensor([0.5, 0.0, 0.25, 0.125], dtype=torch.float64)
    noisy = sampler.with_sigma(sigma)
    assert_same_bits(sampler.coefficients, before)
    assert sampler.tables is not None or "mixture" not in options
    assert noisy.tables is None
    assert noisy.coefficients[:, Column.SIGMA].tolist() == sigma.tolist()
    others = [column for column in Column if column != Column.SIGMA]
    assert_same_bits(noisy.coefficients[:, others], before[:, others])
    x = standard_normal(SEEDS, SHAPE)
    quiet = sampler.with_sigma(torch.zeros(STEPS, dtype=torch.float64))
    output = elementwise(x, sampler.timesteps[2])
    added = noisy.step(output, 2, x, SEEDS).prev_sample - quiet.step(output, 2, x, SEEDS).prev_sample
    noise = standard_normal(SEEDS, SHAPE, step=2, stream=0)
    torch.testing.assert_close(added, 0.25 * noise, rtol=0, atol=1e-6)
    assert_same_bits(
        run(make().with_sigma(torch.zeros(STEPS, dtype=torch.float64))).sample, run(make()).sample
    )


def test_seeds_from_a_generator() -> None:
    generator = torch.Generator().manual_seed(4)
    seeds = seeds_from_generator(generator, 1000)
    assert seeds.dtype == torch.int64
    assert seeds.shape == (1000,)
    assert int(seeds.min()) >= 0
    assert len(set(seeds.tolist())) == 1000
    assert seeds.double().mean() / 2.0**63 == pytest.approx(0.5, abs=0.05)
    split = torch.Generator().manual_seed(4)
    parts = [seeds_from_generator(split, count) for count in (1, 0, 999)]
    assert torch.equal(torch.cat(parts), seeds)
    assert not torch.equal(seeds_from_generator(generator, 1000), seeds)
    assert run(make()).sample.shape[0] == 5
    samples = make().sample(elementwise, seeds[:2], SHAPE, progress=False).sample
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize(
    ("generator", "count", "error", "message"),
    [
        (0, 1, TypeError, "generator: expected a torch.Generator, got int"),
        (None, 1, TypeError, "generator: expected a torch.Generator, got NoneType"),
        (
            np.random.default_rng(0),
            1,
            TypeError,
            "generator: expected a torch.Generator, got numpy.random._generator.Generator",
        ),
        (torch.Generator(), -1, ValueError, "count: expected an integer >= 0, got -1"),
        (torch.Generator(), 2.0, TypeError, "count: expected an integer >= 0, got 2.0"),
    ],
)
def test_seeds_from_no_generator(generator: Any, count: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        seeds_from_generator(generator, count)


OTHER_STEPS = gaussian_mixture("rand", elements=ELEMENTS, n_steps=STEPS + 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.int64}, TypeError, "dtype: expected torch.float32, torch.bfloat16, torch.float16 or "),
        ({"dtype": "float16"}, TypeError, "torch.float16 or torch.float64, got 'float16'"),
        ({"device": "gpu"}, ValueError, "device: expected a device of this machine ('cpu'"),
        ({"device": "cuda:99"}, ValueError, "), got 'cuda:99'"),
        ({"device": 99}, ValueError, "device: expected a device of this machine ('cpu'"),
        ({"device": None}, ValueError, "got None"),
        ({"mixture": OTHER_STEPS}, ValueError, "mixture: expected one made for 4 steps"),
        ({"mixture": MIXTURE.bind(make().coefficients)}, TypeError, "mixture: expected a Mixture or None"),
        ({"mixture": "ortho"}, TypeError, "mixture: expected a Mixture or None, got str"),
        ({"eta": -1.0}, ValueError, "eta: expected a finite number >= 0, got -1.0"),
        ({"eta": 3.0}, ValueError, "eta: expected 1 - a_s - sigma^2 >= 0 at every step, got eta = 3"),
        ({"spacing": "cosine"}, ValueError, "spacing: expected one of 'leading', "),
        ({"steps_offset": 1, "spacing": "trailing"}, ValueError, "steps_offset: expected 0 with spacing='trailing'"),
        ({"prediction_type": "flow"}, ValueError, "prediction_type: expected one of 'epsilon', "),
        ({"clip_sample_range": 0.0}, ValueError, "clip_sample_range: expected a finite number > 0, got 0.0"),
        ({"use_clipped_model_output": 1}, TypeError, "use_clipped_model_output: expected True or False, got 1"),
        ({"set_alpha_to_one": None}, TypeError, "set_alpha_to_one: expected True or False, got None"),
        ({"guidance_scale": "7.5"}, TypeError, "guidance_scale: expected a finite number, got '7.5'"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale: expected a finite number, got nan"),
    ],
)  # fmt: skip
def test_samplers_that_cannot_be_made(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize(
    ("schedule", "steps", "error", "message"),
    [
        ("linear", 4, TypeError, "schedule: expected a NoiseSchedule, got str"),
        (SCHEDULE, 0, ValueError, "num_inference_steps: expected an integer from 1 to 1000, got 0"),
        (SCHEDULE, 1001, ValueError, "num_inference_steps: expected an integer from 1 to 1000, got 1001"),
        (SCHEDULE, 4.0, TypeError, "num_inference_steps: expected an integer from 1 to 1000, got 4.0"),
    ],
)
def test_schedules_and_numbers_of_steps(
    schedule: Any, steps: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        DDIMSampler(schedule, steps)


START = torch.zeros(5, *SHAPE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first_step": 1}, ValueError, "initial: needed to start at step 1, got None"),
        ({"first_step": -1}, ValueError, "first_step: expected an integer from 0 to 3, got -1"),
        ({"first_step": 4, "initial": START}, ValueError, "first_step: expected an integer from 0 to 3, got 4"),
        ({"first_step": True}, TypeError, "first_step: expected an integer from 0 to 3, got True"),
        ({"initial": START.double()}, TypeError, "initial: expected torch.float32, got torch.float64"),
        ({"initial": START[:4]}, ValueError, "initial: expected shape (5, 3, 5), got (4, 3, 5)"),
        ({"initial": START[0]}, ValueError, "initial: expected shape (5, 3, 5), got (3, 5)"),
        ({"initial": START.to("meta")}, ValueError, "initial: expected a tensor on cpu, got one on meta"),
        ({"initial": START.numpy()}, TypeError, "initial: expected a torch.Tensor, got ndarray"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer >= 1, got 2.0"),
        ({"seeds": SEEDS.float()}, TypeError, "seeds: expected int64, got torch.float32"),
        ({"seeds": SEEDS[None]}, ValueError, "seeds: expected shape [B], got (1, 5)"),
        ({"seeds": [0, 1]}, TypeError, "seeds: expected a torch.Tensor, got list"),
        ({"shape": 15}, TypeError, "shape: expected a sequence of integers, got 15"),
        ({"shape": (3, -5)}, ValueError, "shape[1]: expected an integer >= 0, got -5"),
        ({"model": None}, TypeError, "model: expected something that can be called, got None"),
        ({"callback": 3}, TypeError, "callback: expected something that can be called, got 3"),
        ({"model": elementwise_pair}, TypeError, "model_output: expected one tensor, got a tuple of 2"),
        ({"model": lambda x, t: x[:, :1]}, ValueError, "model_output: expected the sample's shape (5, 3, 5), got"),
        ({"model": lambda x, t: x.double()}, TypeError, "beside a torch.float32 sample, got torch.float64"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_done(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"model": elementwise, "seeds": SEEDS, "shape": SHAPE} | options
    with pytest.raises(error, match=re.escape(message)):
        make().sample(**arguments, progress=False)


def test_a_mixture_of_another_size_is_refused_before_the_model_runs() -> None:
    def model(x: Tensor, timestep: Tensor) -> Tensor:
        raise AssertionError("the model was called")

    message = "mixture: made for D = 15 elements, but a sample of shape (4, 4) has D = 16"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(mixture=MIXTURE).sample(model, SEEDS, (4, 4), progress=False)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (elementwise, f"one of shape {(5, *SHAPE)}"),
        (lambda x, t: [x, x], "list"),
        (lambda x, t: (x, x, x), "a tuple of 3"),
    ],
)
def test_guidance_needs_a_pair(model: Any, got: str) -> None:
    message = (
        "model_output: expected a pair (unconditional, conditional) or both in one tensor of batch 10, "
        f"got {got}"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        make(guidance_scale=1.0).sample(model, SEEDS, SHAPE, progress=False)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_the_backend_asked_for_does_all_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda wanted: used.append(wanted) or load(wanted))
    run(make(backend=name, eta=1.0, mixture=MIXTURE))
    assert len(used) >= 1 + STEPS  # the first noise, and every step
    assert set(used) == {name}


def test_backends_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of \['cpu', 'reference'.*got 'abacus'"):
        run(make(backend="abacus"))
    with pytest.raises(ValueError, match="no backend computes on 'meta' tensors"):
        make(device="meta").sample(elementwise, SEEDS, SHAPE, progress=False)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        ([0.0] * STEPS, TypeError, "sigma: expected a torch.float64 tensor, got list"),
        (torch.zeros(STEPS), TypeError, "sigma: expected a torch.float64 tensor, got torch.float32"),
        (torch.zeros(3, dtype=torch.float64), ValueError, "sigma: expected shape [4], got [3]"),
        (torch.zeros(1, 4, dtype=torch.float64), ValueError, "sigma: expected shape [4], got [1, 4]"),
        (torch.tensor([0, 0, -1, 0.0], dtype=torch.float64), ValueError, "sigma: expected finite numbers >= 0"),
        (torch.tensor([0, 0, 1, float("nan")], dtype=torch.float64), ValueError, "sigma: expected finite numbers >= 0"),
        (torch.full((STEPS,), torch.inf, dtype=torch.float64), ValueError, "sigma: expected finite numbers >= 0"),
    ],
)  # fmt: skip
def test_noise_levels_that_are_none(sigma: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make().with_sigma(sigma)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (-1, IndexError, "0 to 3, got -1$"),
        (STEPS, IndexError, "0 to 3, got 4$"),
        (500, IndexError, "0 to 3, got 500, a timestep: it is that of index 1$"),
        (True, TypeError, "0 to 3, got True"),
        (torch.tensor(1), TypeError, r"0 to 3, got tensor\(1\)"),
    ],
)
def test_steps_that_are_none(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^index: expected an integer from " + message):
        make().step(START, index, START, SEEDS)


def test_samplers_say_what_they_are() -> None:
    assert repr(make(eta=1, mixture=MIXTURE)) == "DDIMSampler(steps=4, eta=1, mixture='ortho')"
    sigma = torch.ones(STEPS, dtype=torch.float64)
    assert repr(make(eta=1.0).with_sigma(sigma)) == "DDIMSampler(steps=4)"
    assert repr(PNDMSampler(SCHEDULE, 5)) == "PNDMSampler(steps=5)"
    assert repr(FlowSampler(3)) == "FlowSampler(steps=3, eta=0)"
    assert repr(FlowSampler(3, dynamics="cps")) == "FlowSampler(steps=3)"


def test_seeds_of_ids_are_each_one_s_own() -> None:
    """Of the base and the id alone: not of the batch; of what they say, not of how they are written down."""
    seeds = seeds_from_ids("run 1", ["a", 2, np.int64(3)])
    assert seeds.dtype == torch.int64
    assert seeds.tolist() == [seeds_from_ids("run 1", [one])[0].item() for one in ("a", 2, 3)]
    others = [seeds_from_ids(base, ["a"])[0].item() for base in ("run 2", 1, "1", "run 1")]
    assert len({*others, seeds_from_ids("run 1", ["1"])[0].item(), *seeds.tolist()[1:]}) == 7
    assert others[-1] == seeds[0]
    # Known once, so that a run that is resumed by a later version draws what it drew.
    assert seeds_from_ids("run", ["a", "b"]).tolist() == [1593825409664264206, -5030316595425489759]
    assert seeds_from_ids(1, [5, 5], shared=True).unique().numel() == 1
    assert seeds_from_ids(1, []).shape == (0,)


@pytest.mark.parametrize(
    ("base", "ids", "error", "message"),
    [
        (1, [3, 4, 3], ValueError, "ids: expected no two alike without shared=True, got 3 at 0 and at 2"),
        (1, "abc", TypeError, "ids: expected a sequence"),
        (1, [1.5], TypeError, r"ids\[0\]: expected an int or a str"),
        (1, [1, None], TypeError, r"ids\[1\]: expected an int or a str"),
        (True, [1], TypeError, "base: expected an int or a str"),
    ],
)
def test_ids_that_are_none_are_refused(base: Any, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        seeds_from_ids(base, ids)
