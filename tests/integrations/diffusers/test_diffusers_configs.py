"""Configs: from other schedulers and back, saved and loaded; what is refused, and by which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from schedulers_beside import inputs, mixture_ddim

from gmmkernel import DPMSolverSampler, FlowSampler, gaussian_mixture
from gmmkernel.integrations.diffusers import (
    GMMDDIMScheduler,
    GMMFlowMatchScheduler,
    memory,
    sampler_from_config,
)

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
OWN = {
    "n_components": 3,
    "offset_scale": 2.5,
    "variant": "rand",
    "shared_mixture": True,
    "weights": [1.0, 2.0, 1.0],
    "mixture_seed": 4,
}


@pytest.mark.parametrize(
    "theirs",
    [
        DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LATENT),
        PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **LATENT),
        DPMSolverMultistepScheduler(solver_order=3, timestep_spacing="trailing", **LATENT),
        EulerDiscreteScheduler(prediction_type="v_prediction", **LATENT),
        DDPMScheduler(thresholding=True, sample_max_value=1.5),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_from_the_config_of_another_scheduler_and_back(theirs: Any) -> None:
    ours = GMMDDIMScheduler.from_config(theirs.config, **OWN)
    plain = DDIMScheduler.from_config(theirs.config, clip_sample=theirs.config.get("clip_sample", False))
    for name, value in plain.config.items():
        if not name.startswith("_"):
            assert ours.config[name] == value, name
    assert {name: ours.config[name] for name in OWN} == OWN
    back = type(theirs).from_config(ours.config)
    assert {k: v for k, v in back.config.items() if k in theirs.config and k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    again = GMMDDIMScheduler.from_config(back.config)
    assert {name: again.config[name] for name in OWN} == OWN


def test_flow_from_the_config_of_another_scheduler_and_back() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, max_shift=1.2)
    ours = GMMFlowMatchScheduler.from_config(theirs.config, eta=0.5, **OWN)
    assert (ours.config.shift, ours.config.max_shift, ours.config.eta) == (3.0, 1.2, 0.5)
    back = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert back.config.use_dynamic_shifting is True
    assert back.config.shift == 3.0


@pytest.mark.parametrize("kind", [GMMDDIMScheduler, GMMFlowMatchScheduler])
@pytest.mark.parametrize(
    "weights", [[1, 2, 1], np.array([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])], ids=type
)
def test_saved_and_loaded(kind: type, weights: Any, tmp_path: Path) -> None:
    scheduler = kind(**{**OWN, "weights": weights})
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == kind.__name__
    assert saved["weights"] == [1.0, 2.0, 1.0]
    loaded = kind.from_pretrained(tmp_path)
    made = []
    for one in (scheduler, loaded):
        one.set_timesteps(4)
        one.set_seeds(torch.tensor([1, 2]))
        made.append(one.step(inputs(seed=1), one.timesteps[1], inputs()).prev_sample)
    assert torch.equal(*made)


def test_trained_betas_are_saved(tmp_path: Path) -> None:
    scheduler = GMMDDIMScheduler(trained_betas=np.array([0.1, 0.3]), num_train_timesteps=2)
    scheduler.save_pretrained(tmp_path)
    assert torch.equal(GMMDDIMScheduler.from_pretrained(tmp_path).betas, scheduler.betas)


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "use_karras_sigmas"),
        (DPMSolverMultistepScheduler(use_lu_lambdas=True), "use_lu_lambdas"),
        (EulerDiscreteScheduler(use_exponential_sigmas=True), "use_exponential_sigmas"),
        (EulerDiscreteScheduler(sigma_max=80.0), "sigma_max"),
        (EDMEulerScheduler(), "sigma_min"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_noise_levels_of_other_schedulers_are_refused_by_name(theirs: Any, word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: GMMDDIMScheduler does not support it; expected "):
        GMMDDIMScheduler.from_config(theirs.config)


def test_what_is_refused_may_be_left_out() -> None:
    config = DPMSolverMultistepScheduler(use_karras_sigmas=True).config
    assert GMMDDIMScheduler.from_config(config, use_karras_sigmas=False).config.num_train_timesteps == 1000


def test_a_learned_variance_must_be_decided_on() -> None:
    config = DDPMScheduler(variance_type="learned_range").config
    with pytest.raises(ValueError, match=r"^variance_type: got 'learned_range', .*learned_variance=True"):
        GMMDDIMScheduler.from_config(config)
    for choice in (False, True):
        with pytest.raises(ValueError, match=r"^variance_type: expected 'fixed_small', .*eta=1\.0"):
            GMMDDIMScheduler.from_config(config, learned_variance=choice)
        made = GMMDDIMScheduler.from_config(config, learned_variance=choice, eta=0.5).config
        assert (made.learned_variance, made.eta) == (choice, 0.5)
        assert made.variance_type == "learned_range"  # where pipelines of DeepFloyd IF look


@pytest.mark.parametrize("named", [False, True])
def test_configs_for_the_other_scheduler_say_which(named: bool) -> None:
    """A scheduler that was not saved has no class's name in its config."""
    to_ddim = (
        "^config: GMMDDIMScheduler expected one of a noise schedule, got one of a rectified flow"
        ".*; GMMFlowMatchScheduler is for those"
    )
    to_flow = (
        "^config: GMMFlowMatchScheduler expected one of a rectified flow, got one of a noise schedule"
        ".*; GMMDDIMScheduler is for those"
    )
    for theirs, kind, message in (
        (FlowMatchEulerDiscreteScheduler(), GMMDDIMScheduler, to_ddim),
        (GMMFlowMatchScheduler(), GMMDDIMScheduler, to_ddim),
        (UniPCMultistepScheduler(use_flow_sigmas=True), GMMDDIMScheduler, to_ddim),
        (DDIMScheduler(), GMMFlowMatchScheduler, to_flow),
        (GMMDDIMScheduler(), GMMFlowMatchScheduler, to_flow),
    ):
        name = {"_class_name": type(theirs).__name__} if named else {}
        with pytest.raises(ValueError, match=message):
            kind.from_config({**theirs.config, **name})


def test_samplers_of_configs_without_a_name() -> None:
    for theirs in (FlowMatchEulerDiscreteScheduler(shift=3.0), GMMFlowMatchScheduler(shift=3.0)):
        made = sampler_from_config(theirs.config, 4)
        theirs.set_timesteps(4)
        assert isinstance(made, FlowSampler)
        torch.testing.assert_close(made.timesteps, theirs.timesteps)
    assert isinstance(sampler_from_config(GMMDDIMScheduler().config, 4), DPMSolverSampler)


def test_a_scheduler_is_no_config() -> None:
    message = "^config: expected the config of a scheduler, got DDIMScheduler; pass its .config"
    for call in (
        GMMDDIMScheduler.from_config,
        GMMFlowMatchScheduler.from_config,
        lambda theirs: sampler_from_config(theirs, 4),
    ):
        with pytest.raises(TypeError, match=message):
            call(DDIMScheduler())


def test_schedules_whose_betas_go_unused_are_followed() -> None:
    """Their configs have them all the same."""
    config = DDIMScheduler(beta_schedule="squaredcos_cap_v2", beta_start=0.00085).config
    assert GMMDDIMScheduler.from_config(config).config.beta_start == 0.00085
    sampler_from_config(config, 4)


@pytest.mark.parametrize("kind", [GMMDDIMScheduler, GMMFlowMatchScheduler])
def test_devices_that_are_not_there(kind: type) -> None:
    with pytest.raises(ValueError, match=r"device: expected a device of this machine \('cpu'.*\), got 'gpu'"):
        kind().set_timesteps(4, device="gpu")
    scheduler = kind()
    scheduler.set_seeds(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="device: expected a device of this machine"):
        scheduler.initial_noise((2, 3), device="gpu")


def test_an_eta_that_no_step_has_the_noise_for() -> None:
    with pytest.raises(ValueError, match=r"eta: expected 1 - a_s - sigma.2 >= 0 at every step, got eta = 2"):
        GMMDDIMScheduler(eta=2.0).set_timesteps(4)


def test_options_that_nobody_knows() -> None:
    with pytest.raises(TypeError, match="from_config: expected options of GMMDDIMScheduler, got n_componets"):
        GMMDDIMScheduler.from_config(DDIMScheduler().config, n_componets=3)
    _, unused = GMMDDIMScheduler.from_config(DDIMScheduler().config, return_unused_kwargs=True, n_componets=3)
    assert unused["n_componets"] == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components: expected an integer from 1 to 1024, got 0"),
        ({"n_components": 2.0}, TypeError, "n_components: expected an integer from 1 to 1024, got 2.0"),
        ({"offset_scale": -1}, ValueError, "offset_scale: expected a finite number >= 0, got -1"),
        ({"variant": "exact!"}, ValueError, "variant: expected one of 'rand', 'ortho'"),
        ({"shared_mixture": 1}, TypeError, "shared_mixture: expected True or False, got 1"),
        ({"weights": [1, 1]}, ValueError, r"weights: expected shape \[8\], got \[2\]"),
        (
            {"n_components": 2, "weights": [1, 0]},
            ValueError,
            "weights: expected positive numbers, got 0.0 at index 1",
        ),
        ({"mixture_seed": 2**63}, ValueError, "mixture_seed: expected an integer from"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [GMMDDIMScheduler, GMMFlowMatchScheduler])
def test_options_of_the_mixture(
    kind: type, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule: expected one of 'linear', 'scaled_linear', 'squaredcos_cap_v2'",
        ),
        ({"prediction_type": "flow_prediction"}, "prediction_type: expected one of 'epsilon'"),
        (
            {"timestep_spacing": "quadratic"},
            "timestep_spacing: expected one of 'leading', 'trailing', 'linspace'",
        ),
    ],
    ids=str,
)
def test_options_of_ddim(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMMDDIMScheduler(**options)


def scheduler(**options: Any) -> GMMDDIMScheduler:
    made = mixture_ddim(**options)
    made.set_timesteps(4)
    return made


X = inputs()


NO_TIMESTEP = "timestep: expected 0 to 999, got "
NO_INTEGER = "timestep: expected an int or a tensor of integers, got "
DOUBLED = r"expected shape \(2, 3, 4, 5\), got \(2, 6, 4, 5\) \(learned_variance=True drops"
GAUSSIAN = {"offset_scale": 0}
NOT_DOUBLED = r"model_output: expected shape \(2, 6, 4, 5\), got \(2, 3, 4, 5\)$"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"timestep": 1000}, ValueError, NO_TIMESTEP + "1000"),
        ({"timestep": torch.tensor(-1)}, ValueError, NO_TIMESTEP + "-1"),
        ({"timestep": torch.tensor([500, 2**40])}, ValueError, NO_TIMESTEP + "1099511627776"),
        ({"timestep": torch.tensor(500.0)}, TypeError, NO_INTEGER + "torch.float32"),
        ({"timestep": 500.0}, TypeError, NO_INTEGER + "500.0"),
        ({"timestep": None}, TypeError, NO_INTEGER + "None"),
        ({"timestep": torch.tensor([500, 0, 0])}, ValueError, r"row: expected shape"),
        (
            {"timestep": torch.tensor(500, device="meta")},
            ValueError,
            "timestep: expected it on the CPU or on",
        ),
        ({"eta": -0.5}, ValueError, "eta: expected a finite number >= 0"),
        ({"eta": "0.5"}, TypeError, "eta: expected a finite number"),
        ({"use_clipped_model_output": 1.5}, TypeError, "use_clipped_model_output: expected True or False"),
        ({"generator": 7}, TypeError, "generator: expected a torch.Generator, got int"),
        ({"generator": [torch.Generator()]}, ValueError, "generator: expected one for each of 2 samples"),
        ({"generator": [torch.Generator(), 3]}, TypeError, "generator: expected a torch.Generator, got int"),
        ({"variance_noise": X}, ValueError, "variance_noise: expected None with a mixture"),
        ({"model_output": inputs((2, 6, 4, 5))}, ValueError, DOUBLED),
        (
            {"model_output": X[:1]},
            ValueError,
            r"model_output: expected shape \(2, 3, 4, 5\), got \(1, 3, 4, 5\)$",
        ),
        ({"sample": X.long()}, TypeError, "sample: expected float32"),
        ({"sample": 500, "timestep": X}, TypeError, "sample: expected a torch.Tensor, got int"),
        ({"model_output": None}, TypeError, "model_output: expected a torch.Tensor, got NoneType"),
    ],
)
def test_arguments_of_a_step(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model_output": X, "timestep": 500, "sample": X}
    with pytest.raises(error, match=message):
        scheduler().step(**{**given, **arguments})


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (GAUSSIAN, {"variance_noise": X[:1], "eta": 1.0}, "variance_noise: expected the sample's shape"),
        (
            GAUSSIAN,
            {"variance_noise": X, "eta": 1.0, "generator": torch.Generator()},
            "variance_noise: expected None beside a generator, got both",
        ),
        ({"learned_variance": True}, {}, NOT_DOUBLED),
        ({"n_components": 61}, {}, r"n_components: expected at most D = 60, .* shape \(3, 4, 5\)"),
    ],
)
def test_arguments_that_do_not_go_with_the_config(
    options: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"model_output": X, "timestep": 500, "sample": X}
    with pytest.raises(ValueError, match=message):
        scheduler(**options).step(**{**given, **arguments})


def test_generators_on_other_devices() -> None:
    class Elsewhere(torch.Generator):
        """Stands in for a CUDA generator, which cannot be made without CUDA."""

        device = torch.device("cuda:0")

    with pytest.raises(ValueError, match="generator: expected one on the CPU, got one on cuda:0"):
        scheduler().step(X, 500, X, generator=Elsewhere())
    with pytest.raises(ValueError, match=r"generator\[1\]: expected one on the CPU, got one on cuda:0"):
        scheduler().step(X, 500, X, generator=[torch.Generator(), Elsewhere()])


def test_a_step_before_set_timesteps() -> None:
    for kind in (GMMDDIMScheduler, GMMFlowMatchScheduler):
        with pytest.raises(
            ValueError, match="set_timesteps: expected a call before the first step, got none"
        ):
            kind().step(X, 500.0, X)


def test_a_mixture_of_one_s_own_that_does_not_fit() -> None:
    one = scheduler()
    one.set_mixture(gaussian_mixture("ortho", elements=48))
    with pytest.raises(
        ValueError, match=r"D = 60 elements, because .* shape \(3, 4, 5\), got one made for D = 48"
    ):
        one.step(X, 500, X)
    one.set_mixture(gaussian_mixture("ortho", elements=60, n_steps=5))
    with pytest.raises(
        ValueError, match=r"mixture: expected one made for the 4 steps of set_timesteps, .* made for 5"
    ):
        one.step(X, 500, X)
    with pytest.raises(TypeError, match="mixture: expected a Mixture or None, got int"):
        one.set_mixture(3)  # type: ignore[arg-type]


def test_seeds_of_one_s_own_that_do_not_fit() -> None:
    one = scheduler()
    with pytest.raises(TypeError, match="seeds: expected int64"):
        one.set_seeds(torch.ones(2))
    one.set_seeds(torch.arange(3))
    with pytest.raises(ValueError, match="seeds: expected one for each of 2 samples, got 3"):
        one.step(X, 500, X)


@pytest.mark.parametrize(
    ("options", "table", "deviations"),
    [
        ({}, 4 * (8 + 1), 4),
        ({"weights": [1, 2, 3, 4, 5, 6, 7, 8]}, 4 * (8 + 8), 4 * 8),
        ({"shared_mixture": True}, 8 + 1, 1),
    ],
    ids=str,
)
def test_a_mixture_that_does_not_fit_into_memory(
    options: dict[str, Any], table: int, deviations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 60: in float64 and again in float32, with 8 of noise for each component on the way."""
    needed = 60 * (8 * table + 4 * table + 4 * deviations + 8 * 8 * 8)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed)
    scheduler(**options).step(X, 500, X)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    with pytest.raises(
        MemoryError, match=r"mixture: . x 8 components of 60 elements need .* GB on cpu"
    ) as raised:
        scheduler(**options).step(X, 500, X)
    assert ("shared_mixture=True (a 4th of it)" in str(raised.value)) == ("shared_mixture" not in options)


def test_a_mixture_is_not_larger_than_its_estimate() -> None:
    """How far the memory of a process of its own rises while a mixture is made that it has made and dropped before."""
    code = """if True:
        from pathlib import Path
        import torch
        from gmmkernel.integrations.diffusers import GMMDDIMScheduler, memory

        def kilobytes(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name))

        def step():
            scheduler = GMMDDIMScheduler(weights=[1, 3], n_components=2, offset_scale=1.0)
            scheduler.set_timesteps(4)
            scheduler.step(x, 0, x, eta=1.0)

        asked, there = [], memory.available_bytes
        x = torch.zeros(1, 1, 512, 512)
        memory._gigabytes = lambda size: asked.append(size) or ""
        memory.available_bytes = lambda device: 0
        try:
            step()
        except MemoryError:
            memory.available_bytes = there
        step()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is there now
        before = kilobytes("VmRSS:")
        step()
        results = 2 * x.nbytes  # of the step, no part of the mixture
        print((1024 * (kilobytes("VmHWM:") - before) - results) / asked[0])
    """
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(2**18)
    }  # what is dropped goes back to the system
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert 0.1 < float(result.stdout) < 1, result.stdout


def test_memory_that_is_there() -> None:
    there = memory.available_bytes(torch.device("cpu"))
    assert there is not None
    assert 2**20 < there < 2**50


def test_timesteps_that_cannot_be() -> None:
    one = mixture_ddim()
    with pytest.raises(ValueError, match="num_inference_steps: expected an integer from 1 to 1000, got 1001"):
        one.set_timesteps(1001)
    with pytest.raises(ValueError, match="steps_offset: expected an offset that keeps"):
        GMMDDIMScheduler(steps_offset=300).set_timesteps(4)


def test_without_diffusers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['diffusers'] = None; import gmmkernel; import gmmkernel.integrations.diffusers"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1
    assert 'pip install "gmmkernel[diffusers]"' in result.stderr.splitlines()[-1]
