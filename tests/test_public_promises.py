"""What holds for everything public: copies, pickles, NumPy's numbers, PyTorch's default device and dtype."""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from every_sampler import ELEMENTS, SHAPE, STEPS, every_sampler, mixtures, model
from torch import Tensor, nn

import gmmkernel
from gmmkernel import (
    Column,
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Stream,
    Trainer,
    TrainingColumn,
    ddim_coefficients,
    deis_coefficients,
    dpm_solver_coefficients,
    flow_coefficients,
    flow_sde_coefficients,
    flow_times,
    gaussian_mixture,
    gmm_step,
    gmm_step_log_ratio,
    join_log_prob,
    mixture_moments,
    moment_report,
    moments,
    noise_schedule,
    ops,
    orthonormalize,
    pndm_coefficients,
    sample_shards,
    samplers,
    seeds_from_generator,
    seeds_from_ids,
    shard_view,
    sharding,
    sigma_coefficients,
    stack_samplers,
    standard_normal,
    timesteps,
    training_coefficients,
)
from gmmkernel.schedules import FLOW_DYNAMICS, SPACINGS
from gmmkernel.sharding import ShardedSamples, ShardReport

SEEDS = [3, -4]


def contents(value: Any) -> Any:
    """What an object is made of, down to the bits of its tensors."""
    if isinstance(value, Tensor):
        bits = value.detach().contiguous().flatten().view(torch.uint8).tolist()
        return value.dtype, tuple(value.shape), value.device, bits
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(contents, value)]
    if isinstance(value, dict):
        return {name: contents(entry) for name, entry in value.items()}
    if isinstance(value, functools.partial):
        return contents([value.func.__qualname__, value.args, value.keywords])
    if hasattr(value, "__dict__") and not isinstance(value, type | enum.Enum):
        return {"type": type(value).__name__, **contents(vars(value))}
    return value


def trainer() -> Trainer:
    class_of_weights = nn.Linear(4, 4, dtype=torch.float32, device="cpu")
    nn.init.constant_(class_of_weights.weight, 0.1)
    nn.init.constant_(class_of_weights.bias, 0.0)
    return Trainer(Network(class_of_weights), noise_schedule(), batch_size=4, seed=1)


class Network(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        made: Tensor = self.linear(sample) + timestep[:, None].to(sample.dtype) / 1000
        return made


@functools.cache
def examples() -> dict[str, Any]:
    """An instance of every public class, by a name that begins with the class's."""
    samplers = {f"{type(made).__name__}: {name}": made for name, made in every_sampler().items()}
    made_mixtures = {f"Mixture: {name}": made for name, made in mixtures().items()}
    tables = {
        f"MixtureTables: {name}": made.tables
        for name, made in every_sampler().items()
        if made.tables is not None
    }
    sampler = DDIMSampler(noise_schedule(), STEPS, eta=1.0, mixture=mixtures()["exact"])
    seeds = torch.tensor(SEEDS, device="cpu")
    states: list[Any] = []
    result = sampler.sample(
        model,
        seeds,
        SHAPE,
        progress=False,
        callback=states.append,
        return_trajectory=True,
        return_log_prob=True,
        keep_steps=[1, 2],
    )
    step = sampler.step(result.sample, 1, result.sample, seeds, return_x0=True)
    out = gmm_step(
        result.sample,
        result.sample,
        sampler.coefficients,
        row=1,
        seeds=seeds,
        mixture=sampler.tables,
        prediction="x0",
        return_components=True,
        return_log_prob=True,
    )
    plain = [DDIMSampler(noise_schedule(), 3, eta=1.0, mixture=mixtures()["rand, shared"]), FlowSampler(2)]
    moments = mixture_moments(sampler.tables, sampler.coefficients, row=1)
    return {
        **samplers,
        **made_mixtures,
        **tables,
        "Sampler": sampler,
        "SampleResult": result,
        "KeptSteps": result.kept,
        "SamplerStep": step,
        "StepState": states[0],
        "GMMStepOutput": out,
        "LogRatio": gmm_step_log_ratio(*[result.sample] * 4, sampler.coefficients, row=1),
        "Shard": shard_view(result.sample, SHAPE, 0, 0),
        "MixtureMoments": moments,
        "MomentReport": moment_report(mixtures()["exact"], sampler.coefficients),
        "NoiseSchedule": noise_schedule(),
        "StackedSamplers": stack_samplers([plain[0], DDIMSampler(noise_schedule(), 2)]),
        "ShardReport": ShardReport(3, 1, (0, 2), 5),
        "ShardedSamples": ShardedSamples(result.sample, seeds),
        "Column": Column.X0,
        "Stream": Stream.OFFSETS,
        "TrainingColumn": TrainingColumn.NOISE,
        "Trainer": trainer(),
    }


def test_the_package_says_what_each_public_name_is_for() -> None:
    assert gmmkernel.__doc__ is not None
    assert [name for name in gmmkernel.__all__ if f"`{name}`" not in gmmkernel.__doc__] == []


def test_everything_public_has_an_example() -> None:
    modules = (gmmkernel, ops, samplers, moments, sharding)
    public = {name for module in modules for name in module.__all__ if inspect.isclass(getattr(module, name))}
    assert public == {name.partition(":")[0] for name in examples()}


@pytest.mark.parametrize("again", [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy])
def test_everything_public_can_be_copied(again: Callable[[Any], Any]) -> None:
    offenders = []
    for name, made in examples().items():
        try:
            found = again(made)
        except Exception as error:
            offenders.append(f"{name}: {error}")
            continue
        if type(found) is not type(made):
            offenders.append(f"{name}: became a {type(found).__name__}")
        elif name != "Trainer" and contents(found) != contents(made):
            offenders.append(f"{name}: other contents")
    assert not offenders


def test_a_copied_trainer_goes_on_as_the_first() -> None:
    """And neither trains the other."""
    data = torch.arange(32.0, device="cpu").view(8, 4) / 32
    first = trainer()
    first.fit(data, 2, progress=False)
    copies = [pickle.loads(pickle.dumps(first)), copy.deepcopy(first)]
    for made in (*copies, first):
        made.fit(data, 4, progress=False)
    for made in copies:
        for part in ("model", "average"):
            weights = (getattr(one, part).linear.weight for one in (made, first))
            assert torch.equal(*weights)


def made_by_everything() -> dict[str, Any]:
    """What every public function makes, by its name."""
    schedule, visited = noise_schedule(), timesteps(5)
    samplers = every_sampler()
    seeds = torch.tensor(SEEDS, device="cpu")
    network = trainer()
    network.fit(torch.ones(4, 4, dtype=torch.float32, device="cpu"), 1, progress=False)
    return {
        "noise_schedule": [
            noise_schedule(name, rescale_betas_zero_snr=zero)
            for name in ("linear", "scaled_linear", "squaredcos_cap_v2")
            for zero in (False, True)
        ],
        "timesteps": [timesteps(7, spacing=spacing) for spacing in SPACINGS],
        "flow_times": flow_times(5, shift=2.0),
        "ddim_coefficients": ddim_coefficients(schedule, visited, eta=0.5),
        "dpm_solver_coefficients": dpm_solver_coefficients(schedule, visited),
        "deis_coefficients": [
            deis_coefficients(schedule, visited, interpolation=kind) for kind in ("rho", "log-rho")
        ],
        "pndm_coefficients": [
            pndm_coefficients(schedule, visited, skip_prk_steps=skip) for skip in (False, True)
        ],
        "flow_coefficients": flow_coefficients(flow_times(4), eta=0.5),
        "flow_sde_coefficients": [
            flow_sde_coefficients(flow_times(4), dynamics=dynamics, noise_level=level)
            for dynamics in FLOW_DYNAMICS
            for level in ([None] if dynamics == "ode" else [[0.7, 0.3, 0, 1]])
        ],
        "sigma_coefficients": sigma_coefficients(flow_times(4) * 10),
        "training_coefficients": training_coefficients(schedule, target="consistent"),
        "gaussian_mixture": mixtures(),
        "samplers": samplers,
        "stack_samplers": stack_samplers(
            [samplers[f"DDIM, {name}"] for name in ("rand", "ortho-vub, weights")]
        ),
        "moment_report": moment_report(
            mixtures()["rand"], ddim_coefficients(schedule, timesteps(STEPS), eta=1.0)
        ),
        "orthonormalize": orthonormalize(torch.eye(3, 5, dtype=torch.float64, device="cpu") + 1),
        "standard_normal": standard_normal(seeds, SHAPE),
        "seeds_from_ids": seeds_from_ids("run", ["a", 2]),
        "shard_view": shard_view(torch.ones(2, 3, 2, dtype=torch.float32, device="cpu"), (3, 4), 1, 2),
        "join_log_prob": join_log_prob(torch.ones(2, 3, dtype=torch.float32, device="cpu"), 3000),
        "seeds_from_generator": seeds_from_generator(torch.Generator("cpu").manual_seed(1), 4),
        "sample": [
            made.sample(model, seeds, SHAPE, batch_size=3, progress=False)
            for made in samplers.values()
            if not made.guided
        ],
        "add_noise": [
            made.add_noise(torch.ones(2, *SHAPE, dtype=made.dtype, device="cpu"), 1, seeds)
            for made in samplers.values()
        ],
        "trained weights": [weights.detach().clone() for weights in network.average.parameters()],
    }


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("restored")
def test_defaults_of_pytorch_change_nothing() -> None:
    """Everything says where its tensors are, and of which type: the CPU and float32 or float64."""
    expected = contents(made_by_everything())
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.bfloat16)  # what is rounded to it shows, whatever it then becomes
    found = contents(made_by_everything())
    others = [name for name in expected if found[name] != expected[name]]
    assert not others, f"{others}: other bits, types or devices"


def with_numbers(
    i: Callable[[int], Any], x: Callable[[float], Any], b: Callable[[bool], Any]
) -> dict[str, Any]:
    """What comes of integers, numbers and flags in the forms that three functions give them; numbers are exact."""
    schedule = noise_schedule(
        num_train_timesteps=i(100),
        beta_start=x(0.0078125),
        beta_end=x(0.015625),
        rescale_betas_zero_snr=b(False),
    )
    common: dict[str, Any] = {"guidance_scale": x(1.5), "learned_variance": b(False)}
    mixture = gaussian_mixture(
        "rand",
        elements=i(ELEMENTS),
        n_components=i(3),
        scale=x(0.25),
        n_steps=i(5),
        seed=i(7),
        recentre=b(True),
    )
    seeds = torch.tensor(SEEDS)
    ddim = DDIMSampler(
        schedule, i(5), eta=x(0.5), mixture=mixture, steps_offset=i(1), clip_sample_range=x(2.0), **common
    )
    plain = FlowSampler(i(3), shift=x(2.0), eta=x(0.5), num_train_timesteps=i(1000))
    noisy = flow_sde_coefficients(
        flow_times(3), noise_level=x(0.5), sde_steps=[i(0), i(2)], sigma_max=x(0.75), guidance_scale=x(1.5)
    )
    sample = plain.sample(
        model,
        seeds,
        [i(3), i(4)],
        initial=standard_normal(seeds, (3, 4)),
        first_step=i(1),
        batch_size=i(1),
        progress=b(False),
    )
    step = gmm_step(sample.sample, sample.sample, plain.coefficients, row=i(1), step=i(9), seeds=seeds)
    made = Trainer(
        nn.Linear(4, 4),
        schedule,
        skip=i(9),
        tau=x(0.5),
        batch_size=i(4),
        learning_rate=x(0.5),
        weight_decay=x(0.0),
        max_grad_norm=x(1.0),
        ema_decay=x(0.5),
        conditioning_dropout=x(0.0),
        seed=i(3),
    )
    return {
        "schedule": schedule,
        "timesteps": timesteps(i(5), num_train_timesteps=i(100), steps_offset=i(2)),
        "DDIM": ddim,
        "thresholded": DDIMSampler(
            schedule, i(2), dynamic_thresholding_ratio=x(0.5), sample_max_value=x(2.0)
        ),
        "DPM": DPMSolverSampler(schedule, i(5), solver_order=i(2), lower_order_final=b(False)).starting_at(
            i(1)
        ),
        "DEIS": DEISSampler(schedule, i(5), solver_order=i(2), set_alpha_to_one=b(False)),
        "PNDM": PNDMSampler(schedule, i(5), skip_prk_steps=b(True)).starting_at(i(1)),
        "exact": gaussian_mixture("exact", elements=i(4), n_components=i(2), rho=x(0.5)),
        "flow": plain,
        "noisy flow": noisy,
        "sample": sample,
        "step": step,
        "noise": standard_normal(seeds, (i(2), i(3)), step=i(5)),
        "training": training_coefficients(schedule, skip=i(5), tau=x(0.5)),
        "trainer": made._configuration,
    }


def test_numbers_of_numpy_are_numbers() -> None:
    """As scalars and as 0-d arrays; where they are exact, which a fraction for an integer is not."""
    expected = contents(with_numbers(int, float, bool))
    for i, x, b in (
        (np.int64, np.float32, np.bool_),
        (np.uint16, np.float64, np.bool_),
        (lambda n: np.array(n, dtype=np.int32), lambda v: np.array(v, dtype=np.float16), np.array),
    ):
        found = contents(with_numbers(i, x, b))
        assert found == expected, [name for name in expected if found[name] != expected[name]]
    for bad in (np.float64(5.0), np.array([5]), np.bool_(True), np.str_("5"), torch.tensor(5)):
        with pytest.raises(TypeError, match="num_inference_steps: expected an integer from 1 to 1000, got"):
            timesteps(bad)  # type: ignore[arg-type]


def test_timesteps_of_32_bits_are_timesteps() -> None:
    visited = timesteps(5)
    assert torch.equal(
        ddim_coefficients(
            noise_schedule(), visited.int(), prev_timesteps=(visited - 200).clamp(min=-1).int()
        ),
        ddim_coefficients(noise_schedule(), visited),
    )
    for made, expected in zip(
        pndm_coefficients(noise_schedule(), visited.int()),
        pndm_coefficients(noise_schedule(), visited),
        strict=True,
    ):
        assert made.dtype == expected.dtype
        assert torch.equal(made, expected)


def test_shards_take_numbers_of_numpy(tmp_path: Any) -> None:
    sampler = every_sampler()["flow, ortho"]
    for size, shape in ((2, SHAPE), (np.int64(2), [np.int32(size) for size in SHAPE])):
        report = sample_shards(
            sampler, model, torch.arange(4), shape, tmp_path, batch_size=size, progress=False
        )
    assert report.made == ()
