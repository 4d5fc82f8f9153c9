"""All that a pipeline may touch of diffusers' schedulers is there; NumPy's numbers, other defaults, compilation."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from schedulers_beside import inputs
from torch import Tensor

from gmmkernel import Stream, standard_normal
from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler

PAIRS = [(GMMDDIMScheduler, DDIMScheduler), (GMMFlowMatchScheduler, FlowMatchEulerDiscreteScheduler)]
KINDS = [GMMDDIMScheduler, GMMFlowMatchScheduler]
STEPS = 4
X = inputs()
# Arguments that a pipeline may leave to the config here.
CHOSEN = {"eta", "use_clipped_model_output"}


def public(scheduler: Any) -> set[str]:
    return {name for name in dir(scheduler) if not name.startswith("_")}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return bool(ours == theirs)


@pytest.mark.parametrize(("kind", "original"), PAIRS)
@pytest.mark.parametrize("when", ["new", "set", "stepped"])
def test_every_attribute_of_the_original(when: str, kind: type, original: type) -> None:
    ours, theirs = kind(), original()
    for scheduler in (ours, theirs):
        if when != "new":
            scheduler.set_timesteps(STEPS)
        if when == "stepped":
            scheduler.step(X, scheduler.timesteps[1], X)
    assert public(theirs) <= public(ours)
    differing = {"config", "compatibles"}  # which are of the class
    for name in sorted(public(theirs) - differing):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if not callable(other):
            assert same(mine, other), name
    for name in vars(theirs):
        assert name in vars(ours) or name == "_internal_dict", name


@pytest.mark.parametrize(("kind", "original"), PAIRS)
def test_every_argument_of_the_original(kind: type, original: type) -> None:
    """In its place, of its name and with its default."""
    for name, method in inspect.getmembers(original, inspect.isfunction):
        theirs = inspect.signature(method).parameters
        ours = inspect.signature(getattr(kind, name)).parameters
        if name.startswith("_") and name != "__init__":
            continue
        assert list(ours)[: len(theirs)] == list(theirs), name
        for argument, parameter in theirs.items():
            assert ours[argument].kind == parameter.kind, (name, argument)
            if argument not in CHOSEN:
                assert ours[argument].default == parameter.default, (name, argument)


def test_what_pipelines_ask_other_schedulers_of_flow_for() -> None:
    """BriaPipeline scales the input of all but exactly diffusers' class; others multiply their latents."""
    ours = GMMFlowMatchScheduler()
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert ours.scale_model_input(X, ours.timesteps[0]) is X
    assert ours.scale_model_input(sample=X) is X
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    assert ours.order == theirs.order


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_numpy(kind: type, tmp_path: Any) -> None:
    own = {
        "n_components": np.int64(3),
        "offset_scale": np.float32(0.5),
        "shared_mixture": np.bool_(True),
        "mixture_seed": np.array(4),
        "eta": np.float32(0.5),
        "num_train_timesteps": np.int32(500),
    }
    plain = {name: value.item() for name, value in own.items()}
    made = []
    for options, steps in ((own, np.int64(STEPS)), (plain, STEPS)):
        scheduler = kind(**options)
        scheduler.set_timesteps(steps)
        scheduler.set_seeds(torch.tensor([1, 2]))
        made.append(scheduler.step(X, scheduler.timesteps[1], X).prev_sample)
        assert type(scheduler.num_inference_steps) is int
        text = json.loads(scheduler.to_json_string())
        assert {name: text[name] for name in plain} == plain
        scheduler.save_pretrained(tmp_path)
        assert {name: kind.from_pretrained(tmp_path).config[name] for name in plain} == plain
    assert torch.equal(*made)


def test_numbers_of_numpy_in_a_step() -> None:
    scheduler = GMMDDIMScheduler(trained_betas=torch.linspace(1e-4, 0.02, 1000))
    assert json.loads(scheduler.to_json_string())["trained_betas"] == scheduler.betas.tolist()
    scheduler.set_timesteps(STEPS)
    scheduler.set_seeds(torch.tensor([1, 2]))
    wanted = scheduler.step(X, 500, X, eta=0.5).prev_sample
    for timestep in (
        np.int64(500),
        np.array(500),
        torch.tensor(500, dtype=torch.int32),
        torch.tensor([500] * 2),
    ):
        for eta in (np.float32(0.5), np.float64(0.5), np.array(0.5)):
            assert torch.equal(scheduler.step(X, timestep, X, eta=eta).prev_sample, wanted)


@pytest.fixture(params=["float64", "meta"])
def other_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another default dtype, or a default device as "cuda" would be one."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)


def whole_run(kind: type) -> list[Tensor]:
    """Return what a run gives, all of it made without a word about devices."""
    made = []
    for options in (
        {"offset_scale": 1.0, "eta": 0.5},
        {"eta": 1.0},
        {"variant": "exact", "rho": 0.5, "eta": 1.0},
    ):
        scheduler = kind(**options)
        scheduler.set_timesteps(STEPS)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]
        x = X
        for timestep in scheduler.timesteps:
            x = scheduler.step(0.5 * x, timestep, x, generator=generators).prev_sample
        made += [x, scheduler.timesteps]
        if kind is GMMDDIMScheduler:
            each = torch.tensor([500, 501], device="cpu", dtype=torch.int32)
            made += [scheduler.alphas_cumprod, scheduler.step(x, each, x, generator=generators).prev_sample]
            scheduler.set_timesteps(1)
            made.append(scheduler.timesteps)
        else:
            made.append(scheduler.sigmas)
    scheduler.set_seeds(torch.arange(2, device="cpu"))
    return [*made, scheduler.initial_noise((2, 3))]


EXPECTED = {kind: whole_run(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_other_defaults_change_nothing(kind: type, other_default: None) -> None:
    for made, wanted in zip(whole_run(kind), EXPECTED[kind], strict=True):
        assert made.dtype == wanted.dtype
        assert torch.equal(made, wanted)


def test_initial_noise_is_that_of_the_seeds() -> None:
    scheduler, seeds = GMMDDIMScheduler(), torch.tensor([5, 6])
    with pytest.raises(ValueError, match="set_seeds: expected a call with seeds before, got none"):
        scheduler.initial_noise((2, 3))
    scheduler.set_seeds(seeds)
    made = scheduler.initial_noise((2, 3, 4), dtype=torch.bfloat16)
    assert torch.equal(made, standard_normal(seeds, (3, 4), stream=Stream.INITIAL, dtype=torch.bfloat16))
    for shape in ((3, 4), ()):
        with pytest.raises(ValueError, match=r"shape: expected \(2, \.\.\.\), one sample a seed, got"):
            scheduler.initial_noise(shape)


TIMESTEPS = {
    "number": lambda scheduler: 500,
    "element": lambda scheduler: scheduler.timesteps[1],
    "copy": lambda scheduler: torch.tensor(500),
    "each": lambda scheduler: torch.tensor([500, 250], dtype=torch.int32),
}


@pytest.mark.parametrize("form", TIMESTEPS)
def test_a_step_compiles(form: str) -> None:
    """Without a break in the graph, once a step has made the tables."""
    scheduler = GMMDDIMScheduler(offset_scale=1.0, eta=0.5)
    scheduler.set_timesteps(STEPS)
    scheduler.set_seeds(torch.tensor([1, 2]))
    timestep = TIMESTEPS[form](scheduler)
    wanted = scheduler.step(X, timestep, X).prev_sample

    @torch.compile(fullgraph=True, backend="eager")
    def step(output: Tensor, at: Any, x: Tensor) -> Tensor:
        return scheduler.step(output, at, x).prev_sample

    assert torch.equal(step(X, timestep, X), wanted)
    if form == "copy":
        with pytest.raises(IndexError, match="row: expected 0 to 3, got -1"):
            step(X, torch.tensor(501), X)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_compiles(kind: type) -> None:
    scheduler = kind(offset_scale=1.0, eta=0.5)
    scheduler.set_seeds(torch.tensor([1, 2]))

    def begin() -> None:
        scheduler.set_timesteps(STEPS)
        if kind is GMMFlowMatchScheduler:
            scheduler.set_begin_index(0)

    def run(x: Tensor) -> Tensor:
        for timestep in scheduler.timesteps:
            x = scheduler.step(0.5 * x, timestep, x).prev_sample
        return x

    begin()
    wanted = run(X)
    begin()
    assert torch.equal(torch.compile(run, fullgraph=True, backend="eager")(X), wanted)
