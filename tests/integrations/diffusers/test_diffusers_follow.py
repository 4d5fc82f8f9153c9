"""Configs of all of diffusers' schedulers: followed, or refused by the option that would be lost."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.deprecated import ScoreSdeVpScheduler
from schedulers_beside import inputs, relative

from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler
from gmmkernel.integrations.diffusers.configs import DDIM, FLOW

pytestmark = pytest.mark.filterwarnings("ignore")

# Options without a default, and what the others have no default for.
NEEDED: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 1},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 1.0,
        "tsr_sigma": 1.0,
    },
}
EVERY = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and isinstance(getattr(diffusers, name), type)
)
OURS = {GMMDDIMScheduler: DDIM, GMMFlowMatchScheduler: FLOW}


def loaded(scheduler: Any) -> dict[str, Any]:
    """Return the config as a pipeline loaded from a file has it: with the name of its class, and no defaults noted."""
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return {**config, "_class_name": type(scheduler).__name__}


def made(name: str) -> Any:
    try:
        return getattr(diffusers, name)(**NEEDED.get(name, {}))
    except (ImportError, ValueError) as error:
        if isinstance(error, ImportError):
            pytest.skip(str(error).strip().splitlines()[0])
        raise


@pytest.mark.parametrize("ours", OURS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", EVERY)
def test_every_scheduler_is_followed_or_refused(name: str, ours: type) -> None:
    """In memory, where a config does not name its class, and as a file has it."""
    theirs = made(name)
    for config in (dict(theirs.config), loaded(theirs)):
        try:
            one = ours.from_config(config)
        except ValueError as error:
            option, _, said = str(error).partition(": ")
            assert option in config or option in ("config", *OURS[ours].needed)
            assert ours.__name__ in said or option in ("variance_type", *OURS[ours].needed)
            assert name not in OURS[ours].classes or ours is GMMFlowMatchScheduler
            continue
        assert one.config.num_train_timesteps == theirs.config.num_train_timesteps
        assert "_class_name" not in config or name in OURS[ours].classes
        if ours is GMMDDIMScheduler:
            assert torch.equal(one.alphas_cumprod, theirs.alphas_cumprod)
            assert one.config.prediction_type == theirs.config.get("prediction_type", "epsilon")
            assert one.config.clip_sample == theirs.config.get("clip_sample", False)
            assert one.config.thresholding == theirs.config.get("thresholding", False)
        else:
            for scheduler in (one, theirs):
                scheduler.set_timesteps(7)
            assert torch.equal(one.sigmas.unique(), theirs.sigmas.unique())  # Heun's come twice
            assert torch.equal(one.timesteps.unique(), theirs.timesteps.unique())


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_there_and_back(kind: type) -> None:
    """By way of every scheduler that diffusers calls compatible, EDM with its own sigmas among them."""
    chosen: dict[str, Any] = {"num_train_timesteps": 900}
    if kind is GMMDDIMScheduler:
        chosen |= {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True}
    for options in (chosen, {**chosen, "n_components": 3, "variant": "exact", "rho": 0.5, "eta": 0.25}):
        ours = kind(**options)
        wanted = {name: value for name, value in ours.config.items() if name[0] != "_"}
        for other in ours.compatibles:
            flow = kind is GMMFlowMatchScheduler and other is not FlowMatchEulerDiscreteScheduler
            if getattr(other, "_backends", ()) or flow:
                continue  # not installed; or it would have to be set to flow sigmas, or does not say enough
            back = kind.from_config(other.from_config(ours.config).config).config
            assert {name: back[name] for name in wanted} == wanted, other.__name__
            assert set(back["_use_default_values"]) == set(ours.config["_use_default_values"])
    with pytest.raises(ValueError, match=r"^sigma_max: "):
        GMMDDIMScheduler.from_config({**GMMDDIMScheduler().config, "sigma_max": 700.0})


def test_the_classes_that_are_followed_exist() -> None:
    for rules in OURS.values():
        assert rules.classes <= set(EVERY)


@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler, DEISMultistepScheduler]
)
@pytest.mark.parametrize("zero", [False, True])
def test_timesteps_and_levels_that_are_chosen_are_those(kind: type, zero: bool) -> None:
    options: dict[str, Any] = {
        "timestep_spacing": "trailing",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.015,
        "num_train_timesteps": 900,
    }
    if zero and "rescale_betas_zero_snr" in inspect.signature(kind).parameters:
        options["rescale_betas_zero_snr"] = True
    theirs = kind(**options)
    ours = GMMDDIMScheduler.from_config(theirs.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert ours.timesteps.tolist() == theirs.timesteps.long().tolist()
    assert torch.equal(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1])
    assert (
        abs(float(ours.alphas_cumprod[-1] - theirs.alphas_cumprod[-1])) <= 2**-24
    )  # where they keep some data


def test_what_was_a_default_is_followed_too() -> None:
    """Diffusers would take DDIM's defaults: a latent model that is clipped, betas of another network."""
    ours = GMMDDIMScheduler.from_config(HeunDiscreteScheduler().config)
    assert (ours.config.beta_start, ours.config.beta_end, ours.config.clip_sample) == (0.00085, 0.012, False)
    for chosen, ends in (({}, True), ({"set_alpha_to_one": False}, False)):  # PNDM's default is False
        assert GMMDDIMScheduler.from_config(PNDMScheduler(**chosen).config).config.set_alpha_to_one is ends
    by_hand = {"_class_name": "HeunDiscreteScheduler"}
    assert torch.equal(GMMDDIMScheduler.from_config(by_hand).alphas_cumprod, ours.alphas_cumprod)
    own = GMMDDIMScheduler.from_config(DPMSolverMultistepScheduler().config)
    assert own.config.timestep_spacing == "leading"


REFUSED: list[tuple[type, Any, str]] = [
    (GMMDDIMScheduler, FlowMatchEulerDiscreteScheduler(shift=3.0), "config"),
    (GMMDDIMScheduler, DPMSolverMultistepScheduler(lambda_min_clipped=-5.1), "lambda_min_clipped"),
    (GMMDDIMScheduler, DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type"),
    (GMMDDIMScheduler, UniPCMultistepScheduler(use_beta_sigmas=True), "use_beta_sigmas"),
    (
        GMMDDIMScheduler,
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        "config",
    ),
    (GMMDDIMScheduler, UniPCMultistepScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
    (GMMDDIMScheduler, EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type"),
    (GMMDDIMScheduler, EulerDiscreteScheduler(interpolation_type="log_linear"), "interpolation_type"),
    (GMMDDIMScheduler, DDPMScheduler(beta_schedule="sigmoid"), "beta_schedule"),
    (GMMDDIMScheduler, UniPCMultistepScheduler(prediction_type="flow_prediction"), "config"),
    (GMMDDIMScheduler, LCMScheduler(), "original_inference_steps"),
    (GMMDDIMScheduler, UnCLIPScheduler(), "variance_type"),
    (GMMDDIMScheduler, ScoreSdeVpScheduler(), "beta_min"),
    (GMMFlowMatchScheduler, UniPCMultistepScheduler(use_flow_sigmas=True), "prediction_type"),
    (
        GMMFlowMatchScheduler,
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", thresholding=True),
        "thresholding",
    ),
    (
        GMMFlowMatchScheduler,
        UniPCMultistepScheduler(
            use_flow_sigmas=True, use_karras_sigmas=True, prediction_type="flow_prediction"
        ),
        "use_karras_sigmas",
    ),
    (
        GMMFlowMatchScheduler,
        UniPCMultistepScheduler.from_config(
            FlowMatchEulerDiscreteScheduler(shift=5.0).config,
            flow_shift=3.0,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
        ),
        "flow_shift",
    ),
    (GMMFlowMatchScheduler, FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "option"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_would_be_lost_is_refused_by_name(ours: type, theirs: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: "):
        ours.from_config(theirs.config)


class NewScheduler(diffusers.SchedulerMixin, ConfigMixin):
    """One that diffusers may have tomorrow."""

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        warp: float = 0.5,
        order: int = 2,
    ) -> None:
        pass


def test_a_scheduler_that_is_not_known_is_not_followed_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"^warp: GMMDDIMScheduler does not support it; expected None, got 0\.5"
    ):
        GMMDDIMScheduler.from_config(NewScheduler().config)
    monkeypatch.setattr(diffusers, "NewScheduler", NewScheduler, raising=False)
    with pytest.raises(ValueError, match=r"^_class_name: GMMDDIMScheduler does not follow NewScheduler, "):
        GMMDDIMScheduler.from_config({"_class_name": "NewScheduler"})
    with pytest.raises(ValueError, match=r"^beta_schedule: expected it in the config"):
        GMMDDIMScheduler.from_config({"num_train_timesteps": 1000})
    without = GMMDDIMScheduler.from_config(NewScheduler().config, warp=None, order=None)
    assert without.config.num_train_timesteps == 1000


SOLVERS = [
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
]


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_solver_of_flow_is_understood(kind: type) -> None:
    """The shift is: their times are these at the ones before shifting. Which times there are is the scheduler's own."""
    theirs = kind(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    ours = GMMFlowMatchScheduler.from_config(theirs.config, eta=0.5)
    assert (ours.config.shift, ours.config.eta) == (3.0, 0.5)
    theirs.set_timesteps(6)
    wanted = theirs.sigmas[:6].double()
    ours.set_timesteps(sigmas=(wanted / (3 - 2 * wanted)).tolist())
    assert relative(ours.sigmas[:6], wanted) < 1e-6
    assert float((ours.timesteps - theirs.timesteps).abs().max()) < 1  # theirs are whole
    back = kind.from_config(ours.config)
    assert (back.config.use_flow_sigmas, back.config.flow_shift) == (True, 3.0)


def test_the_shift_stays_one_option() -> None:
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    ours = GMMFlowMatchScheduler.from_config(theirs.config, shift=5.0)
    assert ours.config.shift == 5.0
    assert UniPCMultistepScheduler.from_config(ours.config).config.flow_shift == 5.0
    assert GMMFlowMatchScheduler.from_config(ours.config).config.shift == 5.0
    flow = FlowMatchEulerDiscreteScheduler(shift=2.0).config
    assert GMMFlowMatchScheduler.from_config(flow, flow_shift=4.0).config.shift == 4.0
    assert (
        GMMFlowMatchScheduler.from_config(loaded(FlowMatchHeunDiscreteScheduler(shift=2.0))).config.shift
        == 2.0
    )


@pytest.mark.parametrize("kind", [DDPMScheduler, DDPMParallelScheduler])
@pytest.mark.parametrize("how", ["in memory", "chosen", "loaded", "from DDIM", "by hand"])
def test_ddpm_is_known_as_such(kind: type, how: str) -> None:
    config: Any = kind().config
    if how == "chosen":
        config = kind(variance_type="fixed_small", clip_sample=False).config
    elif how == "loaded":
        config = loaded(kind())
    elif how == "by hand":
        config = {"_class_name": kind.__name__, "num_train_timesteps": 1000, "beta_schedule": "linear"}
    elif how == "from DDIM":
        config = kind.from_config(DDIMScheduler(set_alpha_to_one=False).config).config
    ours = GMMDDIMScheduler.from_config(config)
    assert (ours.config.eta, ours.config.use_clipped_model_output) == (1.0, True)
    assert GMMDDIMScheduler.from_config(config, eta=None).config.eta is None


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_an_eta_that_a_pipeline_chooses_is_ddim_s(eta: float) -> None:
    """With a DDPM checkpoint too: the clipped noise belongs to the transition that the config has."""
    config = DDPMScheduler().config
    theirs, ours = DDIMScheduler.from_config(config), GMMDDIMScheduler.from_config(config)
    sample, noise = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
    for t in theirs.timesteps:
        made, expected = (
            scheduler.step(
                torch.tanh(sample),
                t,
                sample,
                eta=eta,
                use_clipped_model_output=None,
                variance_noise=noise if eta else None,
            ).prev_sample
            for scheduler in (ours, theirs)
        )
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_what_is_left_over_from_ddpm_is_no_ddpm() -> None:
    for config in (
        DDIMScheduler.from_config(DDPMScheduler(variance_type="fixed_large").config).config,
        DPMSolverMultistepScheduler.from_config(loaded(DDPMScheduler())).config,
        {**loaded(DDIMScheduler()), "variance_type": "fixed_small"},
    ):
        ours = GMMDDIMScheduler.from_config(config)
        assert (ours.config.eta, ours.config.use_clipped_model_output) == (None, False)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_large_log", "fixed_small_log"])
def test_other_variances_of_ddpm_are_decided_on(variance: str) -> None:
    config = DDPMScheduler(variance_type=variance).config
    with pytest.raises(
        ValueError, match=f"^variance_type: expected 'fixed_small', .*got '{variance}'.*eta=1"
    ):
        GMMDDIMScheduler.from_config(config)
    assert GMMDDIMScheduler.from_config(config, eta=1.0).config.eta == 1.0


@pytest.mark.parametrize(
    "bounds", [{}, {"clip_sample": False}, {"thresholding": True, "sample_max_value": 1.5}], ids=str
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddpm_s_step_is_followed(prediction_type: str, bounds: dict[str, Any]) -> None:
    """With its own noise: mean, variance and clipping."""
    theirs = DDPMScheduler(prediction_type=prediction_type, **bounds)
    ours = GMMDDIMScheduler.from_config(theirs.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    x, output = inputs((2, 3, 16, 16)), inputs((2, 3, 16, 16), seed=1)
    for timestep in theirs.timesteps:
        wanted = theirs.step(output, timestep, x, generator=torch.manual_seed(3)).prev_sample
        noise = torch.randn(x.shape, generator=torch.manual_seed(3))
        made = ours.step(output, timestep, x, variance_noise=noise).prev_sample
        assert relative(made, wanted) < 1e-5
        x = wanted


def test_a_ddpm_pipeline_keeps_its_variance() -> None:
    """Which passes no eta; one that passes it has chosen."""

    def spread(scheduler: Any) -> float:
        pipe = diffusers.DDPMPipeline(tiny.Elementwise(sample_size=32), scheduler)
        pipe.set_progress_bar_config(disable=True)
        images = [
            pipe(1, generator=torch.manual_seed(seed), num_inference_steps=10, output_type="np").images
            for seed in range(8)
        ]
        return float(np.concatenate(images).std())

    theirs = DDPMScheduler(clip_sample=False)
    wanted = spread(theirs)
    assert spread(GMMDDIMScheduler.from_config(theirs.config)) == pytest.approx(wanted, rel=0.03)
    assert spread(GMMDDIMScheduler.from_config(theirs.config, eta=0.0)) != pytest.approx(wanted, rel=0.03)
    scheduler = GMMDDIMScheduler.from_config(theirs.config)
    scheduler.set_timesteps(10)
    x = inputs()
    chosen = scheduler.step(x, 500, x, eta=0.0, use_clipped_model_output=False).prev_sample
    plain = DDIMScheduler(clip_sample=False)
    plain.set_timesteps(10)
    assert relative(chosen, plain.step(x, 500, x).prev_sample) < 1e-5


def test_eta_of_the_config_is_checked() -> None:
    with pytest.raises(ValueError, match="eta: expected a finite number >= 0"):
        GMMDDIMScheduler(eta=-1.0)
    with pytest.raises(TypeError, match="use_clipped_model_output: expected True or False"):
        GMMDDIMScheduler(use_clipped_model_output=1)
    assert math.isinf(DPMSolverMultistepScheduler().config.lambda_min_clipped)  # which is "without"
    with pytest.raises(ValueError, match=r"from_config\(config, lambda_min_clipped=float\('-inf'\)\) leaves"):
        GMMDDIMScheduler.from_config(DPMSolverMultistepScheduler(lambda_min_clipped=-5.1).config)
